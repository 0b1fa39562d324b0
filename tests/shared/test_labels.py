"""A title as the label of a button: every character is only itself."""

import pytest

from apps.shared.labels import WORD_JOINER, as_label, direction_of


@pytest.mark.parametrize(
    "title",
    [
        ":material/delete: a",
        ":smile:",
        "a -> b <- c -- d >= e",
        ":red[x]",
        "**b** _i_ `c` $x$",
        "![x](http://a/b)",
        "<b>",
    ],
)
def test_a_label_has_the_titles_characters(title: str) -> None:
    assert as_label(title).replace(WORD_JOINER, "").replace("\\", "") == title


def test_a_label_cannot_turn_the_words_after_it() -> None:
    assert as_label("\u202emodel\u2067 \u202c\u2069שלום") == "model שלום"


@pytest.mark.parametrize(
    ("title", "mark"), [(":material/delete:", ":m"), (":smile:", ":s"), ("->", "->"), ("--", "--"), (">=", ">=")]
)
def test_what_streamlit_would_replace_is_taken_apart(title: str, mark: str) -> None:
    assert mark not in as_label(title).replace("\\", "")


@pytest.mark.parametrize(
    ("title", "direction"),
    [
        ("A name", "ltr"),
        ("שם", "rtl"),
        ("اسم", "rtl"),
        ("1. שם of a cat", "rtl"),
        ("(C) שם", "ltr"),
        ("?!", "ltr"),
        ("", "ltr"),
    ],
)
def test_a_title_is_read_in_the_direction_of_its_first_letter(title: str, direction: str) -> None:
    assert direction_of(title) == direction
