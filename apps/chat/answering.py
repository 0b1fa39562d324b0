"""Answers being written: each is read by a thread of its own, kept in the store as it comes, and watched by any page.

So a page may be left, reloaded, opened twice or drawn anew without an answer noticing. What a page sees is a Snapshot,
of an answer of this process from memory, of another process's from the store. Knows nothing of Streamlit and HTTP.

Threads: one for each answer, which alone changes it, under the registry's condition; one that writes all answers to the
store every KEEP_SECONDS. Pages only look.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from apps.chat.messages import Message
from apps.chat.store import ChatStore, StoreError
from llama_cpp_worker.sampling_params import InvalidParameter
from torchserve_client.config import TorchServeError
from torchserve_client.http import RequestRefused, ServerUnreachable
from torchserve_client.inference import Answer, Piece, StreamCut

logger = logging.getLogger(__name__)

KEEP_SECONDS = 0.25  # a crash loses at most what came in the last of these
RETRY_SECONDS = 0.5  # between two tries while the server starts or loads the model
TOO_LONG = {"context_length_exceeded", "exceed_context_size_error"}  # OpenAI's code and ours; llama-server's type
STARTING = ("starting", "loading")  # states of a server that will be ready by itself


class Server(Protocol):
    """Who is asked: server.client's or chat.openai_client's."""

    @property
    def context_window(self) -> int | None: ...
    def state(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An answer at one moment.

    phase, while it is not ended: "after" (it waits for the answer before it), "starting" or "loading" (the server),
    "queued", "reading" (percent tells how much of the prompt), "writing".
    figures: `usage` and `timings` as the server told them, `first_token_seconds`, and the times `asked_at` and
    `ended_at` in seconds since 1970; `earlier_tokens` are those of the parts that were continued.
    """

    text: str = ""
    ended: str = ""
    problem: str = ""
    phase: str = "queued"
    percent: int | None = None
    figures: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, message: Message) -> Snapshot:
        """What the store knows of an answer."""
        phase = "writing" if message.text else "queued"
        return cls(message.text, message.ended, message.problem, phase, None, message.figures)

    def grown(self, piece: Piece, seconds: float) -> Snapshot:
        """With a piece more, which came `seconds` after the question had left."""
        figures = dict(self.figures)
        if piece.text and "first_token_seconds" not in figures:
            figures["first_token_seconds"] = seconds
        for name, value in (("usage", piece.usage), ("timings", piece.timings)):
            if value:
                figures[name] = value
        if piece.text:
            return replace(self, text=self.text + piece.text, phase="writing", percent=None, figures=figures)
        if piece.progress and self.phase != "writing":
            total = max(1, piece.progress["total"])
            return replace(self, phase="reading", percent=int(100 * piece.progress["processed"] / total))
        return replace(self, figures=figures)


class LiveAnswer:
    """One answer being written in this process: what it is `now`, and how to stop it."""

    def __init__(self, message_id: int, begun: Snapshot) -> None:
        self.message_id = message_id
        self.now = begun
        self.has_ended = threading.Event()
        self._stop_wanted = threading.Event()
        self._answer: Answer | None = None

    def stop(self) -> None:
        """Hangs up, which frees the slot; the text is kept. From any thread, at any time."""
        self._stop_wanted.set()
        if self._answer is not None:
            self._answer.close()

    @property
    def is_stopped(self) -> bool:
        return self._stop_wanted.is_set()

    def wait_for_stop(self, seconds: float) -> bool:
        return self._stop_wanted.wait(seconds)

    def take(self, answer: Answer) -> Answer:
        """The answer that `stop` is to close."""
        self._answer = answer
        if self.is_stopped:
            answer.close()
        return answer


class Answers:
    """All answers of this process, by the id of their message in the store."""

    def __init__(self, store: ChatStore) -> None:
        self._store = store
        self._live: dict[int, LiveAnswer] = {}
        self._version = 0
        self._news = threading.Condition()
        threading.Thread(target=self._keep, name="keeper", daemon=True).start()

    def start(
        self,
        message_id: int,
        ask: Callable[[], Answer],
        server: Server,
        notes: dict[str, Any],
        begun: Message | None = None,
        after: int | None = None,
    ) -> None:
        """Begins an answer; returns at once.

        ask: makes the request, in the answer's thread, once the answer `after` has ended, whoever writes that: so it
        sees its text.
        Its TorchServeError or InvalidParameter becomes the answer's problem. notes: go into the answer's figures.
        begun: the message is continued.
        """
        figures = notes | ({"earlier_tokens": tokens_of(begun.figures)} if begun else {})
        live = LiveAnswer(message_id, Snapshot(begun.text if begun else "", figures=figures))
        with self._news:
            self._live[message_id] = live
        arguments = (live, ask, server, after)
        threading.Thread(target=self._write, args=arguments, name=f"answer {message_id}", daemon=True).start()

    def look(self, message: Message) -> Snapshot:
        """The answer as it is now; a message that has ended is what the page read."""
        live = self._live.get(message.id)
        if live is not None:
            return live.now
        return Snapshot.of(message if message.ended else self._store.message(message.id))

    def with_unkept(self, message: Message) -> Message:
        """The message; if its answer has ended here and the store could not keep it, with what it should have kept.

        One that is being written here goes on, whatever the store thinks after the machine has slept.
        """
        live = self._live.get(message.id)
        if live is None:
            return message
        if not live.has_ended.is_set():
            return replace(message, ended="", problem="")
        now = live.now
        return replace(message, text=now.text, ended=now.ended, problem=now.problem, figures=now.figures)

    def wait(self, version: int, seconds: float) -> int:
        """The number of changes of all answers of this process: as soon as it is not `version`, or after `seconds`."""
        with self._news:
            self._news.wait_for(lambda: self._version != version, seconds)
            return self._version

    def stop(self, message_id: int) -> None:
        """Stops an answer, wherever it is written."""
        live = self._live.get(message_id)
        if live is not None:
            live.stop()
        else:
            self._store.want_stop(message_id)

    # --- the threads

    def _write(self, live: LiveAnswer, ask: Callable[[], Answer], server: Server, after: int | None) -> None:
        ended, problem = "failed", "The chat app failed; its log has the reason. Ask again."
        try:
            if after is not None:
                self._wait_for(live, after)
            ended, problem = self._read(live, ask, server), ""
        except (TorchServeError, InvalidParameter, StoreError) as error:
            ended, problem = reason_of(error), str(error)
        finally:
            if live.is_stopped:
                ended, problem = "stopped", ""
            if ended == "length" and is_full(live.now.figures, server.context_window):
                ended = "full"
            self._end(live, ended, problem)

    def _end(self, live: LiveAnswer, ended: str, problem: str) -> None:
        """Keeps the answer for good; one that cannot be kept stays in memory and says so."""
        figures = live.now.figures | {"ended_at": time.time()}
        try:
            self._store.finish(live.message_id, live.now.text, ended, problem, figures)
            is_kept = True
        except StoreError as error:
            ended, problem, is_kept = "failed", str(error), False
        self._change(live, ended=ended, problem=problem, figures=figures)
        live.has_ended.set()
        with self._news:
            if is_kept and self._live.get(live.message_id) is live:  # else it is being continued already
                del self._live[live.message_id]

    def _wait_for(self, live: LiveAnswer, after: int) -> None:
        """Raises StoreError."""
        self._change(live, phase="after")
        while not live.is_stopped and not self._has_ended(after):
            before = self._live.get(after)  # another process's is looked for in the store
            before.has_ended.wait(KEEP_SECONDS) if before else live.wait_for_stop(KEEP_SECONDS)
        self._change(live, phase="queued")

    def _has_ended(self, message_id: int) -> bool:
        live = self._live.get(message_id)
        return live.has_ended.is_set() if live else bool(self._store.message(message_id).ended)

    def _read(self, live: LiveAnswer, ask: Callable[[], Answer], server: Server) -> str:
        """Reads the answer to its end and returns why it ended."""
        finish_reason = ""
        self._change(live, figures=live.now.figures | {"asked_at": time.time()})
        asked_at = time.monotonic()
        for piece in self._pieces(live, ask, server):
            with self._news:
                live.now = live.now.grown(piece, time.monotonic() - asked_at)
                self._tell()
            finish_reason = piece.finish_reason or finish_reason
        if not finish_reason and not live.is_stopped:
            raise StreamCut("The answer ended without a reason. Continue it, or ask again.")
        return finish_reason

    def _pieces(self, live: LiveAnswer, ask: Callable[[], Answer], server: Server) -> Iterator[Piece]:
        """The answer's pieces; a server that is only starting is asked again until it is ready."""
        while not live.is_stopped:
            try:
                yield from live.take(ask())
                return
            except (ServerUnreachable, RequestRefused):
                state = server.state()
                if live.now.phase == "writing" or state not in STARTING:
                    raise
                self._change(live, phase=state)
            live.wait_for_stop(RETRY_SECONDS)
            self._change(live, phase="queued")

    def _keep(self) -> None:
        """Writes what has come to the store, for a crash and for pages of other processes, and reads their wishes."""
        while True:
            with self._news:
                self._news.wait_for(self._being_written)
                answers = self._being_written()
            for live in answers:
                now = live.now
                try:
                    if self._store.write(live.message_id, now.text, now.figures):
                        live.stop()
                except StoreError:
                    logger.exception("An answer's text could not be kept for now")
                live.has_ended.wait(KEEP_SECONDS / len(answers))

    def _being_written(self) -> list[LiveAnswer]:
        return [live for live in self._live.values() if not live.has_ended.is_set()]

    def _change(self, live: LiveAnswer, **changes: Any) -> None:
        with self._news:
            live.now = replace(live.now, **changes)
            self._tell()

    def _tell(self) -> None:
        self._version += 1
        self._news.notify_all()


def reason_of(error: Exception) -> str:
    """Why an answer that raised this has ended."""
    if isinstance(error, StreamCut):
        return "cut"
    if isinstance(error, RequestRefused) and TOO_LONG & {error.code, error.type}:
        return "too long"
    return "failed"


def is_full(figures: dict[str, Any], context_window: int | None) -> bool:
    """Whether the answer that ended at its length has filled the context window."""
    return bool(context_window) and figures.get("usage", {}).get("total_tokens", 0) >= (context_window or 0)


def tokens_of(figures: dict[str, Any]) -> int:
    """Tokens written so far, those before a continuation included."""
    written = figures.get("usage", {}).get("completion_tokens") or figures.get("timings", {}).get("predicted_n") or 0
    return int(written) + int(figures.get("earlier_tokens", 0))
