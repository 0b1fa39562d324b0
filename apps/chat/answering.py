"""Generates answers in the background: one thread for each answer, whose text goes to the store and to every page.

A page may be left, reloaded or opened twice while an answer streams. A page only reads: the answers of this process
from memory, those of another process from the store. Knows nothing of Streamlit and HTTP.

Threads: the thread of an answer is the only one that changes it, under the condition `_changed`. One more thread saves
all unfinished answers every SAVE_SECONDS.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

from apps.chat.context import prompt_tokens_in, too_long
from apps.chat.database import StoreError
from apps.chat.messages import Message, clean_figures
from apps.chat.origin import NamedServer, origin_of
from apps.chat.store import ChatStore
from apps.chat.thought import add_thought, end_thought, split_thought
from torchserve_client.config import TorchServeError
from torchserve_client.http import RequestRefused, ServerUnreachable
from torchserve_client.streaming import CompletionStream, StreamCut, StreamEvent

logger = logging.getLogger(__name__)

SAVE_SECONDS = 0.25  # a crash loses at most the text of this time
POLL_SECONDS = 0.1  # between two checks of the answer that another one waits for
SERVER_RETRY_SECONDS = 0.5  # between two requests to a server that starts or loads the model
TOO_LONG = {"context_length_exceeded", "exceed_context_size_error"}  # OpenAI's code and ours; llama-server's type
GENERATED = ("text", "ended", "problem", "figures", "phase", "percent")  # fields of a message that its answer sets
STARTING = ("starting", "loading")  # states of a server that becomes ready without help
CUT_REASONS = ("content_filter", "abort", "error")  # finish reasons: OpenAI's, vLLM's


class AnsweringServer(NamedServer, Protocol):
    """What an answer's thread needs of torchserve_client/inference.py or openai_client.py."""

    @property
    def context_window(self) -> int | None: ...
    def state(self) -> str: ...


Send = Callable[[], CompletionStream]


class RunningAnswer:
    """An answer that this process generates. `message` has its text, figures and phase, and is replaced as it grows.

    phase: "waiting" (for the answer before it), "starting" or "loading" (the server), "queued", "prefill" (`percent` of
    the prompt is done), "decode".
    """

    def __init__(self, message: Message, send: Send, server: AnsweringServer, waits_for: int | None) -> None:
        self.message = message
        self.send = send
        self.server = server
        self.waits_for = waits_for
        self.has_ended = threading.Event()
        self.is_stopped = threading.Event()
        self._stream: CompletionStream | None = None

    def stop(self) -> None:
        """Disconnects, which frees the slot; the text stays. From any thread, at any time."""
        self.is_stopped.set()
        if self._stream is not None:
            self._stream.close()

    def attach(self, stream: CompletionStream) -> CompletionStream:
        """From now on `stop` closes this stream."""
        self._stream = stream
        if self.is_stopped.is_set():
            stream.close()
        return stream


class Answers:
    """All answers of this process, by the id of their message in the store."""

    def __init__(self, store: ChatStore) -> None:
        self._store = store
        self._running: dict[int, RunningAnswer] = {}
        self._version = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._save_regularly, name="answer saver", daemon=True).start()

    def start(self, message: Message, send: Send, server: AnsweringServer, waits_for: int | None = None) -> None:
        """Starts the thread of an unfinished answer, or of one that is continued; returns at once.

        send: sends the request. Called in the answer's thread after the answer `waits_for` (of any process) has ended,
        so that its text is included. Its TorchServeError becomes the answer's problem.
        """
        message = replace(message, ended="", problem="", phase="queued")
        answer = RunningAnswer(message, send, server, waits_for)
        with self._changed:
            self._running[message.id] = answer
        threading.Thread(target=self._run, args=(answer,), name=f"answer {message.id}", daemon=True).start()

    def current(self, message: Message) -> Message:
        """The message with the text, figures, phase and end that its answer has now in this process.

        An ended answer stays in this process if the store could not save it. An unfinished one is not cut, even if the
        store lost its heartbeat while the machine slept.
        """
        answer = self._running.get(message.id)
        if answer is None:
            return message
        return replace(message, **{name: getattr(answer.message, name) for name in GENERATED})

    def latest(self, message: Message) -> Message:
        """Like `current`; an unfinished answer of another process is read from the store again."""
        if message.id not in self._running and not message.ended:
            message = self._store.message(message.id)
        return self.current(message)

    def wait(self, version: int, seconds: float) -> int:
        """The number of changes of all answers: at once if it is not `version`, else after a change or `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != version, seconds)
            return self._version

    def stop(self, message_id: int) -> None:
        """Stops an answer of any process."""
        answer = self._running.get(message_id)
        if answer is not None:
            answer.stop()
        else:
            self._store.want_stop(message_id)

    # --- the threads

    def _run(self, answer: RunningAnswer) -> None:
        ended, problem = "failed", "The chat app failed; its log has the reason. Ask again."
        try:
            if answer.waits_for is not None:
                self._wait_for(answer, answer.waits_for)
            ended, problem = self._receive(answer), ""
        except (TorchServeError, StoreError) as error:
            ended, problem = reason_of(error), str(error)
            if ended == "too long":
                problem = too_long(prompt_tokens_in(problem), answer.server.context_window)
        finally:
            if answer.is_stopped.is_set():
                ended, problem = "stopped", ""
            n_tokens = answer.message.figures.get("usage", {}).get("total_tokens", 0)
            if ended == "length" and n_tokens >= (answer.server.context_window or math.inf):
                ended = "full"
            self._end(answer, ended, problem)

    def _end(self, answer: RunningAnswer, ended: str, problem: str) -> None:
        """Saves the complete answer. One that cannot be saved stays in memory, with the reason as its problem."""
        message_id, text = answer.message.id, answer.message.text
        figures = answer.message.figures | {"ended_at": time.time()}
        try:
            self._store.finish(message_id, text, ended, problem, figures)
            is_saved = True
        except StoreError as error:
            ended, problem, is_saved = "failed", str(error), False
        self._change(answer, ended=ended, problem=problem, figures=figures)
        answer.has_ended.set()
        with self._changed:
            if is_saved and self._running.get(message_id) is answer:  # else it is being continued already
                del self._running[message_id]

    def _wait_for(self, answer: RunningAnswer, message_id: int) -> None:
        self._change(answer, phase="waiting")
        while not answer.is_stopped.is_set() and not self._has_ended(message_id):
            answer.is_stopped.wait(POLL_SECONDS)
        self._change(answer, phase="queued")

    def _has_ended(self, message_id: int) -> bool:
        answer = self._running.get(message_id)
        return answer.has_ended.is_set() if answer else bool(self._store.message(message_id).ended)

    def _receive(self, answer: RunningAnswer) -> str:
        """Collects the answer and returns its finish reason."""
        finish_reason = ""
        self._change(answer, figures=answer.message.figures | {"asked_at": time.time()})
        started = time.monotonic()
        for event in self._events(answer):
            self._change(answer, **changes_by(event, answer.message, time.monotonic() - started))
            finish_reason = event.finish_reason or finish_reason
        if finish_reason in CUT_REASONS:
            raise StreamCut(f"The server ended the answer early ({finish_reason}). Continue it, or ask again.")
        if not finish_reason and not answer.is_stopped.is_set():
            raise StreamCut("The answer ended without a reason. Continue it, or ask again.")
        return "length" if finish_reason == "length" else "stop"  # other servers have more words for an end

    def _events(self, answer: RunningAnswer) -> Iterator[StreamEvent]:
        """The events of the answer's stream. Retries while the server starts or loads the model."""
        while not answer.is_stopped.is_set():
            try:
                stream = answer.attach(answer.send())
                self._change(answer, figures=answer.message.figures | origin_of(answer.server))
                yield from stream
                return
            except (ServerUnreachable, RequestRefused):
                state = answer.server.state()
                if answer.message.phase == "decode" or state not in STARTING:
                    raise
                self._change(answer, phase=state)
            answer.is_stopped.wait(SERVER_RETRY_SECONDS)
            self._change(answer, phase="queued")

    def _save_regularly(self) -> None:
        """Saves unfinished answers, for a crash and for pages of other processes, and finds out who wants a stop."""
        while True:
            with self._changed:
                self._changed.wait_for(self._unfinished)
                answers = self._unfinished()
            for answer in answers:
                now = answer.message
                try:
                    if self._store.save(now.id, now.text, now.figures):
                        answer.stop()
                except StoreError as error:
                    logger.warning("The text of an unfinished answer was not saved: %s", error)
                answer.has_ended.wait(SAVE_SECONDS / len(answers))

    def _unfinished(self) -> list[RunningAnswer]:
        return [answer for answer in self._running.values() if not answer.has_ended.is_set()]

    def _change(self, answer: RunningAnswer, **changes: Any) -> None:
        with self._changed:
            answer.message = replace(answer.message, **changes)
            self._version += 1
            self._changed.notify_all()


def changes_by(event: StreamEvent, message: Message, seconds: float) -> dict[str, Any]:
    """What an event that came `seconds` after the request changes in the answer's message."""
    figures = message.figures | clean_figures({"usage": event.usage, "timings": event.timings})
    if event.text or event.thought:
        figures.setdefault("first_token_seconds", seconds)
        text = message.text
        if event.thought:
            text = add_thought(text, event.thought)
            figures["thought_apart"] = 1
        if event.text:
            if split_thought(text).is_open and figures.pop("thought_apart", 0):
                text = end_thought(text)
            text += event.text
        if split_thought(message.text).is_open and not split_thought(text).is_open:
            figures["thought_seconds"] = seconds - figures["first_token_seconds"]
        return {"text": text, "figures": figures, "phase": "decode", "percent": None}
    if event.progress and message.phase != "decode":
        done, total = event.progress["processed"], max(1, event.progress["total"])
        return {"figures": figures, "phase": "prefill", "percent": int(100 * done / total)}
    return {"figures": figures}


def reason_of(error: Exception) -> str:
    """The message's `ended` for an answer that raised this."""
    if isinstance(error, StreamCut):
        return "cut"
    if isinstance(error, RequestRefused) and TOO_LONG & {error.code, error.type}:
        return "too long"
    return "failed"
