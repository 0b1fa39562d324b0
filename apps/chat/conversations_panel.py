"""The sidebar's conversations: a new one, the list with its search, and rename, delete, undo, export, import.

The URL names the open conversation.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import streamlit as st

from apps.chat.database import StoreError
from apps.chat.export import ImportFailed, as_markdown, export_json, import_json
from apps.chat.messages import Conversation, ListEntry
from apps.chat.pending_actions import NEW
from apps.chat.session import session_pending
from apps.chat.settings_panel import recall
from apps.chat.store import ChatStore

URL_PARAMETER = "conversation"
PAGE_LENGTH = 20  # conversations in the list, and further ones for each "Show more"
SHOWN_LENGTH = 30  # characters of a title: one line of the sidebar
DAY = 24 * 3600.0


@dataclass(slots=True)
class Imports:
    """The imports of this session: their number, since a new key empties the uploader, and the last one's problem."""

    number: int = 0
    problem: str = ""


def open_conversation(conversation_id: str, store: ChatStore) -> None:
    """Callback: opens this conversation with its stored settings, or NEW with the settings of the sidebar."""
    session_pending().to_open = conversation_id
    conversation = store.get(conversation_id)
    if conversation:
        recall(conversation.settings)


def delete(conversation: Conversation) -> None:
    """Callback: deletes the conversation and stops its answers; undo is possible."""
    session_pending().add(lambda chat: chat.store.delete(conversation.id))
    session_pending().to_open = NEW
    st.session_state.deleted = conversation


def _undelete(conversation: Conversation) -> None:
    """Callback."""
    session_pending().add(lambda chat: chat.store.undelete(conversation.id))
    session_pending().to_open = conversation.id
    recall(conversation.settings)
    st.session_state.pop("deleted", None)


def draw_new_and_undo(store: ChatStore) -> None:
    st.button("New chat", key="new_chat", icon=":material/add:", on_click=open_conversation, args=(NEW, store))
    element = st.empty()  # always there: tabs that move are reset by Streamlit to their first one
    deleted: Conversation | None = st.session_state.get("deleted")
    if deleted:
        with element.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.caption(f"Deleted: {_label(deleted.title)}", width="stretch")
            st.button("Undo", key="undo", icon=":material/undo:", on_click=_undelete, args=(deleted,))


def draw_conversations(store: ChatStore, opened: Conversation | None) -> None:
    """The actions on the open conversation, then the list, which a search narrows."""
    element = st.empty()  # always there, like the one above
    if opened:
        with element.container():
            _draw_actions(store, opened)
    words = st.text_input(
        "Search",
        key="search",
        placeholder="Search conversations",
        label_visibility="collapsed",
        icon=":material/search:",
    )
    limit = st.session_state.setdefault("n_listed", PAGE_LENGTH)
    found = store.latest(limit + 1, words or "")
    if words and not found:
        st.caption("No conversation has all these words.")
    with st.container(gap=None):
        for entry in found[:limit]:
            _draw_entry(store, entry, is_open=opened is not None and entry.id == opened.id)
    if len(found) > limit:
        st.button("Show more", key="show_more", type="tertiary", on_click=_list_more)
    _draw_import(store)


def _draw_actions(store: ChatStore, opened: Conversation) -> None:
    with st.container(horizontal=True, gap="xsmall"):
        with st.popover("", icon=":material/edit:", help="Rename this conversation"):
            st.text_input("Title", opened.title, key=f"title_{opened.id}", on_change=_rename, args=(opened.id,))
        with st.popover("", icon=":material/download:", help="Export"):
            name = "".join(letter if letter.isalnum() else "-" for letter in opened.title).strip("-") or "chat"
            _download("This one as Markdown", f"{name}.md", lambda: as_markdown(store, opened.id))
            _download("This one as JSON", f"{name}.json", lambda: export_json(store, [opened.id]))
            _download("All as JSON", "chats.json", lambda: export_json(store, store.all_ids()))
        about = "Delete this conversation"
        st.button("", key="delete", icon=":material/delete:", help=about, on_click=delete, args=(opened,))


def _download(label: str, file_name: str, make: Callable[[], str]) -> None:
    """A button whose file is made when it is pressed."""
    st.download_button(label, make, file_name, key=f"export {label}", on_click="ignore")


def _draw_entry(store: ChatStore, entry: ListEntry, is_open: bool) -> None:
    title = entry.title if len(entry.title) <= SHOWN_LENGTH else f"{entry.title[: SHOWN_LENGTH - 1].rstrip()}…"
    about = [_age(entry.updated_at), *(_label(text) for text in (entry.title, entry.excerpt) if text != title and text)]
    st.button(
        f"**{_label(title)}**" if is_open else _label(title),
        key=f"open_{entry.id}",
        type="tertiary",
        help=" · ".join(about),
        on_click=open_conversation,
        args=(entry.id, store),
    )


def _draw_import(store: ChatStore) -> None:
    imports: Imports = st.session_state.setdefault("imports", Imports())
    with st.expander("Import"):
        file = st.file_uploader("JSON made by Export", type="json", key=f"import_{imports.number}")
        if imports.problem:
            st.error(imports.problem)
    if file is None:
        return
    imports.number += 1  # first, and before any Streamlit call: a click that aborts this run must not import twice
    try:
        session_pending().to_open = next(iter(import_json(store, file.getvalue())), None)
        imports.problem = ""
    except (ImportFailed, StoreError) as error:
        imports.problem = str(error)
    st.rerun()


def _rename(conversation_id: str) -> None:
    """Callback."""
    title = st.session_state[f"title_{conversation_id}"]
    if title.strip():
        session_pending().add(lambda chat: chat.store.rename(conversation_id, title))


def _list_more() -> None:
    """Callback."""
    st.session_state.n_listed += PAGE_LENGTH


def _label(text: str) -> str:
    """A title as a button's label, with every character of Markdown escaped."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]()#+-.!$:<>~|" else letter for letter in text) or "Untitled"


def _age(updated_at: float) -> str:
    then = time.localtime(updated_at)
    return time.strftime("%H:%M" if time.time() - updated_at < DAY else "%Y-%m-%d", then)
