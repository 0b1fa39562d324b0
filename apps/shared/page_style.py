"""The style that both pages need beside the theme."""

from pathlib import Path

import streamlit as st

_FILE = Path(__file__).with_name("page_style.css")


def draw_page_style() -> None:
    """Once in a run. It takes no room: Streamlit puts an element that is only style outside the page."""
    st.html(_FILE)
