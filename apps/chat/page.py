"""The chat's page: conversations with the model that TorchServe serves, stored on disk and shown while generated.

client_app.py serves it. Every tab of every copy of that app sees the same conversations (set LLAMA2_CHAT_STORE to store
them in another file). Threads generate the answers, and a page only shows them, so leaving or reloading it cuts none.
The server's state is queried in every run, never stored.
"""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import streamlit as st

from apps.chat.address import URL_PARAMETER, choose_conversation, put_into_url
from apps.chat.answer_panel import AnswerView, action_button, draw_answer, stream_answers
from apps.chat.answering import Answers
from apps.chat.attachments import FILE_TYPES, LARGEST_FILE_MB, FileRefused, with_files
from apps.chat.context import gauge, left_out
from apps.chat.conversations_panel import (
    delete,
    draw_conversations,
    draw_new_and_undo,
    offered_undo,
)
from apps.chat.database import StoreError
from apps.chat.message_panel import draw_style
from apps.chat.messages import Conversation, Message, MessageTree
from apps.chat.origin import is_from, origin_label
from apps.chat.page_end_panel import draw_page_end, draw_row_below_composer, first_unfinished
from apps.chat.parallel_panel import draw_group, is_group
from apps.chat.pending_actions import NEW, QuestionNotStored
from apps.chat.question_panel import NOT_SENT, draw_question
from apps.chat.server_panel import chosen_servers, draw_models, draw_server_choice, server_to_store
from apps.chat.server_state_panel import draw_server_state, states_of
from apps.chat.session import rerun, session_pending
from apps.chat.settings_panel import current_settings, draw_settings
from apps.chat.shortcuts_panel import draw_shortcuts
from apps.chat.sidebar_panel import draw_script
from apps.chat.store import ChatStore
from apps.chat.turns import Chat, QuestionTooLong
from apps.shared.app_links import running_address
from apps.shared.garbage_collector import freeze_imports
from apps.shared.labels import as_label
from apps.shared.page_style import draw_page_style
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.inference import InferenceClient

TITLE = "Llama 2 Chatbot"
GREETING = "How may I assist you today?"
SUGGESTIONS = (
    "What is the closest star to Earth?",
    "Explain how a llama differs from an alpaca",
    "Write a Python function that sorts words",
    "Suggest three names for a small café",
)
PAGE_POLL_SECONDS = 2.0  # between two queries of the server's state and of changes by other tabs
ELEMENTS_OF_MESSAGE = 2  # in draw_conversation(): the bubble and the note below it
NEWEST = 40  # messages that are drawn at first
NEWEST_STEP = 20


@st.cache_resource
def connect(config: ServerConfig) -> InferenceClient:
    """One client for all sessions: it is safe between threads, and has the key and the model's facts."""
    return InferenceClient(config)


@st.cache_resource
def open_store(path: Path) -> tuple[ChatStore, Answers]:
    """One of each for all sessions: an answer belongs to no page."""
    store = ChatStore(path)
    return store, Answers(store)


def queue_question() -> None:
    """Callback."""
    files = [(file.name, file.getvalue()) for file in st.session_state.question.files]
    ask(st.session_state.question.text, files)


def queue_suggestion() -> None:
    """Callback."""
    suggestion, st.session_state.suggestion = st.session_state.suggestion, None
    if suggestion:
        ask(suggestion, [])


def ask(typed: str, files: Sequence[tuple[str, bytes]]) -> None:
    """Queues a question. If a file cannot be attached, the page says so, and the text is back in the chat input."""
    st.session_state.not_sent = None
    try:
        question = with_files(typed, files)
    except FileRefused as error:
        refuse(typed, str(error))
        return
    st.session_state.typed = typed
    st.session_state.opened = pending.add_question(question, st.session_state.opened, must_fit=bool(files))
    st.session_state.n_asked = st.session_state.get("n_asked", 0) + 1


def refuse(typed: str, problem: str) -> None:
    """A question that was not sent: its text goes back into the chat input, and its problem stands above it."""
    st.session_state.question = typed
    st.session_state.not_sent = (st.session_state.opened, problem)


def draw_sidebar(conversation: Conversation | None) -> None:
    """All but its head. Always drawn: Streamlit forgets what is typed into a field that a run has not drawn."""
    with st.sidebar:
        draw_new_and_undo(store)
        conversations_tab, settings_tab = st.tabs(["Conversations", "Settings"], key="sidebar", bind="query-params")
        with conversations_tab:
            draw_conversations(store, conversation)
        with settings_tab:
            draw_settings(store, clear_chat_history, current.problem)
            draw_server_choice()
        draw_shortcuts()
        if dashboard := running_address(config.home, "server"):
            st.link_button("Open the server app", dashboard, icon=":material/dns:", type="tertiary")


def run_pending(chat: Chat) -> None:
    """Carries out the queued actions; if the store fails, the page is its reason."""
    try:
        pending.run_pending(chat)
    except StoreError as error:
        st.error(str(error), icon=":material/error:")
        if isinstance(error, QuestionNotStored):
            st.code(error.question, language=None, wrap_lines=True)
        draw_sidebar(None)
        st.stop()
    except QuestionTooLong as error:
        if store.get(st.session_state.opened) is None:  # it was to begin a conversation
            pending.to_open = st.session_state.opened = NEW
            put_into_url(NEW)
        refuse(st.session_state.typed, str(error))
        run_pending(chat)
    if pending.to_open and pending.to_open != st.session_state.opened:
        put_into_url(pending.to_open)
        st.session_state.opened = pending.to_open


def clear_chat_history() -> None:
    """Callback: deletes the open conversation, which undo restores."""
    conversation = store.get(st.session_state.opened)
    if conversation:
        delete([conversation])


def show_found(tree: MessageTree) -> None:
    """Draws as many messages as it takes to reach the one that a search has found."""
    found = st.session_state.pop("found", None)
    ids = [message.id for message in tree.path()]
    if found in ids:
        st.session_state.shown = (st.session_state.opened, max(NEWEST, len(ids) - ids.index(found)))


def draw_conversation(tree: MessageTree) -> list[AnswerView]:
    """Draws the newest messages of the shown branch; returns the views of the unfinished answers."""
    path = tree.path()
    start = first_shown(len(path))
    earlier, hidden_note = st.empty(), st.empty()
    if start:
        with earlier.container(horizontal=True, horizontal_alignment="center"):
            label = f"Show earlier ({start:,} messages)"
            st.button(label, key="show_earlier", type="tertiary", icon=":material/expand_less:", on_click=show_earlier)
    places = [(st.chat_message(message.role), st.empty()) for message in path[start:]]
    views: list[AnswerView] = []
    # The newest message first: a person who has just sent a question waits for it.
    for index, message in reversed(list(enumerate(path))):
        following = path[index + 1] if index + 1 < len(path) else None
        bubble, note = places[index - start] if index >= start else (None, hidden_note)
        if bubble is not None:
            with bubble:
                if message.role == "user":
                    draw_question(message, tree)
                else:
                    views += draw_answers(message, tree, is_last=following is None)
        if message.is_left_out and following and not following.is_left_out:
            with note.container(horizontal=True, vertical_alignment="center", horizontal_alignment="center"):
                st.caption(f"The {left_out(path)} messages above are not sent.", width="content")
                action_button(f"send_all_{message.id}", "history", Chat.send_all, message.id, about="Send them again")
    # Overwrites the elements of messages that are no longer shown; Streamlit would keep them until this run ends.
    n_drawn = len(path) - start
    for _ in range(ELEMENTS_OF_MESSAGE * (st.session_state.get("n_drawn", 0) - n_drawn)):
        st.empty()
    st.session_state.n_drawn = n_drawn
    return views


def first_shown(n_messages: int) -> int:
    """The number of the first message to draw. It moves in steps: a page whose messages all move is drawn anew."""
    opened: str | None
    n_shown: int
    opened, n_shown = st.session_state.get("shown", (None, 0))
    if opened != st.session_state.opened:
        n_shown = NEWEST
        st.session_state.shown = (st.session_state.opened, n_shown)
    return max(0, n_messages - n_shown) // NEWEST_STEP * NEWEST_STEP


def show_earlier() -> None:
    """Callback: twice as many messages."""
    opened, n_shown = st.session_state.shown
    st.session_state.shown = (opened, 2 * n_shown)


def draw_answers(message: Message, tree: MessageTree, is_last: bool) -> list[AnswerView]:
    """The answer, or all simultaneous ones side by side if the conversation has not continued with one of them."""
    prompt = tree.messages[message.parent_id or 0].text if message.is_raw else ""
    group = tree.group(message)
    if is_last and len(group) > 1:
        views, st.session_state.draw_total = draw_group(group, prompt, tree, server)
        st.empty()
        return views
    view = draw_answer(message, prompt, tree, is_last)
    note = st.empty()
    origin = "" if is_from(message.figures, server) else f"From {as_label(origin_label(message.figures))}."
    if about := f"{origin} {NOT_SENT if message.is_left_out else ''}".strip():
        note.caption(about)
    return [view] if view else []


def draw_gauge(streamed: Sequence[Message]) -> None:
    """With the text that these answers have by now."""
    latest = {message.id: message for message in streamed}
    path = [latest.get(message.id, message) for message in tree.path()]
    gauge_view.draw(gauge(path, settings.system_prompt, window, settings.is_raw))


def redraw_totals(streamed: Sequence[Message]) -> None:
    """What changes with each redraw of the answers beside them: their total and the gauge."""
    if st.session_state.draw_total is not None:
        st.session_state.draw_total(streamed)
    draw_gauge(streamed)


@st.fragment(run_every=PAGE_POLL_SECONDS, key="redraw_when_outdated")
def redraw_when_outdated(shown: tuple[object, ...], drawn_at: float) -> None:
    """Redraws the page when the server's state, its model or the conversations differ from what it shows."""
    freeze_imports("chat")
    if time.monotonic() - drawn_at < PAGE_POLL_SECONDS / 2:
        return  # the page itself is being drawn; the timer has not started this run
    now: tuple[object, ...] = ()
    with suppress(StoreError):  # the page's next run says what is wrong with the file
        now = (server.state(), server.context_window, server.has_chat_template, store.revision(), offered_undo())
    if now != shown:
        rerun()


# The page

st.set_page_config(page_title=TITLE, page_icon="🦙")  # the layout follows, once what to draw is known
try:
    config = ServerConfig.load()
    store, answers = open_store(Path(os.environ.get("LLAMA2_CHAT_STORE") or config.home / "conversations.sqlite3"))
    pending = session_pending()
    choose_conversation(store)

    with st.sidebar:
        st.title(f"🦙💬 {TITLE}", anchor=False)
        state_container = st.container()
        draw_script()  # early: until a draft is put aside, a new chat has the text of the one before
    current, choice = current_settings(), chosen_servers(connect(config))
    server = choice.server
    # With a problem nothing is sent, least of all to another server.
    settings = replace(current, stored=current.stored | server_to_store(), problem=current.problem or choice.problem)
    # First of all: a question leaves before anything else is drawn.
    run_pending(Chat(store, answers, server, settings, choice.second))
    state = server.state()
    sentence, hint = states_of(server)[state]

    page_end_container = st.bottom.container()
    not_sent_in, not_sent = st.session_state.get("not_sent") or (None, "")
    if not_sent_in == st.session_state.opened:  # until the next question
        st.bottom.error(as_label(not_sent), icon=":material/error:")
    st.bottom.chat_input(
        hint,
        key="question",
        accept_file="multiple",
        file_type=FILE_TYPES,
        max_upload_size=LARGEST_FILE_MB,
        on_submit=queue_question,
    )
    gauge_container = st.bottom.container()
    window, has_template, revision = server.context_window, server.has_chat_template, store.revision()
    conversation = store.get(st.session_state.opened)
    st.set_page_config(page_title=conversation.title if conversation and conversation.title else TITLE)

    draw_sidebar(conversation)
    tree = store.tree(conversation.id).map(answers.current) if conversation else MessageTree([], None)
    show_found(tree)
    with page_end_container:
        draw_page_end(st.session_state.opened, bool(first_unfinished(tree)))
    st.set_page_config(layout="wide" if is_group(tree) else "centered")
    with gauge_container:
        gauge_view = draw_row_below_composer(tree)
        draw_gauge([])
        if not has_template:
            st.caption("This model has no chat template, so it gets what you write as `Question: … Answer:`.")
    draw_page_style()
    draw_style()
    with st.chat_message("assistant"):
        st.write(GREETING)
        suggestions = st.empty()  # always there: elements that move are drawn anew
    if conversation is None:
        suggestions.pills(
            "Suggestions", SUGGESTIONS, key="suggestion", label_visibility="collapsed", on_change=queue_suggestion
        )
    if conversation is None and URL_PARAMETER in st.query_params:
        st.info("This conversation is not here: it was deleted, or is in another file. A question begins a new one.")
    st.session_state.draw_total = None
    views = draw_conversation(tree)

    with state_container:
        draw_models(choice, state)
        draw_server_state(sentence, state)
        if choice.second and (second_state := choice.second.state()) != "ready":
            st.warning(f"The second server: {states_of(choice.second)[second_state][0]}", icon=":material/warning:")
    with st.sidebar:
        redraw_when_outdated((state, window, has_template, revision, offered_undo()), time.monotonic())
    if views:
        stream_answers(answers, views, lambda: store.revision() != revision, redraw_totals)
        rerun()
except (TorchServeError, StoreError) as error:  # a file can also be damaged while the page is open
    st.error(str(error), icon=":material/error:")
