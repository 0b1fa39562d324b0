r"""A model's Markdown as HTML: exactly the characters that it wrote, and nothing active."""

import re
import time
from collections.abc import Callable
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from apps.chat.markdown_html import answer_blocks, render
from tests.support.model_texts import model_texts
from tests.support.visible_text import attributes_of, tags_of, visible_text

IMAGE = "http://127.0.0.1:9/p.png?q=secret"
ALLOWED = """
p h1 h2 h3 h4 h5 h6 ul ol li blockquote pre code em strong del a hr div span table thead tbody tr th td button
svg rect path math semantics annotation mrow mi mn mo ms mtext mspace mfrac msqrt mroot msub msup msubsup
munder mover munderover mtable mtr mtd mstyle mpadded mphantom menclose
"""
TAGS = set(ALLOWED.split())


def html_of(text: str) -> str:
    return "".join(block.html for block in render(text))


def text_of(text: str) -> str:
    return visible_text(html_of(text))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("About (~2000 lines), ~3~5 minutes, 大约~12万和~510万, ~/a and ~/b.", id="single tildes"),
        pytest.param("At 12:30:45, std::vector, 3:x, :smile:, :+1:, :streamlit:, :material/delete:", id="colons"),
        pytest.param(":red[this], :blue-background[that], :small[tiny] and :green-badge[ok]", id="directives"),
        pytest.param("--upgrade, a -> b, a <- b, a <-> b, x >= 3, x <= 3, x ~= 3, 5 -- 6, ... (c)", id="signs"),
        pytest.param("It costs $5 to $10, or US$119.6 billion (+2.34%), up from $113.37.", id="prices"),
        pytest.param("$5 a day, or $30 a week; A$ or $7; x$y$z", id="more prices"),
        pytest.param("<b>bold</b>, <br>, List<String>, <think>a</think> <!-- b -->", id="HTML"),
        pytest.param("![x](http://a/b.png) and ![x][r]", id="pictures"),
        pytest.param(
            "[click](javascript:alert(1)) <javascript:alert(2)> [f](file:///etc/passwd)", id="links to scripts"
        ),
        pytest.param("[INFO]: started", id="what looks like a definition"),
        pytest.param("two  blanks\nand a line", id="blanks and line breaks"),
        pytest.param("{{ braces }} ${HOME} #hash @at \"quotes\" 'single'", id="other signs"),
    ],
)
def test_text_without_marks_is_shown_as_it_is(text: str) -> None:
    assert text_of(text) == text


@pytest.mark.parametrize(
    ("text", "html"),
    [
        pytest.param("~~a~~ **b** *c*", "<del>a</del> <strong>b</strong> <em>c</em>", id="marks"),
        pytest.param("`a`", '<code dir="ltr">a</code>', id="code"),
        pytest.param("a &lt;b&gt; \\* &amp;", "a &lt;b&gt; * &amp;", id="entities and escapes"),
    ],
)
def test_marks_become_elements(text: str, html: str) -> None:
    assert html_of(text) == f'<p dir="auto">{html}</p>'


def test_a_list_keeps_the_numbers_that_the_model_wrote() -> None:
    items = re.findall("<li[^>]*>", html_of("1. a\n3. b\n\ntext\n\n2) c\n\ntext\n\n007. d"))
    assert items == [
        '<li value="1">',
        '<li value="3">',
        '<li value="2" data-marker="2) ">',
        '<li value="7" data-marker="007. ">',
    ]


def test_no_cell_of_a_table_is_lost() -> None:
    html = html_of("| a | b |\n|---|--:|\n| 1 | 2 | 3 \\| 4 | 5 |\n| 6 |")
    assert re.findall(r"<t[hd](?: [^>]*)?>([^<]*)", html) == ["a", "b", "1", "2", "3 | 4", "5", "6", ""]
    assert '<td class="right">2' in html


def test_text_in_very_deep_quotes_and_lists_is_not_lost() -> None:
    assert text_of(">" * 150 + " deep").endswith("deep")
    assert text_of("- " * 150 + "deep").endswith("deep")


@pytest.mark.parametrize(
    ("text", "code", "after"),
    [
        pytest.param(
            "```md\na\n```text\nb\n```\nc\n```\n\nend", "a\n```text\nb\n```\nc\n", "end", id="a block in a block"
        ),
        pytest.param("```md\na\n```\nend", "a\n", "end", id="no block in it"),
        pytest.param("````md\n```sh\na\n```\n````\nend", "```sh\na\n```\n", "end", id="a longer fence"),
        pytest.param("```md\na\n```py\nb\n```\n\nend", "a\n```py\nb\n", "end", id="an outer block without an end"),
        pytest.param("```py\na\n```text\nb\n```\nend", "a\n```text\nb\n", "end", id="a language that has no fences"),
        pytest.param("```py\na", "a", "", id="not finished"),
    ],
)
def test_where_a_block_of_code_ends(text: str, code: str, after: str) -> None:
    html = html_of(text)
    found = re.search("<pre><code>(.*?)</code></pre>", html, re.DOTALL)
    assert found and unescape(re.sub("<[^>]*>", "", found[1])) == code
    assert visible_text(html[found.end() :]) == after


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        pytest.param("Euler: $e^{i\\pi} = -1$ and $x$.", ["e^{i\\pi} = -1", "x"], id="dollars"),
        pytest.param("A price in one: $\\$0.60$", ["\\$0.60"], id="a price in a formula"),
        pytest.param("So \\( f(x) \\) and \\[ x^2 \\] or $$y$$.", ["f(x)", "x^2", "y"], id="in a line"),
        pytest.param("then\n\\[\na\n- b\n+ c\n\\]\nor\n\n$$\nd\n$$", ["a\n- b\n+ c", "d"], id="on lines of its own"),
        pytest.param("In code `$x$` and `\\(x\\)`", [], id="in code"),
        pytest.param("| $x$ | \\(y\\) |\n|---|---|\n| a | b |", ["x", "y"], id="in a table"),
    ],
)
def test_formulas(text: str, sources: list[str]) -> None:
    found = re.findall("<annotation[^>]*>(.*?)</annotation>", html_of(text), re.DOTALL)
    assert [unescape(source) for source in found] == sources


def test_a_formula_that_cannot_be_drawn_stays_text() -> None:
    assert text_of("So \\(\\frac{a\\) and \\[x_\\]") == "So \\(\\frac{a\\) and \\[x_\\]"


def test_a_display_formula_is_a_block_and_one_in_a_line_is_not() -> None:
    assert '<div class="formula"><math dir="ltr" display="block">' in html_of("\\[ x \\]")
    assert 'display="inline"' in html_of("so \\( x \\)")


@pytest.mark.parametrize(
    ("text", "attributes"),
    [
        pytest.param("[a](https://b.example/c)", 'title="https://b.example/c" data-host="b.example"', id="words"),
        pytest.param("[good.org](https://evil.example/good.org)", 'data-host="evil.example"', id="another host"),
        pytest.param("[x](https://good.org@evil.example)", 'data-host="evil.example"', id="a host as a user"),
        pytest.param("[mail](mailto:a@b.org)", 'data-host="a@b.org"', id="mail"),
    ],
)
def test_links_show_where_they_lead(text: str, attributes: str) -> None:
    html = html_of(text)
    assert attributes in html
    assert 'target="_blank" rel="noopener noreferrer"' in html


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("See https://example.org/a_(b)_c.", "https://example.org/a_(b)_c"),
        ("(https://example.org/a)", "https://example.org/a"),
        ("https://example.org/?a=1&b=2, and", "https://example.org/?a=1&b=2"),
        ("https://example.org/c\u202egnp.exe", "https://example.org/c"),
        ("https://example.org/a(b))).", "https://example.org/a(b)"),
    ],
)
def test_web_addresses_are_links_without_the_sentences_punctuation(text: str, address: str) -> None:
    found = re.search('href="([^"]*)"', html_of(text))
    assert found and unescape(found[1]) == address
    assert text_of(text) == text
    assert "data-host" not in html_of(text)


def test_a_wide_table_has_only_the_cells_that_were_written() -> None:
    html = html_of(f"{'|a' * 200}|\n{'|-' * 200}|\n" + "|x|y|\n" * 300)
    assert (html.count("<th>"), html.count("<td>")) == (200, 600)
    assert html_of("|a|b|\n|-|-|\n|x|\n").count("<td>") == 2


def test_bare_words_are_no_links() -> None:
    assert "<a" not in html_of("www.example.org, example.org, a@b.org, `https://x.org`")


def test_blocks_have_the_direction_of_their_text_and_code_is_left_to_right() -> None:
    html = html_of("שלום `f()`\n\n- פריט\n- Alibaba\n\n| א |\n|---|\n| b |\n\n```\nx\n```")
    assert re.findall(r'<(\w+)[^>]* dir="(\w+)"', html) == [
        ("p", "auto"), ("code", "ltr"), ("ul", "auto"), ("table", "auto"), ("div", "ltr")
    ]  # fmt: skip


def oracle(text: str) -> str:
    """The text of CommonMark's own tokens: markdown-it without our rules."""
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    parser.disable(["html_block", "html_inline", "reference", "link", "image", "autolink"])
    words = []
    for token in parser.parse(text):
        words += [token.content] if token.type in ("fence", "code_block") else []
        for child in token.children or ():
            words.append("\n" if child.type in ("softbreak", "hardbreak") else child.content)
        words.append("\n")
    return " ".join("".join(words).split())


def without_our_rules(text: str) -> str:
    """The text without what our rules read otherwise: formulas, links, blocks in `markdown` blocks, extra cells."""
    for mark in ("\\(", "\\[", "\\)", "\\]", "$", "](", "<http", "markdown", "```md", "|"):
        text = text.replace(mark, " ")
    return text


def test_2000_generated_texts_lose_no_character_and_load_nothing() -> None:
    for text in model_texts(2000, IMAGE):
        html = html_of(text)
        assert tags_of(html) <= TAGS, text
        names = {name for name, _ in attributes_of(html)}
        assert not names & {"src", "style", "srcset", "background", "poster", "xlink:href"}, text
        assert not any(name.startswith("on") for name in names), text
        links = {value for name, value in attributes_of(html) if name == "href"}
        assert all(str(link).startswith(("http://", "https://", "mailto:")) for link in links), text
        plain = without_our_rules(text)
        assert " ".join(text_of(plain).split()) == oracle(plain), plain


LETTERS = re.compile(r"[^\W_]+")


def test_every_word_of_2000_generated_texts_is_shown_in_order() -> None:
    """Without a Markdown parser: only addresses of links, entities and the languages of blocks are no text."""
    for text in model_texts(2000, "http://127.0.0.1:9/p.png", seed=2):
        html = html_of(text)
        shown = iter(
            LETTERS.findall(
                unescape(re.sub(r"<math.*?<annotation[^>]*>(.*?)</annotation>.*?</math>", r"\1", html, flags=re.DOTALL))
            )
        )
        source = re.sub(r"\]\(http[^)]*\)|&\w+;|&#33;|(?m:^[ >-]*(?:`{3,}|~{3,}).*$)|^\s*\d+[.)]", " ", text)
        missing = [word for word in LETTERS.findall(source) if word not in shown]
        assert missing == [], text


@given(st.text(alphabet="`~*_[]()!<>#$\\|:-+=.&;>1ab \n\t", max_size=120))
def test_any_text_gives_harmless_html(text: str) -> None:
    html = html_of(text)
    assert tags_of(html) <= TAGS
    assert not {name for name, _ in attributes_of(html)} & {"src", "style"}


@pytest.mark.parametrize(
    "text", ["\\(", "\\[ ", "$", "`", "\\(a\\[", "```md\n```x\n```\n", "|a|b|\n|-|-|\n", "http://a "]
)
def test_time_grows_no_faster_than_the_text(text: str) -> None:
    assert_time_grows_no_faster(lambda length: text * (length // len(text)))


def test_time_grows_no_faster_than_the_brackets_after_an_address() -> None:
    assert_time_grows_no_faster(lambda length: "http://a/" + ")" * length)


def assert_time_grows_no_faster(make: Callable[[int], str]) -> None:
    def seconds(length: int) -> float:
        started = time.thread_time()  # without the time that other programs take
        html_of(make(length))
        return time.thread_time() - started

    short, long = (min(seconds(n) for _ in range(3)) for n in (4_000, 32_000))
    assert long < 30 * max(short, 0.0005), "eight times the text; quadratic growth would be 64 times"


def test_a_finished_answer_is_rendered_once() -> None:
    assert answer_blocks("Some *text*.") is answer_blocks("Some *text*.")
