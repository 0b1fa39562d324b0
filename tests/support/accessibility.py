"""What axe-core (https://github.com/dequelabs/axe-core) finds in a page: WCAG 2.2, and its own best practice.

axe-playwright-python has axe-core in it; docs/dependencies.md says why.
"""

from dataclasses import dataclass
from typing import Any, Literal

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page, expect

# All rules that are on by themselves, and the size of targets (WCAG 2.2, 2.5.8).
ALL_RULES: dict[str, Any] = {"resultTypes": ["violations"], "rules": {"target-size": {"enabled": True}}}
CONTRAST: dict[str, Any] = {"resultTypes": ["violations"], "runOnly": ["color-contrast"]}
Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
BACKGROUNDS = {"light": "rgb(255, 255, 255)", "dark": "rgb(19, 24, 23)"}  # .streamlit/config.toml

# Else colours are measured while they change: for a theme, and during a run of the script, which may begin at any time.
AT_ONCE = """
*, *::before, *::after { transition: none !important; }
[data-stale=true] { opacity: 1 !important; }
"""
# An expander that is still opening covers what is in it.
ANIMATIONS_END = """() => Promise.all(
    document.getAnimations()
        .filter((each) => each.effect.getComputedTiming().endTime < Infinity)
        .map((each) => each.finished.catch(() => null)))"""


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that an element breaks. html: the beginning of the element."""

    rule: str
    html: str
    message: str


def show_theme(page: Page, scheme: Scheme) -> None:
    """As if the system changed between light and dark."""
    page.add_style_tag(content=AT_ONCE)
    page.emulate_media(color_scheme=scheme)
    expect(page.get_by_test_id("stApp")).to_have_css("background-color", BACKGROUNDS[scheme])


def violations(page: Page, options: dict[str, Any] = ALL_RULES) -> list[Violation]:
    expect(page.locator("[data-stale=true]:visible")).to_have_count(0)  # what a run may still change is pale
    page.evaluate(ANIMATIONS_END)
    # Playwright evaluates through the debugger, so the page's Content-Security-Policy does not stop it.
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE_SCRIPT)
    response: dict[str, Any] = page.evaluate("options => axe.run(options)", options)
    return [
        Violation(rule["id"], node["html"][:300], "; ".join(check["message"] for check in _checks_of(node)))
        for rule in response["violations"]
        for node in rule["nodes"]
    ]


def _checks_of(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [*node["any"], *node["all"], *node["none"]]


def expect_no_violations(page: Page, *known: tuple[str, str]) -> None:
    """In the light theme, and in the dark one no pale text.

    Each of `known`, a rule and a part of the element, must be found, else it is mended and must go.
    """
    show_theme(page, "light")
    found = violations(page)
    for rule, part in known:
        assert any(each.rule == rule and part in each.html for each in found), f"{rule} is mended: {part}"
    others = [each for each in found if not any(each.rule == rule and part in each.html for rule, part in known)]
    assert not others, others
    show_theme(page, "dark")
    pale = violations(page, CONTRAST)
    assert not pale, pale
    show_theme(page, "light")
