"""The words of the sidebar's list: the captions by day, and the file names of exports."""

import time
from datetime import date, datetime

import pytest

from apps.chat.conversations_panel import file_name, group_of
from apps.chat.messages import ListEntry

TODAY = date(2026, 11, 26)


@pytest.mark.parametrize(
    ("day", "caption"),
    [
        (date(2026, 11, 27), "Today"),  # the clock of another machine
        (date(2026, 11, 26), "Today"),
        (date(2026, 11, 25), "Yesterday"),
        (date(2026, 11, 24), "Last 7 days"),
        (date(2026, 11, 19), "Last 7 days"),
        (date(2026, 11, 18), "November 2026"),
        (date(2025, 2, 1), "February 2025"),
    ],
)
def test_caption_follows_from_the_day(day: date, caption: str) -> None:
    changed_at = time.mktime(datetime(day.year, day.month, day.day, 23, 59).timetuple())

    assert group_of(ListEntry("id", "title", changed_at), TODAY) == caption
    assert group_of(ListEntry("id", "title", changed_at, is_pinned=True), TODAY) == "Pinned"


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Lighthouse: **bold** — 5 & red?", "Lighthouse-bold-5-red"),
        ("Größe 42", "Größe-42"),
        ("../../etc/passwd", "etc-passwd"),
        ("???", "chat"),
        ("word " * 40, "-".join(["word"] * 12)),
    ],
)
def test_file_name_has_the_words_of_the_title(title: str, name: str) -> None:
    assert file_name(title) == name
