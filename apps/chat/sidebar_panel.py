"""What Streamlit cannot do in a browser: scroll to a message, set the focus, put a draft aside, close a sidebar.

A component without a look; its script does each order once. An order is a number and what it is about.
"""

from pathlib import Path
from typing import Any

import streamlit as st

from apps.shared.ordered_data import ordered

FILES = Path(__file__).parent / "sidebar_element"


@st.cache_resource
def _script() -> Any:
    js = (FILES / "sidebar.js").read_text(encoding="utf-8")
    return st.components.v2.component("sidebar_panel", js=js, isolate_styles=False)


def draw_script() -> None:
    """The style of the sidebar, and the script with the orders of this session; once in a run."""
    st.html(FILES / "sidebar.css")
    data = ordered("sidebar_panel", {"orders": st.session_state.get("orders", {})})
    _script()(key="sidebar_panel", data=data, height="content")


def jump_to(message_id: int) -> None:
    """Callback: when the message is drawn, it is scrolled into view and marked for a moment."""
    _order("jump", f"message_{message_id}")


def focus_on(key: str) -> None:
    """Callback: when the field with this key is drawn, it gets the focus."""
    _order("focus", key)


def change_conversation(left: str, opened: str) -> None:
    """Callback: what is typed in the chat input stays with the conversation that is left, for this page's life.

    Where the sidebar covers the page, it closes.
    """
    _order("change", [left, opened])


def _order(name: str, about: str | list[str]) -> None:
    orders = st.session_state.get("orders", {})
    number = st.session_state.n_orders = st.session_state.get("n_orders", 0) + 1
    st.session_state.orders = orders | {name: [number, about]}
