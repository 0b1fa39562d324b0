"""A button that copies a text to the clipboard, for both apps. Streamlit has one only for blocks of code.

The browser gets the text as a value, never as part of the script. The text is neither drawn nor logged.
"""

from typing import Any

import streamlit as st

from apps.shared.ordered_data import ordered

_ICON = (
    '<svg viewBox="0 0 24 24" width="18" height="18" fill="none" stroke="currentColor" stroke-width="1.8">'
    '<rect x="9" y="9" width="11" height="12" rx="1.5"/><path d="M15 5V4a1 1 0 0 0-1-1H5a1 1 0 0 0-1 1v12h1"/></svg>'
)
_HTML = f'<button type="button">{_ICON}<span></span></button>'
_CSS = """
button {
    display: flex; align-items: center; padding: 0.25rem; border: 0; cursor: pointer; background: none;
    font: inherit; white-space: nowrap; color: var(--st-text-color); border-radius: var(--st-button-radius);
}
button.labelled {
    font-size: 0.875rem; min-height: 2.5rem; padding: 0.25rem 0.75rem; border: 1px solid var(--st-border-color);
}
button.labelled svg { display: none; }
button:hover, button:focus-visible, button.copied { color: var(--st-primary-color); }
button.labelled:hover, button.labelled:focus-visible { border-color: var(--st-primary-color); }
button:focus-visible { outline: 2px solid var(--st-primary-color); outline-offset: 2px; }
"""
_SCRIPT = """
export default function ({ data, parentElement }) {
    if (data.number < (parentElement.dataNumber ?? 0)) return; // apps/shared/ordered_data.py
    parentElement.dataNumber = data.number;
    const button = parentElement.querySelector("button");
    const setLabel = (words) => {
        button.title = data.label ? "" : words;
        button.ariaLabel = words;
        button.lastChild.textContent = data.label && words;
    };
    const confirm = (words, isCopied) => {
        setLabel(words);
        button.classList.toggle("copied", isCopied);
        setTimeout(() => { setLabel(data.label || "Copy"); button.classList.remove("copied"); }, 2000);
    };
    button.classList.toggle("labelled", Boolean(data.label));
    setLabel(data.label || "Copy");
    button.onclick = async () => {
        try {
            await navigator.clipboard.writeText(data.text);
            confirm("Copied", true);
        } catch {
            confirm("The browser does not allow it: mark the text and copy it", false);
        }
    };
}
"""


@st.cache_resource
def _component() -> Any:
    return st.components.v2.component("copy_button", html=_HTML, css=_CSS, js=_SCRIPT)


def draw_copy_button(text: str, key: str, label: str = "") -> None:
    """With a label it looks like any other button, without one it is an icon."""
    _component()(data=ordered(key, {"text": text, "label": label}), key=key, width="content", height="content")
