"""The chat: conversations with the model that TorchServe serves, stored on disk and shown while answers are generated.

Run it with `streamlit run client_app.py`, also several times at once: every tab of every copy sees the same
conversations (set LLAMA2_CHAT_STORE to store them in another file). Threads generate the answers, and a page only shows
them, so leaving or reloading it cuts none. The server's state is queried in every run, never stored.
"""

import os
import time
from itertools import zip_longest
from pathlib import Path

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from apps.chat.answer_panel import AnswerView, action_button, draw_answer, stream_answers
from apps.chat.answering import Answers
from apps.chat.context import Gauge, gauge, left_out
from apps.chat.conversations_panel import URL_PARAMETER, delete, draw_conversations, draw_new_and_undo
from apps.chat.database import StoreError
from apps.chat.messages import Message, MessageTree
from apps.chat.openai_client import OpenAIClient
from apps.chat.parallel_panel import draw_group
from apps.chat.pending_actions import NEW, QuestionNotStored
from apps.chat.question_panel import NOT_SENT, draw_question
from apps.chat.session import session_pending
from apps.chat.settings_panel import draw_server_choice, draw_settings, recall
from apps.chat.store import ChatStore
from apps.chat.turns import Chat, ChatServer
from apps.shared.garbage_collector import freeze_imports
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.inference import InferenceClient

GREETING = "How may I assist you today?"
PAGE_POLL_SECONDS = 2.0  # between two queries of the server's state and of changes by other tabs
ELEMENTS_OF_MESSAGE = 2  # in draw_conversation(): the bubble and the note below it
NEARLY_FULL = 0.8  # of the context window

STATES = {  # the sentence of the sidebar, and the hint in the chat input
    "down": ("TorchServe is not running. Press Start Server in the server app.", "TorchServe is not running"),
    "starting": ("TorchServe is starting. This page goes on by itself.", "TorchServe is starting"),
    "unhealthy": (
        "TorchServe runs, but it does not answer or refuses this app's key. Stop and start it in the server app.",
        "TorchServe does not answer",
    ),
    "no model": ("No model is registered. Press Register Llama2 in the server app.", "No model is registered"),
    "loading": ("The model is loading. This page goes on by itself.", "The model is loading"),
    "ready": ("Proceed to entering your prompt message!", "Your message"),
}
OTHER_STATES = STATES | {  # of a server that is not TorchServe
    "down": ("No server answers at this base URL. Check it under Server, or start that server.", "No server answers"),
    "refused": ("The server refuses the key. Type the right one under Server.", "The server refuses the key"),
    "not openai": (
        "The server at this base URL does not list models as OpenAI's API does. Check it under Server.",
        "The server does not speak OpenAI's API",
    ),
}


@st.cache_resource
def connect(config: ServerConfig) -> InferenceClient:
    """One client for all sessions: it is safe between threads, and has the key and the model's facts."""
    return InferenceClient(config)


@st.cache_resource(max_entries=8)
def connect_other(base_url: str, key: str) -> OpenAIClient:
    return OpenAIClient(base_url, key)


@st.cache_resource
def open_store(path: Path) -> tuple[ChatStore, Answers]:
    """One of each for all sessions: an answer belongs to no page."""
    store = ChatStore(path)
    return store, Answers(store)


def choose_conversation() -> None:
    """Opens the conversation to open, or else the one in the URL; with its settings if it is new to this tab."""
    in_url = st.query_params.get(URL_PARAMETER, NEW)
    if has_gone_back():
        pending.to_open = in_url  # even if a pending question belongs to another conversation
    elif pending.to_open == in_url:
        pending.to_open = None
    wanted = in_url if pending.to_open is None else pending.to_open
    conversation = store.get(wanted)
    if conversation and st.session_state.get("opened") != wanted:
        in_address = st.query_params.to_dict()
        recall({name: value for name, value in conversation.settings.items() if name not in in_address})
    if wanted != in_url:
        put_into_url(wanted)
    st.session_state.opened = wanted


def has_gone_back() -> bool:
    """Whether the browser's back or forward button started this run: Streamlit 1.67 has no public name for that."""
    context = get_script_run_ctx()
    return context is not None and context.is_history_navigation


def put_into_url(conversation_id: str) -> None:
    if conversation_id == NEW:
        st.query_params.pop(URL_PARAMETER, None)
    else:
        st.query_params[URL_PARAMETER] = conversation_id


def queue_question() -> None:
    """Callback."""
    question, opened = st.session_state.question, st.session_state.opened
    st.session_state.opened = pending.add_question(question, opened)


def run_pending(chat: Chat) -> None:
    """Carries out the queued actions; if the store fails, the page is its reason."""
    try:
        pending.run_pending(chat)
    except StoreError as error:
        st.error(str(error), icon=":material/error:")
        if isinstance(error, QuestionNotStored):
            st.code(error.question, language=None, wrap_lines=True)
        st.stop()
    if pending.to_open and pending.to_open != st.session_state.opened:
        put_into_url(pending.to_open)
        st.session_state.opened = pending.to_open


def clear_chat_history() -> None:
    """Callback: deletes the open conversation, which undo restores."""
    conversation = store.get(st.session_state.opened)
    if conversation:
        delete(conversation)


def draw_conversation(tree: MessageTree) -> list[AnswerView]:
    """Draws every message of the shown branch; returns the views of the unfinished answers."""
    path = tree.path()
    views: list[AnswerView] = []
    for message, following in zip_longest(path, path[1:]):
        with st.chat_message(message.role):
            if message.role == "user":
                draw_question(message, tree)
            else:
                views += draw_answers(message, tree, is_last=following is None)
        note = st.empty()
        if message.is_left_out and following and not following.is_left_out:
            with note.container(horizontal=True, vertical_alignment="center", horizontal_alignment="center"):
                st.caption(f"The {left_out(path)} messages above are not sent.", width="content")
                action_button(f"send_all_{message.id}", "history", Chat.send_all, message.id, about="Send them again")
    # Overwrites the elements of messages that are no longer shown; Streamlit would keep them until this run ends.
    for _ in range(ELEMENTS_OF_MESSAGE * (st.session_state.get("n_drawn", 0) - len(path))):
        st.empty()
    st.session_state.n_drawn = len(path)
    return views


def draw_answers(message: Message, tree: MessageTree, is_last: bool) -> list[AnswerView]:
    """The answer, or all simultaneous ones side by side if the conversation has not continued with one of them."""
    prompt = tree.messages[message.parent_id or 0].text if message.is_raw else ""
    group = tree.group(message)
    if is_last and len(group) > 1:
        st.set_page_config(layout="wide")
        views, st.session_state.draw_total = draw_group(group, prompt, tree)
        st.empty()
        return views
    view = draw_answer(message, prompt, tree, is_last)
    st.empty().caption(NOT_SENT if message.is_left_out else "")
    return [view] if view else []


def draw_gauge(now: Gauge) -> None:
    about = "about " if now.is_estimate else ""
    if now.window is None:
        st.caption(f"Context: {about}{now.used:,} tokens used; the server has not said how many there are.")
        return
    sentence = f"Context: {about}{now.used:,} of {now.window:,} tokens used, {now.available:,} available"
    if now.share >= NEARLY_FULL:
        sentence += ". When a question does not fit, you can leave out the oldest turns or start anew"
    st.progress(now.share, text=f":small[{sentence}.]")


def draw_server_state(sentence: str, state: str) -> None:
    """The server's state as a sentence with the next step."""
    if state == "ready":
        st.success(sentence, icon="👉")
    elif state in ("starting", "loading"):
        st.info(sentence, icon=":material/hourglass_top:")
    else:
        st.warning(sentence, icon=":material/power_settings_new:")


@st.fragment(run_every=PAGE_POLL_SECONDS, key="redraw_when_outdated")
def redraw_when_outdated(shown: tuple[object, ...], drawn_at: float) -> None:
    """Redraws the page when the server's state, its model or the conversations differ from what it shows."""
    freeze_imports("chat")
    if time.monotonic() - drawn_at < PAGE_POLL_SECONDS / 2:
        return  # the page itself is being drawn; the timer has not started this run
    if (server.state(), server.context_window, server.has_chat_template, store.revision()) != shown:
        st.rerun()


# The page

st.set_page_config(page_title="Llama 2 Chatbot", page_icon="🦙", layout="centered")
try:
    config = ServerConfig.load()
    store, answers = open_store(Path(os.environ.get("LLAMA2_CHAT_STORE") or config.home / "conversations.sqlite3"))
except (TorchServeError, StoreError) as error:
    st.error(str(error), icon=":material/error:")
    st.stop()
pending = session_pending()
choose_conversation()

with st.sidebar:
    st.title("🦙💬 Llama 2 Chatbot", anchor=False)
    state_container = st.container()
    draw_new_and_undo(store)
    settings_tab, conversations_tab = st.tabs(["Settings", "Conversations"])
    with settings_tab:
        settings = draw_settings()
        base_url, api_key = draw_server_choice()
        st.button("Clear Chat History", key="clear_chat_history", on_click=clear_chat_history)

server: ChatServer = connect_other(base_url, api_key) if base_url else connect(config)
run_pending(Chat(store, answers, server, settings))  # before the server's state is queried: questions leave at once
state = server.state()
sentence, hint = (OTHER_STATES if base_url else STATES)[state]
with state_container:
    draw_server_state(sentence, state)

st.chat_input(hint, key="question", on_submit=queue_question)  # in the main body: only there the page scrolls with it
gauge_container = st.bottom.container()
window, has_template, revision = server.context_window, server.has_chat_template, store.revision()
conversation = store.get(st.session_state.opened)
with conversations_tab:
    draw_conversations(store, conversation)

tree = store.tree(conversation.id).map(answers.current) if conversation else MessageTree([], None)
with gauge_container:
    draw_gauge(gauge(tree.path(), settings.system_prompt, window))
    if not has_template:
        st.caption("This model has no chat template, so it gets what you write as `Question: … Answer:`.")
st.chat_message("assistant").write(GREETING)
if conversation is None and URL_PARAMETER in st.query_params:
    st.info("This conversation is not here: it was deleted, or is in another file. A question begins a new one.")
st.session_state.draw_total = None
views = draw_conversation(tree)
with st.sidebar:
    redraw_when_outdated((state, window, has_template, revision), time.monotonic())
if views:
    stream_answers(answers, views, lambda: store.revision() != revision, st.session_state.draw_total)
    st.rerun()
