r"""Measures what it costs to draw a growing answer: time for making its HTML, and bytes for the page.

    python -m benchmarks.answers

Each text grows to about 32,000 characters, in steps of 30; every tenth step is measured. Prints
for each text the milliseconds of an update (median and largest), the bytes of an update, and the milliseconds for the
finished text. No browser and no model.
"""

import statistics
import time
from dataclasses import dataclass

from apps.chat.growing_text import GrowingText
from apps.chat.markdown_html import render
from benchmarks import argument_parser

STEP = 30  # characters
PART = (
    "## Part\n\nThe **llama** walks on; it costs $5 and $x_1^2$ is a formula.\n\n- one\n- two with `code`\n\n"
    "```python\ndef f(x):\n    return x + 1\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
)
TEXTS = {
    "prose, lists, code, tables": PART,
    "one paragraph": "The llama walks through the mountains and does not look back. ",
    "one block of code": "    print('a line of code', 1 + 2)\n",
    "openings of formulas": "\\(",
    "a table of rows": "| a cell | another cell |\n",
}
STARTS = {"one block of code": "```python\n", "a table of rows": "| a | b |\n|---|---|\n"}


@dataclass(frozen=True, slots=True)
class Cost:
    median_ms: float
    largest_ms: float
    median_bytes: float
    largest_bytes: int
    finished_ms: float


def measure(text: str) -> Cost:
    growing = GrowingText()
    milliseconds, sizes = [], []
    for end in range(STEP, len(text), 10 * STEP):
        growing.update(text[: end - STEP])
        final = growing.final
        started = time.perf_counter()
        growing.update(text[:end])
        milliseconds.append(1000 * (time.perf_counter() - started))
        sizes.append(sum(len(html.encode()) for html in growing.blocks[final:]))
    started = time.perf_counter()
    list(render(text))
    finished = 1000 * (time.perf_counter() - started)
    return Cost(statistics.median(milliseconds), max(milliseconds), statistics.median(sizes), max(sizes), finished)


def main() -> None:
    parser = argument_parser("answers", __doc__)
    parser.add_argument("--length", type=int, default=32_000, help="characters of each text")
    length = parser.parse_args().length
    for name, part in TEXTS.items():
        text = (STARTS.get(name, "") + part * (length // len(part) + 1))[:length]
        cost = measure(text)
        print(
            f"{name}: an update {cost.median_ms:.1f} ms (at most {cost.largest_ms:.0f}), "
            f"{cost.median_bytes:,.0f} bytes (at most {cost.largest_bytes:,}); finished {cost.finished_ms:.0f} ms"
        )


if __name__ == "__main__":
    main()
