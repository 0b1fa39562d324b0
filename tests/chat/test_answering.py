"""Answers are written by threads of their own: kept as they come, watched, stopped, never lost."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from apps.chat.answering import Answers, Snapshot
from apps.chat.messages import Message
from apps.chat.store import WRITER_SECONDS, ChatStore
from llama_cpp_worker.sampling_params import InvalidParameter
from tests.support.serving import wait_until
from torchserve_client.config import PROJECT
from torchserve_client.http import RequestRefused, ServerUnreachable
from torchserve_client.inference import Piece, StreamCut


@dataclass
class ScriptedAnswer:
    """Pieces, steps to take in between, and errors; closing it ends it at the next step."""

    script: list[Piece | Callable[[], object] | Exception]
    is_closed: threading.Event = field(default_factory=threading.Event)

    def __iter__(self) -> Iterator[Piece]:
        for step in self.script:
            if self.is_closed.is_set():
                return
            if isinstance(step, Exception):
                raise step
            if isinstance(step, Piece):
                yield step
            else:
                step()

    def close(self) -> None:
        self.is_closed.set()


@dataclass
class ScriptedServer:
    """Its states one after the other, the last one for ever."""

    states: list[str] = field(default_factory=lambda: ["ready"])
    context_window: int | None = 100

    def state(self) -> str:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]


@pytest.fixture
def store(tmp_path: Path) -> ChatStore:
    return ChatStore(tmp_path / "chats.sqlite3")


@pytest.fixture
def answers(store: ChatStore) -> Answers:
    return Answers(store)


def begin(store: ChatStore, answers: Answers, ask: Callable[[], Any], **more: Any) -> Message:
    """A question in a conversation of its own, and its answer being written."""
    (message_id,) = store.ask(store.create({}), "Question")
    answers.start(message_id, ask, more.pop("server", ScriptedServer()), {}, **more)
    return store.message(message_id)


def scripted(*script: Any) -> Callable[[], Any]:
    return lambda: ScriptedAnswer(list(script))


def until_closed(first: Piece) -> Callable[[], Any]:
    """An answer that ends when it is closed."""
    answer = ScriptedAnswer([first])
    answer.script += [answer.is_closed.wait, Piece("never")]
    return lambda: answer


def ended(answers: Answers, message: Message) -> Snapshot:
    wait_until(lambda: answers.look(message).ended, what="the end of an answer")
    return answers.look(message)


def test_answer_goes_from_queued_over_reading_to_writing_and_is_kept(store: ChatStore, answers: Answers) -> None:
    steps = {phase: threading.Event() for phase in ("queued", "reading", "writing")}
    message = begin(
        store,
        answers,
        scripted(
            steps["queued"].wait,
            Piece(progress={"total": 8, "cache": 0, "processed": 4}),
            steps["reading"].wait,
            Piece("It is"),
            steps["writing"].wait,
            Piece(" so.", "stop", usage={"total_tokens": 9}, timings={"predicted_n": 3}),
        ),
    )
    seen = []
    for phase, step in steps.items():
        wait_until(lambda phase=phase: answers.look(message).phase == phase, what=phase)
        seen.append((answers.look(message).percent, answers.look(message).text))
        step.set()
    assert seen == [(None, ""), (50, ""), (None, "It is")]

    now = ended(answers, message)
    kept = store.message(message.id)
    assert (kept.text, kept.ended, kept.figures) == ("It is so.", "stop", now.figures)
    assert kept.figures["usage"] == {"total_tokens": 9}
    assert 0 <= kept.figures["first_token_seconds"] <= kept.figures["ended_at"] - kept.figures["asked_at"] + 0.1


def test_text_is_in_the_store_before_the_answer_has_ended(store: ChatStore, answers: Answers) -> None:
    go_on = threading.Event()
    message = begin(store, answers, scripted(Piece("half"), go_on.wait, Piece("", "stop")))
    wait_until(lambda: store.message(message.id).text == "half", what="the text in the store")
    assert store.message(message.id).ended == ""
    go_on.set()
    ended(answers, message)


def test_what_had_come_is_there_after_the_program_was_killed_and_can_be_continued(tmp_path: Path) -> None:
    file = tmp_path / "chats.sqlite3"
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from tests.chat.test_answering import Answers, ChatStore, Piece, begin, until_closed\n"
        "store = ChatStore(Path(sys.argv[1]))\n"
        "print(begin(store, Answers(store), until_closed(Piece('half an answer'))).id, flush=True)\n"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(file), str(PROJECT)]
    program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert program.stdout
    message_id = int(program.stdout.readline())
    now = time.time()
    store = ChatStore(file, clock=lambda: now)
    wait_until(lambda: store.message(message_id).text, what="the text in the file")

    program.kill()
    program.communicate()
    now = time.time() + 2 * WRITER_SECONDS

    kept = store.message(message_id)
    assert (kept.text, kept.ended) == ("half an answer", "cut")
    assert "Continue it, or ask again." in kept.problem


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (StreamCut("The answer was cut."), "cut"),
        (ServerUnreachable("Nobody is there."), "failed"),
        (RequestRefused("too many", 400, code="context_length_exceeded"), "too long"),
        (RequestRefused("too many", 400, type="exceed_context_size_error"), "too long"),
        (InvalidParameter("stop", "takes at most 16"), "failed"),
    ],
)
def test_error_keeps_the_text_and_becomes_the_problem(
    store: ChatStore, answers: Answers, error: Exception, reason: str
) -> None:
    now = ended(answers, begin(store, answers, scripted(Piece("half"), error)))
    assert (now.text, now.ended, now.problem) == ("half", reason, str(error))


def test_end_without_a_reason_counts_as_cut(store: ChatStore, answers: Answers) -> None:
    assert ended(answers, begin(store, answers, scripted(Piece("half")))).ended == "cut"


@pytest.mark.parametrize(("total", "reason"), [(99, "length"), (100, "full")])
def test_answer_that_has_filled_the_window_says_so(store: ChatStore, answers: Answers, total: int, reason: str) -> None:
    piece = Piece("x", "length", usage={"total_tokens": total})
    assert ended(answers, begin(store, answers, scripted(piece))).ended == reason


def test_stop_closes_the_answer_and_keeps_its_text(store: ChatStore, answers: Answers) -> None:
    message = begin(store, answers, until_closed(Piece("half")))
    wait_until(lambda: answers.look(message).text, what="some text")

    answers.stop(message.id)

    now = ended(answers, message)
    assert (now.text, now.ended, now.problem) == ("half", "stopped", "")


def test_stop_through_the_store_reaches_the_process_that_writes(store: ChatStore, answers: Answers) -> None:
    message = begin(store, answers, until_closed(Piece("half")))
    other_store = ChatStore(store.path)
    other = Answers(other_store)
    wait_until(lambda: other.look(message).text == "half", what="the text seen from outside")

    other.stop(message.id)

    assert ended(other, message).ended == "stopped"


@pytest.mark.parametrize("is_elsewhere", [False, True], ids=["written here", "written by another process"])
def test_next_answer_waits_for_the_one_before_it_and_is_asked_after(
    store: ChatStore, answers: Answers, is_elsewhere: bool
) -> None:
    go_on = threading.Event()
    first = begin(store, answers, scripted(Piece("one"), go_on.wait, Piece("", "stop")))
    asked: list[str] = []

    def ask() -> Any:
        asked.append(store.message(first.id).ended)
        return ScriptedAnswer([Piece("two", "stop")])

    ours = Answers(ChatStore(store.path)) if is_elsewhere else answers
    second = begin(store, ours, ask, after=first.id)
    wait_until(lambda: ours.look(second).phase == "after", what="waiting for the first")
    assert asked == []
    go_on.set()
    assert ended(ours, second).text == "two"
    assert asked == ["stop"]


def test_answer_being_written_here_goes_on_whatever_the_store_has_made_of_it(
    store: ChatStore, answers: Answers
) -> None:
    go_on = threading.Event()
    message = begin(store, answers, scripted(Piece("half"), go_on.wait, Piece("", "stop")))
    asleep = ChatStore(store.path, clock=lambda: time.time() + 2 * WRITER_SECONDS)  # as after the machine has slept
    cut = asleep.message(message.id)
    assert cut.ended == "cut"
    assert answers.with_unkept(cut).ended == ""
    go_on.set()
    wait_until(lambda: store.message(message.id).ended == "stop", what="its own end")


def test_server_that_is_starting_is_asked_until_it_is_ready(store: ChatStore, answers: Answers) -> None:
    replies: list[Any] = [ServerUnreachable("no"), RequestRefused("no worker", 503), Piece("yes", "stop")]
    phases = []

    def ask() -> Any:
        phases.append(answers.look(message).phase)
        return ScriptedAnswer([replies.pop(0)])

    (message_id,) = store.ask(store.create({}), "Question")
    message = store.message(message_id)
    answers.start(message_id, ask, ScriptedServer(["starting", "loading", "ready"]), {})
    assert ended(answers, message).text == "yes"
    assert len(phases) == 3


def test_server_that_is_down_is_not_waited_for(store: ChatStore, answers: Answers) -> None:
    down = begin(store, answers, scripted(ServerUnreachable("Nobody.")), server=ScriptedServer(["down"]))
    assert ended(answers, down).problem == "Nobody."


def test_continuation_appends_and_counts_on(store: ChatStore, answers: Answers) -> None:
    piece = Piece("It is", "length", usage={"completion_tokens": 2, "total_tokens": 5})
    message = begin(store, answers, scripted(piece))
    ended(answers, message)
    begun = store.message(message.id)
    store.reopen(message.id)
    answers.start(message.id, scripted(Piece(" so.", "stop")), ScriptedServer(), {}, begun=begun)
    assert ended(answers, store.message(message.id)).text == "It is so."
    assert store.message(message.id).figures["earlier_tokens"] == 2


def test_wait_returns_as_soon_as_something_has_changed(store: ChatStore, answers: Answers) -> None:
    version = answers.wait(-1, 0.0)
    assert answers.wait(version, 0.0) == version
    message = begin(store, answers, scripted(Piece("x", "stop")))
    assert answers.wait(version, 60.0) > version
    ended(answers, message)


def test_answer_that_cannot_be_kept_says_so_and_stays_to_be_seen(store: ChatStore, answers: Answers) -> None:
    go_on = threading.Event()
    message = begin(store, answers, scripted(Piece("half"), go_on.wait, Piece("", "stop")))
    wait_until(lambda: answers.look(message).text, what="some text")
    store.close()
    go_on.set()
    now = ended(answers, message)
    assert (now.text, now.ended) == ("half", "failed")
    assert str(store.path) in now.problem
