"""The keyboard shortcuts: their list, and those that Streamlit's buttons cannot have.

A button's `shortcut` (New chat, Stop) takes no punctuation, and a text field has none.
"""

from typing import Any

import streamlit as st

SHORTCUTS = {
    "Enter": "send; Shift+Enter begins a new line",
    "Esc": "stop the answer",
    "Ctrl+Shift+O": "new chat (Mac: Cmd+Shift+O)",
    "Ctrl+K": "search the conversations (Mac: Cmd+K)",
    "?": "this list, when nothing is being typed",
}
_KEYS = """
const find = (selector) => document.querySelector(selector);

function openSearch() {
    find("[data-testid=stExpandSidebarButton]")?.click();
    const panel = find(".st-key-search")?.closest("[role=tabpanel]");
    if (panel) find(`[role=tab][aria-controls="${panel.id}"][aria-selected=false]`)?.click();
    requestAnimationFrame(() => find(".st-key-search input")?.focus()); // a hidden field cannot get the focus
}

function isTyping() {
    return document.activeElement?.matches("input, textarea, [contenteditable=true]");
}

function handle(event) {
    const isCommand = (event.ctrlKey || event.metaKey) && !event.altKey;
    const key = event.key.toLowerCase();
    if (isCommand && !event.shiftKey && key === "k") {
        event.preventDefault(); // the browser's own search
        openSearch();
    } else if (isCommand && event.shiftKey && key === "o") {
        find("[data-testid=stChatInputTextArea]")?.focus(); // page_end.js takes it from no other field
    } else if (event.key === "?" && !isTyping()) {
        find(".st-key-shortcuts button")?.click();
    }
}

export default function () {
    if (!globalThis.chatShortcuts) document.addEventListener("keydown", handle);
    globalThis.chatShortcuts = true;
}
"""


@st.cache_resource
def _keys() -> Any:
    return st.components.v2.component("chat_shortcuts", js=_KEYS, isolate_styles=False)


@st.dialog("Keyboard shortcuts")
def _show() -> None:
    st.markdown("\n".join(f"- `{keys}` {what}" for keys, what in SHORTCUTS.items()))


def draw_shortcuts() -> None:
    """A button that shows the list."""
    if st.button("Shortcuts", key="shortcuts", type="tertiary", icon=":material/keyboard:"):
        _show()
    _keys()(key="chat_shortcuts", height="content")
