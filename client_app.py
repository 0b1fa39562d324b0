"""The chat: conversations with the model that TorchServe serves, kept on disk and followed while they are written.

Run it with `streamlit run client_app.py`, as often as you like: every tab of every copy sees the same conversations
(set LLAMA2_CHAT_STORE to keep them in another file). Answers are written by threads of their own (chat/answering.py); a
page only looks, so leaving or reloading it cuts nothing. The server's state is asked each time, never remembered.
"""

from __future__ import annotations

import gc
import os
import time
from itertools import zip_longest
from pathlib import Path

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from apps.chat.answer_panel import Place, draw_answer, draw_branches, follow, icon_button, session_wishes, wish
from apps.chat.answering import Answers
from apps.chat.context import Gauge, gauge, left_out
from apps.chat.conversations_panel import PARAMETER, delete, draw_conversations, draw_new_and_undo
from apps.chat.messages import Message, Tree
from apps.chat.openai_client import OpenAIClient
from apps.chat.parallel_panel import draw_group
from apps.chat.pending_actions import NEW, Granter
from apps.chat.settings_panel import draw_server_choice, draw_settings, recall
from apps.chat.store import ChatStore, StoreError
from apps.chat.turns import Chat, ChatServer
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.inference import InferenceClient

NOT_SENT = "Not sent to the model any more."
GREETING = "How may I assist you today?"
STATE_SECONDS = 2.0  # between two looks at the server and at what other tabs have done
NEARLY_FULL = 0.8  # of the context window

STATES = {  # what the sidebar says, and what the chat input says
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
}


@st.cache_resource
def connect(config: ServerConfig) -> InferenceClient:
    """One client for all sessions: it is safe between threads, and holds the key and what it asks a worker."""
    return InferenceClient(config)


@st.cache_resource(max_entries=8)
def connect_other(base_url: str, key: str) -> OpenAIClient:
    return OpenAIClient(base_url, key)


@st.cache_resource
def open_store(path: Path) -> tuple[ChatStore, Answers]:
    """One of each for all sessions: an answer belongs to no page."""
    store = ChatStore(path)
    return store, Answers(store)


@st.cache_resource
def spare_the_garbage_collector() -> None:
    """Takes what is imported by now out of garbage collection: Streamlit 1.67 collects all after every run."""
    gc.collect()
    gc.freeze()


def choose_conversation() -> None:
    """Opens the one to show, or else the one in the URL, with its own settings when it is new to this tab."""
    in_url = st.query_params.get(PARAMETER, NEW)
    if has_gone_back():
        wishes.to_show = in_url  # whatever was asked before that, and is still to be granted
    elif wishes.to_show == in_url:
        wishes.to_show = None
    wanted = in_url if wishes.to_show is None else wishes.to_show
    conversation = store.get(wanted)
    if conversation and st.session_state.get("opened") != wanted:
        in_address = st.query_params.to_dict()
        recall({name: value for name, value in conversation.settings.items() if name not in in_address})
    if wanted != in_url:
        put_into_url(wanted)
    st.session_state.opened = wanted


def has_gone_back() -> bool:
    """Whether the browser's own back or forward began this run: Streamlit 1.67 has no public name for that."""
    context = get_script_run_ctx()
    return context is not None and context.is_history_navigation


def put_into_url(conversation_id: str) -> None:
    if conversation_id == NEW:
        st.query_params.pop(PARAMETER, None)
    else:
        st.query_params[PARAMETER] = conversation_id


def note_question() -> None:
    """Callback."""
    question, opened = st.session_state.question, st.session_state.opened
    st.session_state.opened = wishes.note_question(question, opened)


def grant_wishes() -> None:
    granter = Granter(wishes, chat, settings)
    while wishes.waiting:
        taken = wishes.waiting.popleft()
        try:
            granter.grant(taken)
        except StoreError as error:
            st.error(str(error), icon=":material/error:")
            if taken.action == "ask":  # what was typed must not be lost
                st.code(taken.arguments[0], language=None, wrap_lines=True)
            st.stop()
    if wishes.to_show and wishes.to_show != st.session_state.opened:
        put_into_url(wishes.to_show)
        st.session_state.opened = wishes.to_show


def clear_chat_history() -> None:
    """Callback: the conversation goes as if it were deleted, so that it can be brought back."""
    conversation = store.get(st.session_state.opened)
    if conversation:
        delete(conversation, store)


def draw_question(message: Message, tree: Tree) -> None:
    """A person's text is shown as it was typed; like an answer, it always takes up the same number of elements."""
    is_edited = st.session_state.get("editing") == message.id
    shown, edited, note = st.empty(), st.empty(), st.empty()
    if is_edited:
        with edited.container():
            draw_editor(message)
    else:
        with shown.container(horizontal=True, vertical_alignment="center", gap="xsmall", wrap=False):
            st.text(message.text, width="stretch")
            key, icon, about = f"edit_{message.id}", ":material/edit:", "Edit and send again"
            st.button("", key, about, edit, (message.id,), type="tertiary", icon=icon)
            draw_branches(message, tree)
    if message.is_left_out:
        note.caption(NOT_SENT)


def draw_editor(message: Message) -> None:
    """Leaving the text area begins no run: it would replace the button under a finger that is pressing it."""
    key = f"edited_{message.id}"
    st.text_area("Question", message.text, key=key, label_visibility="collapsed", on_change="ignore")
    with st.container(horizontal=True, gap="small"):
        key = f"resend_{message.id}"
        st.button("Send", key=key, type="primary", on_click=resend, args=(message.id,))
        st.button("Cancel", key=f"cancel_{message.id}", on_click=edit, args=(None,))


def resend(message_id: int) -> None:
    """Callback: the text area's text at that moment; without any, it stays open."""
    text = st.session_state[f"edited_{message_id}"]
    if text.strip():
        wish("resend", message_id, text)
        edit(None)


def edit(message_id: int | None) -> None:
    """Callback."""
    st.session_state.editing = message_id


def draw_conversation(tree: Tree) -> list[Place]:
    """Every message of the branch that is shown; returns the places of the answers being written."""
    path = tree.path()
    places: list[Place] = []
    for message, following in zip_longest(path, path[1:]):
        with st.chat_message(message.role):
            if message.role == "user":
                draw_question(message, tree)
            else:
                places += draw_answers(message, tree, is_last=following is None)
        note = st.empty()
        if message.is_left_out and following and not following.is_left_out:
            with note.container(horizontal=True, vertical_alignment="center", horizontal_alignment="center"):
                st.caption(f"The {left_out(path)} messages above are not sent.", width="content")
                icon_button("send_all", "history", "Send them again", message, "send all", message.id)
    for _ in range(2 * (st.session_state.get("n_drawn", 0) - len(path))):
        st.empty()  # over what was drawn there before: Streamlit removes it only when the run ends
    st.session_state.n_drawn = len(path)
    return places


def draw_answers(message: Message, tree: Tree, is_last: bool) -> list[Place]:
    """The answer, or all simultaneous ones side by side as long as the conversation has not gone on with one."""
    prompt = tree.messages[message.parent_id or 0].text if message.is_raw else ""
    group = tree.group(message)
    if is_last and len(group) > 1:
        st.set_page_config(layout="wide")
        places, st.session_state.draw_total = draw_group(group, prompt, tree)
        st.empty()
        return places
    place = draw_answer(message, prompt, tree, is_last)
    st.empty().caption(NOT_SENT if message.is_left_out else "")
    return [place] if place else []


def draw_gauge(now: Gauge) -> None:
    about = "about " if now.is_estimate else ""
    if now.window is None:
        st.caption(f"Context: {about}{now.used:,} tokens used; the server has not said how many there are.")
        return
    sentence = f"Context: {about}{now.used:,} of {now.window:,} tokens used, {now.available:,} available"
    if now.share >= NEARLY_FULL:
        sentence += ". When a question does not fit, you can leave out the oldest turns or start anew"
    st.progress(now.share, text=f":small[{sentence}.]")


def show_state(sentence: str, state: str) -> None:
    """The server's state as a sentence with the next step."""
    if state == "ready":
        st.success(sentence, icon="👉")
    elif state in ("starting", "loading"):
        st.info(sentence, icon=":material/hourglass_top:")
    else:
        st.warning(sentence, icon=":material/power_settings_new:")


def news() -> tuple[object, ...]:
    """What the whole page depends on, to be compared with what it was."""
    return server.state(), server.context_window, server.has_chat_template, store.revision()


@st.fragment(run_every=STATE_SECONDS, key="watch")
def watch(shown: tuple[object, ...], drawn_at: float) -> None:
    """Draws the page again when the server's state, its model or the conversations are not those that it shows."""
    spare_the_garbage_collector()
    if time.monotonic() - drawn_at < STATE_SECONDS / 2:
        return  # this is the page being drawn, not the clock
    if news() != shown:
        st.rerun()


# The page

st.set_page_config(page_title="Llama 2 Chatbot", page_icon="🦙", layout="centered")
try:
    config = ServerConfig.load()
    store, answers = open_store(Path(os.environ.get("LLAMA2_CHAT_STORE") or config.home / "conversations.sqlite3"))
except (TorchServeError, StoreError) as error:
    st.error(str(error), icon=":material/error:")
    st.stop()
wishes = session_wishes()
choose_conversation()

with st.sidebar:
    st.title("🦙💬 Llama 2 Chatbot", anchor=False)
    state_place = st.container()
    draw_new_and_undo(store)
    settings_tab, conversations_tab = st.tabs(["Settings", "Conversations"])
    with settings_tab:
        settings = draw_settings()
        base_url, api_key = draw_server_choice()
        st.button("Clear Chat History", key="clear_chat_history", on_click=clear_chat_history)

server: ChatServer = connect_other(base_url, api_key) if base_url else connect(config)
state = server.state()
sentence, hint = (OTHER_STATES if base_url else STATES)[state]
chat = Chat(store, answers, server)
with state_place:
    show_state(sentence, state)

grant_wishes()
st.chat_input(hint, key="question", on_submit=note_question)  # in the main body: only then the page scrolls along
gauge_place = st.bottom.container()
window, has_template, revision = server.context_window, server.has_chat_template, store.revision()
conversation = store.get(st.session_state.opened)
with conversations_tab:
    draw_conversations(store, conversation)

tree = store.tree(conversation.id).map(answers.with_unkept) if conversation else Tree([], None)
with gauge_place:
    draw_gauge(gauge(tree.path(), settings.system_prompt, window))
    if not has_template:
        st.caption("This model has no chat template, so it gets what you write as `Question: … Answer:`.")
st.chat_message("assistant").write(GREETING)
if conversation is None and PARAMETER in st.query_params:
    st.info("This conversation is not here: it was deleted, or is in another file. A question begins a new one.")
st.session_state.draw_total = None
places = draw_conversation(tree)
with st.sidebar:
    watch((state, window, has_template, revision), time.monotonic())
if places:
    follow(answers, places, lambda: store.revision() != revision, st.session_state.draw_total)
    st.rerun()
