"""A button that copies a text to the clipboard. Streamlit has one only for blocks of code.

The text is handed over as a value, never as part of the script.
"""

from __future__ import annotations

from typing import Any

import streamlit as st

_ICON = (
    '<svg viewBox="0 0 24 24" width="18" height="18" fill="none" stroke="currentColor" stroke-width="1.8">'
    '<rect x="9" y="9" width="11" height="12" rx="1.5"/><path d="M15 5V4a1 1 0 0 0-1-1H5a1 1 0 0 0-1 1v12h1"/></svg>'
)
_HTML = f'<button title="Copy" aria-label="Copy">{_ICON}</button>'
_CSS = """
button {
    display: flex; padding: 0.25rem; border: 0; cursor: pointer; background: none;
    color: var(--st-text-color); border-radius: var(--st-base-radius);
}
button:hover, button.copied { color: var(--st-primary-color); }
"""
_SCRIPT = """
export default function ({ data, parentElement }) {
  const button = parentElement.querySelector("button");
  button.onclick = async () => {
    await navigator.clipboard.writeText(data);
    button.title = "Copied";
    button.classList.add("copied");
    setTimeout(() => { button.title = "Copy"; button.classList.remove("copied"); }, 1500);
  };
}
"""


@st.cache_resource
def _component() -> Any:
    return st.components.v2.component("copy_button", html=_HTML, css=_CSS, js=_SCRIPT)


def draw_copy_button(text: str, key: str) -> None:
    _component()(data=text, key=key, width="content", height="content")
