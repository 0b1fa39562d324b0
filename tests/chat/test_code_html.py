"""Code with colours: the text stays what it is, in a bounded time."""

import re
import time
from html import escape, unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.chat.code_html import BUDGET_SECONDS, IS_KNOWN, code_html


@pytest.fixture
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, or during a garbage collection, a short text may take longer than its budget."""
    monkeypatch.setattr("apps.chat.code_html.BUDGET_SECONDS", 60.0)


@pytest.mark.usefixtures("_unhurried")
def test_code_is_coloured_by_its_language() -> None:
    html = code_html("def f():\n    return 'a' + 1  # b\n", "python")
    assert '<span class="k">def</span> <span class="f">f</span>' in html
    assert "<span class=\"s\">'a'</span>" in html
    assert '<span class="c"># b</span>' in html


@pytest.mark.usefixtures("_unhurried")
def test_code_that_is_being_written_has_colours_in_its_first_lines() -> None:
    code = "x = 1\n" * 2000
    html = code_html(code, "python", is_unfinished=True)
    assert unescape(re.sub(r"</?span[^>]*>", "", html)) == code
    assert 600 < html.count('<span class="n">1') < 700
    assert code_html(code + "x", "python", is_unfinished=True) == html + "x"


def test_code_of_an_unknown_language_is_text() -> None:
    assert code_html("a < b", "nonsense") == "a &lt; b"


@given(st.text(max_size=200), st.sampled_from(sorted(IS_KNOWN)))
def test_no_language_changes_the_text(code: str, language: str) -> None:
    html = code_html(code, language)
    assert unescape(re.sub(r"</?span[^>]*>", "", html)) == unescape(escape(code, quote=False))


@pytest.mark.parametrize(
    "code", ["\n" * 40_000, ("a " * 400 + "\n") * 40, ("//" * 400 + "\n") * 40], ids=["1", "2", "3"]
)
@pytest.mark.parametrize("language", ["java", "c", "groovy", "ini", "console", "html"])
def test_code_takes_no_more_than_its_budget(code: str, language: str) -> None:
    started = time.thread_time()
    code_html(code, language)
    assert time.thread_time() - started < BUDGET_SECONDS + 0.5
