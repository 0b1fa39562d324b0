"""The sidebar's conversations: a new one, the list with its search, and rename, pin, delete, undo, export, import.

The URL names the open conversation.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date

import streamlit as st

from apps.chat.database import StoreError
from apps.chat.export import ImportFailed, as_markdown, export_json, import_json
from apps.chat.messages import LONGEST_TITLE, Conversation, ListEntry
from apps.chat.pending_actions import NEW
from apps.chat.session import queue, rerun, session_pending
from apps.chat.settings_panel import recall
from apps.chat.sidebar_panel import change_conversation, focus_on, jump_to
from apps.chat.store import ChatStore
from apps.chat.turns import Chat
from apps.shared.labels import as_label, direction_of

PAGE_LENGTH = 30  # conversations in the list, and further ones for each "Show more"
LONGEST_FILE_NAME = 60  # characters
UNDO_SECONDS = 60.0  # after a deletion, "Undo" is offered for this long, or until a conversation is opened


@dataclass(slots=True)
class Imports:
    """The imports of this session: their number, since a new key empties the uploader, and what the last one did."""

    number: int = 0
    problem: str = ""
    done: str = ""


@dataclass(frozen=True, slots=True)
class Deletion:
    """What Undo restores, and until when it is offered (time.monotonic)."""

    conversations: Sequence[Conversation]
    until: float


def open_conversation(conversation_id: str, store: ChatStore, message_id: int | None = None) -> None:
    """Callback: opens this conversation with its stored settings, or NEW with the settings of the sidebar.

    message_id: a message to scroll to. Its branch is shown then.
    """
    session_pending().to_open = conversation_id
    st.session_state.pop("deletion", None)
    st.session_state.pop("renaming", None)
    conversation = store.get(conversation_id)
    if conversation:
        recall(conversation.settings)
        if message_id is not None:
            queue(_show_branch, conversation_id, message_id)
            st.session_state.found = message_id
            jump_to(message_id)
    change_conversation(st.session_state.opened, conversation_id)


def delete(conversations: Sequence[Conversation]) -> None:
    """Callback: deletes the conversations and stops their answers; undo is possible."""
    for conversation in conversations:
        queue(_delete_stored, conversation.id)
    if st.session_state.opened in [conversation.id for conversation in conversations]:
        session_pending().to_open = NEW
        change_conversation(st.session_state.opened, NEW)
    st.session_state.deletion = Deletion(conversations, time.monotonic() + UNDO_SECONDS)


def _undelete(conversations: Sequence[Conversation]) -> None:
    """Callback. Of a single conversation, opens it, too."""
    for conversation in conversations:
        queue(_undelete_stored, conversation.id)
    if len(conversations) == 1:
        session_pending().to_open = conversations[0].id
        change_conversation(st.session_state.opened, conversations[0].id)
        recall(conversations[0].settings)
    st.session_state.pop("deletion", None)


def _delete_stored(chat: Chat, conversation_id: str) -> None:
    chat.store.delete(conversation_id)


def _undelete_stored(chat: Chat, conversation_id: str) -> None:
    chat.store.undelete(conversation_id)


def offered_undo() -> Deletion | None:
    """The last deletion of this tab, while Undo is offered."""
    deletion: Deletion | None = st.session_state.get("deletion")
    return deletion if deletion and time.monotonic() < deletion.until else None


def draw_new_and_undo(store: ChatStore) -> None:
    st.button(
        "New chat",
        "new_chat",
        None,
        open_conversation,
        (NEW, store),
        icon=":material/add:",
        width="stretch",
        shortcut="Ctrl+Shift+O",
    )
    element = st.empty()  # always there: tabs that move are reset by Streamlit to their first one
    if deletion := offered_undo():
        deleted = deletion.conversations
        what = _label(deleted[0].title) if len(deleted) == 1 else f"{len(deleted)} conversations"
        with element.container(horizontal=True, vertical_alignment="center", gap="small", wrap=False):
            st.caption(f"Deleted: {what}", width="stretch")
            st.button("Undo", key="undo", icon=":material/undo:", on_click=_undelete, args=(deleted,))


def draw_conversations(store: ChatStore, opened: Conversation | None) -> None:
    """The list by day, which a search narrows while it is typed; the open conversation has a menu."""
    words = st.text_input(
        "Search conversations",
        key="search",
        placeholder="Search conversations",
        label_visibility="collapsed",
        icon=":material/search:",
        type="search",
        live=True,  # in no fragment: that would wait for a run that streams an answer
    )
    limit = st.session_state.setdefault("n_listed", PAGE_LENGTH)
    found = store.latest(limit + 1, words or "")
    listed = found[:limit]
    is_choosing: bool = st.session_state.get("is_choosing", False)
    if is_choosing:
        _draw_chosen(store, listed)
    if not found:
        st.caption("No conversation has all these words." if words else "Your conversations will be listed here.")
    with st.container(key="conversations", gap=None):
        group = ""
        for entry in listed:
            if group != (group := group_of(entry, date.today())):
                st.caption(group)
            if is_choosing:
                st.checkbox(_label(entry.title), key=_chosen_key(entry.id))
            else:
                _draw_entry(store, entry, opened)
    if len(found) > limit:
        st.button("Show more", key="show_more", type="tertiary", on_click=_list_more)
    if found and not is_choosing:
        icon = ":material/checklist:"
        st.button("Choose several", "choose", type="tertiary", icon=icon, on_click=_choose, args=([], True))
    _draw_files(store, has_some=bool(found))


def group_of(entry: ListEntry, today: date) -> str:
    """The caption above a conversation, by the day of its last change."""
    if entry.is_pinned:
        return "Pinned"
    day = date.fromtimestamp(entry.updated_at)
    age = (today - day).days
    if age <= 1:
        return "Yesterday" if age == 1 else "Today"
    return "Last 7 days" if age <= 7 else day.strftime("%B %Y")


def file_name(title: str) -> str:
    """Of an export: the title's words, joined with hyphens."""
    return "-".join(re.findall(r"\w+", title))[:LONGEST_FILE_NAME].strip("-") or "chat"


def _draw_entry(store: ChatStore, entry: ListEntry, opened: Conversation | None) -> None:
    is_open = opened is not None and entry.id == opened.id
    if is_open and st.session_state.get("renaming") == entry.id:
        _draw_title_field(entry)
        return
    key = f"{direction_of(entry.title)}_{entry.id}"
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", wrap=False, key=key):
        st.button(
            f"**{_label(entry.title)}**" if is_open else _label(entry.title),
            key=f"open_{entry.id}",
            type="tertiary",
            width="stretch",
            wrap=False,
            on_click=open_conversation,
            args=(entry.id, store, entry.message_id),
        )
        menu = st.empty()  # always there: that of the entry before would stay while an answer streams
        if is_open and opened:
            with menu.popover("More", type="tertiary", key=f"more_{entry.id}"):
                _draw_menu(store, opened)
    if entry.excerpt:
        with st.container(key=f"excerpt_{entry.id}"):
            st.caption(_label(entry.excerpt))


def _draw_title_field(entry: ListEntry) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", wrap=False):
        key = f"title_{entry.id}"
        st.text_input(
            "Title",
            entry.title,
            key=key,
            max_chars=LONGEST_TITLE,
            label_visibility="collapsed",
            on_change=_rename,
            args=(entry.id,),
        )
        st.button("Done", key="end_renaming", on_click=_start_renaming, args=(None,))


def _draw_menu(store: ChatStore, opened: Conversation) -> None:
    def entry(label: str, icon: str, do: Callable[..., None], *args: object) -> None:
        key = label.lower().replace(" ", "_")
        st.button(label, key, type="tertiary", icon=f":material/{icon}:", width="stretch", on_click=do, args=args)

    with st.container(key="conversation_menu", gap=None):
        entry("Rename", "edit", _start_renaming, opened.id)
        if opened.is_pinned:
            entry("Unpin", "keep_off", queue, _pin, opened.id, False)
        else:
            entry("Pin", "keep", queue, _pin, opened.id, True)
        name = file_name(opened.title)
        _download("Export as Markdown", f"{name}.md", lambda: as_markdown(store, opened.id))
        _download("Export as JSON", f"{name}.json", lambda: export_json(store, [opened.id]))
        entry("Delete", "delete", delete, [opened])


def _download(label: str, name: str, make: Callable[[], str]) -> None:
    """A button whose file is made when it is pressed."""
    icon = ":material/download:"
    st.download_button(label, make, name, icon=icon, type="tertiary", width="stretch", on_click="ignore")


def _draw_chosen(store: ChatStore, listed: Sequence[ListEntry]) -> None:
    """What can be done with the chosen conversations; chosen are only those in the list."""
    chosen = [entry.id for entry in listed if st.session_state.get(_chosen_key(entry.id))]
    all_ids = [entry.id for entry in listed]
    with st.container(horizontal=True, gap="xsmall"):
        label = f"Delete {len(chosen)}" if chosen else "Delete"
        icon = ":material/delete:"
        st.button(label, "delete_chosen", icon=icon, disabled=not chosen, on_click=_delete_chosen, args=(store, chosen))
        st.button("All", "choose_all", on_click=_choose, args=(all_ids, True))
        st.button("Cancel", "end_choosing", on_click=_choose, args=([], False))


def _choose(ids: Sequence[str], is_choosing: bool) -> None:
    """Callback: chooses these conversations, or ends choosing."""
    st.session_state.is_choosing = is_choosing
    for conversation_id in ids:
        st.session_state[_chosen_key(conversation_id)] = True


def _delete_chosen(store: ChatStore, ids: Sequence[str]) -> None:
    """Callback."""
    delete([conversation for conversation in map(store.get, ids) if conversation])
    _choose([], False)


def _chosen_key(conversation_id: str) -> str:
    return f"chosen_{conversation_id}"


def _draw_files(store: ChatStore, has_some: bool) -> None:
    imports: Imports = st.session_state.setdefault("imports", Imports())
    with st.expander("Import and export", type="compact"):
        about = "JSON made by Export here, ChatGPT's conversations.json, or Open WebUI's export"
        file = st.file_uploader("Import", type="json", key=f"import_{imports.number}", help=about)
        if imports.problem:
            st.error(as_label(imports.problem))
        elif imports.done:
            st.caption(imports.done)
        if has_some:
            _download("Export all as JSON", "chats.json", lambda: export_json(store, store.all_ids()))
    if file is None:
        return
    imports.number += 1  # first, and before any Streamlit call: a click that aborts this run must not import twice
    try:
        ids = import_json(store, file.getvalue())
        session_pending().to_open = ids[-1] if ids else None
        imports.problem, imports.done = "", f"Imported: {len(ids):,} conversation{'s' * (len(ids) != 1)}."
    except (ImportFailed, StoreError) as error:
        imports.problem = str(error)
    rerun()


def _start_renaming(conversation_id: str | None) -> None:
    """Callback. None ends it."""
    st.session_state.renaming = conversation_id
    if conversation_id:
        focus_on(f"title_{conversation_id}")


def _rename(conversation_id: str) -> None:
    """Callback, when the field's text has changed."""
    title = st.session_state[f"title_{conversation_id}"]
    if title.strip():
        session_pending().add(lambda chat: chat.store.rename(conversation_id, title))
    _start_renaming(None)


def _show_branch(chat: Chat, conversation_id: str, message_id: int) -> None:
    """Shows the branch with this message, unless the shown one has it."""
    if message_id not in [message.id for message in chat.store.tree(conversation_id).path()]:
        chat.show(message_id)


def _pin(chat: Chat, conversation_id: str, is_pinned: bool) -> None:
    chat.store.pin(conversation_id, is_pinned)


def _list_more() -> None:
    """Callback."""
    st.session_state.n_listed += PAGE_LENGTH


def _label(title: str) -> str:
    return as_label(title) or "Untitled"
