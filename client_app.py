"""The chat: asks the model that TorchServe serves, shows the answer while it is written, and stops it when told to.

Run it with `streamlit run client_app.py`, as often as you like: every tab of every copy has a conversation of its own.
Knows nothing of HTTP (torchserve_client speaks it) and remembers nothing of the server: its state is asked each time.
Not covered: a conversation does not survive a reload; indented code blocks show `\\$` for `$` (fenced ones are right).
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from queue import Empty, Queue
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from sampling_params import BOUNDS, InvalidParameter, SamplingParams
from torchserve_client import Answer, AnswerCut, InferenceClient, Piece, ServerConfig, TorchServeError

st.set_page_config(page_title="Llama 2 Chatbot", page_icon="🦙")

GREETING = "How may I assist you today?"
DEFAULTS = SamplingParams(max_tokens=256)
LARGEST_MAX_TOKENS = 2048  # the slider's end; the server takes more

STATE_SECONDS = 2.0  # between two looks at the server
TICK_SECONDS = 0.2  # Streamlit honours its stop button only when the script touches the page

STATES = {  # what the sidebar says, and what the chat input says
    "down": ("TorchServe is not running. Press Start Server in the server app.", "TorchServe is not running"),
    "starting": ("TorchServe is starting. This page goes on by itself.", "TorchServe is starting"),
    "no model": ("No model is registered. Press Register Llama2 in the server app.", "No model is registered"),
    "loading": ("The model is loading. This page goes on by itself.", "The model is loading"),
    "ready": ("Proceed to entering your prompt message!", "Your message"),
}
ENDINGS = {"stop": "ended by itself", "length": "length limit reached", "stopped": "stopped by you", "cut": "cut"}

MARKDOWN = re.compile(
    r"^[ \t>]*(?P<fence>`{3,}|~{3,}).*?(?:^[ \t>]*(?P=fence)|\Z)"  # a block of code, also one still being written
    r"|\\.|(?<!`)(?P<ticks>`+)(?!`)(?:(?!\n\n).)+?(?<!`)(?P=ticks)(?!`)"  # an escaped character, code in a line
    r"|(?P<active>\$|!(?=\[)|:(?=[a-z-]+\[))",  # a formula, an image, coloured text
    re.MULTILINE | re.DOTALL,
)


@dataclass(slots=True, eq=False)
class Turn:
    """A question and what became of it. The run that draws a turn whose `ended` is empty asks the server.

    ended: "", then "answering", then a key of ENDINGS or "failed". A later run that finds "answering" knows that the
    run which streamed was left. That run changes this object only, never the list that holds it.
    """

    question: str
    raw: bool
    answer: str = ""
    ended: str = ""
    problem: str = ""  # a sentence for people
    first_token_seconds: float | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)

    def grow(self, piece: Piece, seconds: float) -> None:
        """Adds a piece that arrived `seconds` after the question left."""
        if piece.text and self.first_token_seconds is None:
            self.first_token_seconds = seconds
        self.answer += piece.text
        self.ended = piece.finish_reason or self.ended
        self.usage = piece.usage or self.usage
        self.timings = piece.timings or self.timings

    def as_markdown(self) -> str:
        """The answer; a raw prompt's with the prompt in front, whose text it continues."""
        return text_as_markdown(self.question + self.answer if self.raw else self.answer)

    def figures(self) -> str:
        """How much, how fast, how soon, and why it ended."""
        parts = []
        if "completion_tokens" in self.usage:
            parts.append(f"{self.usage['completion_tokens']} tokens")
        if self.timings.get("predicted_per_second"):
            parts.append(f"{self.timings['predicted_per_second']:.1f} tokens/s")
        if self.first_token_seconds is not None:
            parts.append(f"first token after {self.first_token_seconds:.2f} s")
        return " · ".join([*parts, ENDINGS.get(self.ended, self.ended)])


@dataclass(frozen=True, slots=True)
class Settings:
    """What the sidebar says. `sampling` holds SamplingParams' arguments, still unchecked."""

    raw: bool
    system_prompt: str
    sampling: dict[str, Any]


@st.cache_resource
def connect(config: ServerConfig) -> InferenceClient:
    """One client for all sessions: it is safe between threads, and holds the key and what it asks a worker."""
    return InferenceClient(config)


def text_as_markdown(text: str) -> str:
    """A model's or a server's text for st.markdown: formulas (`$5`), images and `:red[` stay as written, code is left
    alone. HTML is text for Streamlit anyway."""
    return MARKDOWN.sub(lambda found: f"\\{found[0]}" if found["active"] else found[0], text)


def messages_for(turn: Turn, system_prompt: str) -> list[dict[str, str]]:
    """The conversation up to `turn`, strictly by turns as chat templates want it: unanswered questions are left out."""
    messages = [{"role": "system", "content": system_prompt}] if system_prompt.strip() else []
    for past in turns[: turns.index(turn)]:
        if past.answer:
            messages += [{"role": "user", "content": past.question}, {"role": "assistant", "content": past.answer}]
    return [*messages, {"role": "user", "content": turn.question}]


def arriving(answer: Answer) -> Generator[Piece | None]:
    """The pieces as they arrive, and None for every tick without one. Closing it ends the answer on the server.

    A thread of its own reads, because a script that waits for a socket cannot be stopped. It touches nothing but the
    queue and ends with the answer; its TorchServeError is raised here.
    """
    arrived: Queue[Piece | TorchServeError | None] = Queue()

    def read() -> None:
        try:
            for piece in answer:
                arrived.put(piece)
        except TorchServeError as error:
            arrived.put(error)
        finally:
            arrived.put(None)

    with closing(answer):
        threading.Thread(target=read, name="answer", daemon=True).start()
        while True:
            try:
                item = arrived.get(timeout=TICK_SECONDS)
            except Empty:
                yield None
                continue
            if item is None:
                return
            if isinstance(item, TorchServeError):
                raise item
            yield item


def stream(turn: Turn, settings: Settings, text: DeltaGenerator, caption: DeltaGenerator) -> None:
    """Asks the server and lets `turn` grow on the page. Leaving (stop, rerun, closed tab) keeps what has come."""
    turn.ended = "answering"
    asked_at = time.monotonic()
    try:
        params = SamplingParams(**settings.sampling)
        messages = messages_for(turn, settings.system_prompt)
        answer = client.complete(turn.question, params) if turn.raw else client.chat(messages, params)
        caption.caption("waiting for the server")
        with closing(arriving(answer)) as pieces:
            for piece in pieces:
                seconds = time.monotonic() - asked_at
                if piece is not None:
                    turn.grow(piece, seconds)
                    text.markdown(turn.as_markdown())
                phase = "writing" if turn.answer else "waiting for the server"
                caption.caption(f"{phase}, {seconds:.0f} s")
        if turn.ended == "answering":
            raise AnswerCut("The answer ended without a reason: ask again.")
    except (TorchServeError, InvalidParameter) as error:
        turn.ended = "cut" if isinstance(error, AnswerCut) else "failed"
        turn.problem = str(error)
    caption.empty()


def draw_answer(turn: Turn, settings: Settings, typed: bool) -> None:
    """The assistant's side of a turn. `typed`: the chat input shows its own stop button for this run."""
    text, caption, problem, button = st.empty(), st.empty(), st.empty(), st.empty()
    if turn.ended == "answering":
        turn.ended = "stopped"
    if not turn.ended:
        if not typed:
            button.button("Stop", key="stop_answer", icon=":material/stop_circle:")
        stream(turn, settings, text, caption)
        button.empty()
    if turn.answer:
        text.markdown(turn.as_markdown())
    if turn.ended in ENDINGS:
        caption.caption(turn.figures())
    if turn.problem:
        problem.error(text_as_markdown(turn.problem))
    if turn.problem and turn is turns[-1]:
        again: dict[str, Any] = {"on_click": ask_again, "args": (turn,), "disabled": state != "ready"}
        button.button("Try again", key="try_again", icon=":material/refresh:", **again)


def ask_again(turn: Turn) -> None:
    """Callback: the question as if it were new; the run that follows asks it."""
    turns[turns.index(turn)] = Turn(turn.question, turn.raw)


@st.fragment(run_every=STATE_SECONDS, key="watch")
def watch(state: str, drawn_at: float) -> None:
    """Draws the page again when an answer was left, or when the server's state is not the one the page shows."""
    if time.monotonic() - drawn_at < STATE_SECONDS / 2:
        return  # this is the page being drawn, not the clock
    left = bool(turns) and turns[-1].ended == "answering"
    if left or client.state() != state:
        st.rerun()


def show_state(state: str) -> None:
    """The model's state as a sentence with the next step."""
    sentence, _ = STATES[state]
    if state == "ready":
        st.success(sentence, icon="👉")
    elif state in ("starting", "loading"):
        st.info(sentence, icon=":material/hourglass_top:")
    else:
        st.warning(sentence, icon=":material/power_settings_new:")


def choose_settings() -> Settings:
    """The sidebar's settings, in the URL too. A change waits for the next question: it never cuts an answer."""
    kept: dict[str, Any] = {"on_change": "ignore", "bind": "query-params"}

    def slider(name: str, about: str, low: float, high: float, step: float = 0.01) -> Any:
        return st.slider(name, low, high, getattr(DEFAULTS, name), step, key=name, help=about, **kept)

    def number(name: str, about: str, step: float, hint: str | None = None) -> Any:
        low, high = (BOUNDS[name].kind(end) for end in (BOUNDS[name].low, BOUNDS[name].high))
        value = getattr(DEFAULTS, name)
        return st.number_input(name, low, high, value, step, key=name, help=about, placeholder=hint, **kept)

    def lines(name: str, key: str, about: str, hint: str) -> str:
        return st.text_area(name, key=key, help=about, placeholder=hint, height=68, **kept) or ""

    sampling = {}
    st.subheader("Model parameters")
    sampling["temperature"] = slider("temperature", "Low is sober, high is wild.", 0.01, BOUNDS["temperature"].high)
    sampling["top_p"] = slider("top_p", "Only the likeliest tokens that add up to this.", 0.01, BOUNDS["top_p"].high)
    sampling["max_tokens"] = slider("max_tokens", "The longest answer, in tokens.", 1, LARGEST_MAX_TOKENS, 1)
    with st.expander("More parameters"):
        sampling["top_k"] = number("top_k", "Only this many of the likeliest tokens; 0: all.", 1)
        sampling["min_p"] = slider("min_p", "Only tokens this likely beside the likeliest.", 0.0, BOUNDS["min_p"].high)
        sampling["repeat_penalty"] = number("repeat_penalty", "Above 1, recent tokens become less likely.", 0.05)
        sampling["seed"] = number("seed", "The same seed repeats an answer.", 1, "random")
        stop = lines("stop", "stop", "Strings that end the answer; write a line break as `\\n`.", "one per line")
        sampling["stop"] = [line.replace("\\n", "\n") for line in stop.splitlines() if line]
        system_prompt = lines(
            "system prompt", "system_prompt", "Not used with a raw prompt.", "what the model is to be"
        )
    captions = ["the model's chat template", "Question: … Answer:"]
    prompt_format = st.radio("Prompt format", ["chat", "raw"], captions=captions, key="prompt_format", **kept)
    return Settings(prompt_format == "raw", system_prompt, sampling)


# The page

client = connect(ServerConfig.load())
state = client.state()
turns: list[Turn] = st.session_state.setdefault("turns", [])

with st.sidebar:
    st.title("🦙💬 Llama 2 Chatbot")
    show_state(state)
    watch(state, time.monotonic())
    settings = choose_settings()
    st.button("Clear Chat History", key="clear_chat_history", on_click=turns.clear)

_, hint = STATES[state]
sent = bool(st.session_state.get("question"))  # a disabled input would drop what was sent before the page knew
question = st.chat_input(hint, key="question", submit_mode="stop", disabled=state != "ready" and not sent)
if question:
    turns.append(Turn(question, settings.raw))

st.chat_message("assistant").write(GREETING)
for turn in turns:
    st.chat_message("user").text(turn.question)
    with st.chat_message("assistant"):
        draw_answer(turn, settings, typed=bool(question))
