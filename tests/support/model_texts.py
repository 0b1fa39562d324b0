"""Generated Markdown as models write it, and worse: fences in fences, quotes, formulas, entities, HTML, directives."""

import random
from collections.abc import Iterator

WORDS = (
    "alpha", "beta", "5", "12:30", "x1", "naïve", "你好", "שלום", "مرحبا", "$5", "$6.50", "US$7", "50%", "a->b", "a--b",
    ">=3", "~2000", "~/a", "C++", "it's", "e.g.", "😀",
)  # fmt: skip
INLINE = (
    "**{}**", "*{}*", "__{}__", "_{}_", "~~{}~~", "~{}~", "`{}`", "`` {} ``", ":material/{}:", ":{}:", ":red[{}]",
    ":blue-background[{}]", "\\({}^2\\)", "\\[{}+1\\]", "${}=1$", "$$ {} $$", "[{}](IMAGE)", "![{}](IMAGE)", "![{}][r]",
    "[![{}](IMAGE)](IMAGE)", "<b>{}</b>", "<img src=IMAGE>", "<IMAGE>", "IMAGE", "&lt;{}&gt;", "&#33;[{}](IMAGE)",
    "!\\[{}](IMAGE)", "\\({}", "{}$", "`{}", "[{}](javascript:alert(1))", "<!-- {} -->",
    "<style>@import 'IMAGE'</style>", "\\href{{IMAGE}}{{{}}}", "<svg onload=fetch('IMAGE')>",
    "!\u200b[{}](IMAGE)", "{}\\", "[{}]", "|{}|", "{}",
)  # fmt: skip
STARTS = (
    "", "", "", "> ", "> > ", "- ", "  - ", "1. ", "7) ", "# ", "### ", "    ", "| ", "```", "```python", "```markdown",
    "```md", "~~~", "````", "> ```", "   ```", "      ```", "\\[", "\\]", "$$", "---", "===", "|---|---|", "[r]: IMAGE",
    "- ```", "***", "\t", "<details>", "<!--", "-->", "<script>", ":::", "| a | b |",
)  # fmt: skip


def model_texts(number: int, image: str, seed: int = 1) -> Iterator[str]:
    """Texts that try to load `image`."""
    source = random.Random(seed)
    for _ in range(number):
        lines = []
        for _ in range(source.randint(1, 14)):
            words = (source.choice(INLINE).format(source.choice(WORDS)) for _ in range(source.randint(0, 4)))
            lines.append(source.choice(STARTS) + " ".join(words))
            if source.random() < 0.25:
                lines.append("")
        yield "\n".join(lines).replace("IMAGE", image)
