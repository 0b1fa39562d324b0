"""Answers are generated in the background: saved while they stream, shown, stopped, never lost."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from apps.chat.answering import Answers
from apps.chat.messages import Message
from apps.chat.store import HEARTBEAT_SECONDS, ChatStore
from tests.support.serving import wait_until
from torchserve_client.config import PROJECT
from torchserve_client.http import RequestRefused, ServerUnreachable
from torchserve_client.streaming import StreamCut, StreamEvent


@dataclass
class ScriptedAnswer:
    """A stream of these events and errors; functions between them are called. close() ends it at the next step."""

    script: list[StreamEvent | Callable[[], object] | Exception]
    is_closed: threading.Event = field(default_factory=threading.Event)

    def __iter__(self) -> Iterator[StreamEvent]:
        for step in self.script:
            if self.is_closed.is_set():
                return
            if isinstance(step, Exception):
                raise step
            if isinstance(step, StreamEvent):
                yield step
            else:
                step()

    def close(self) -> None:
        self.is_closed.set()


@dataclass
class ScriptedServer:
    """Its states one after the other; the last one stays."""

    states: list[str] = field(default_factory=lambda: ["ready"])
    context_window: int | None = 100
    name: str = "Scripted"
    model: str = "its-model"

    def state(self) -> str:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]


@pytest.fixture
def store(tmp_path: Path) -> ChatStore:
    return ChatStore(tmp_path / "chats.sqlite3")


@pytest.fixture
def answers(store: ChatStore) -> Answers:
    return Answers(store)


def new_answer(store: ChatStore) -> Message:
    """The unfinished answer to a question in a new conversation."""
    (message_id,) = store.ask(store.create({}), "Question").ids
    return store.message(message_id)


def begin(
    store: ChatStore,
    answers: Answers,
    send: Callable[[], Any],
    server: ScriptedServer | None = None,
    waits_for: int | None = None,
) -> Message:
    """A new answer that is being generated."""
    message = new_answer(store)
    answers.start(message, send, server or ScriptedServer(), waits_for)
    return message


def has_phase(answers: Answers, message: Message, phase: str) -> bool:
    return answers.latest(message).phase == phase


def scripted(*script: Any) -> Callable[[], Any]:
    return lambda: ScriptedAnswer(list(script))


def until_closed(first: StreamEvent) -> Callable[[], Any]:
    """A stream that ends when it is closed."""
    answer = ScriptedAnswer([first])
    answer.script += [answer.is_closed.wait, StreamEvent("never")]
    return lambda: answer


def ended(answers: Answers, message: Message) -> Message:
    wait_until(lambda: answers.latest(message).ended, what="the end of an answer")
    return answers.latest(message)


def test_answer_goes_through_queued_prefill_and_decode_and_is_saved(store: ChatStore, answers: Answers) -> None:
    steps = {phase: threading.Event() for phase in ("queued", "prefill", "decode")}
    message = begin(
        store,
        answers,
        scripted(
            steps["queued"].wait,
            StreamEvent(progress={"total": 8, "cache": 0, "processed": 4}),
            steps["prefill"].wait,
            StreamEvent("It is"),
            steps["decode"].wait,
            StreamEvent(" so.", "stop", usage={"total_tokens": 9}, timings={"predicted_n": 3}),
        ),
    )
    seen = []
    for phase, step in steps.items():
        wait_until(partial(has_phase, answers, message, phase), what=phase)
        seen.append((answers.latest(message).percent, answers.latest(message).text))
        step.set()
    assert seen == [(None, ""), (50, ""), (None, "It is")]

    now = ended(answers, message)
    saved = store.message(message.id)
    assert (saved.text, saved.ended, saved.figures) == ("It is so.", "stop", now.figures)
    assert saved.figures["usage"] == {"total_tokens": 9}
    assert 0 <= saved.figures["first_token_seconds"] <= saved.figures["ended_at"] - saved.figures["asked_at"] + 0.1


def test_figures_of_a_server_that_are_no_numbers_are_dropped(store: ChatStore, answers: Answers) -> None:
    usage = {"completion_tokens": 2, "prompt_tokens_details": None, "cost": "free"}
    now = ended(answers, begin(store, answers, scripted(StreamEvent("x", "stop", usage=usage))))
    assert now.figures["usage"] == {"completion_tokens": 2}


def test_text_is_in_the_store_before_the_answer_has_ended(store: ChatStore, answers: Answers) -> None:
    go_on = threading.Event()
    message = begin(store, answers, scripted(StreamEvent("half"), go_on.wait, StreamEvent("", "stop")))
    wait_until(lambda: store.message(message.id).text == "half", what="the text in the store")
    assert store.message(message.id).ended == ""
    go_on.set()
    ended(answers, message)


def test_text_survives_a_killed_program_and_can_be_continued(tmp_path: Path) -> None:
    file = tmp_path / "chats.sqlite3"
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from tests.chat.test_answering import Answers, ChatStore, StreamEvent, begin, until_closed\n"
        "store = ChatStore(Path(sys.argv[1]))\n"
        "print(begin(store, Answers(store), until_closed(StreamEvent('half an answer'))).id, flush=True)\n"
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
    now = time.time() + 2 * HEARTBEAT_SECONDS

    saved = store.message(message_id)
    assert (saved.text, saved.ended) == ("half an answer", "cut")
    assert "Continue it, or ask again." in saved.problem


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (StreamCut("The answer was cut."), "cut"),
        (ServerUnreachable("No server answers."), "failed"),
    ],
)
def test_error_becomes_the_problem_and_the_text_stays(
    store: ChatStore, answers: Answers, error: Exception, reason: str
) -> None:
    now = ended(answers, begin(store, answers, scripted(StreamEvent("half"), error)))
    assert (now.text, now.ended, now.problem) == ("half", reason, str(error))


@pytest.mark.parametrize("words", [{"code": "context_length_exceeded"}, {"type": "exceed_context_size_error"}])
def test_a_prompt_that_does_not_fit_has_a_persons_words(
    store: ChatStore, answers: Answers, words: dict[str, str]
) -> None:
    now = ended(answers, begin(store, answers, scripted(RequestRefused("9,000 tokens do not fit", 400, **words))))
    assert (now.ended, now.problem.partition(",")[0]) == ("too long", "This is too long for the model: 9")


def test_a_thought_that_comes_apart_stands_before_the_answer(store: ChatStore, answers: Answers) -> None:
    events = (StreamEvent(thought="Hm, "), StreamEvent(thought="no."), StreamEvent("No"), StreamEvent("!", "stop"))
    now = ended(answers, begin(store, answers, scripted(*events)))
    assert now.text == "<think>\nHm, no.\n</think>\n\nNo!"
    assert now.figures["thought_seconds"] >= 0
    assert "thought_apart" not in now.figures


def test_a_thought_that_the_model_writes_is_timed(store: ChatStore, answers: Answers) -> None:
    events = (StreamEvent("<think>\nHm."), StreamEvent("\n</think>\n"), StreamEvent("\nNo.", "stop"))
    now = ended(answers, begin(store, answers, scripted(*events)))
    assert now.text == "<think>\nHm.\n</think>\n\nNo."
    assert "thought_seconds" in now.figures


def test_end_without_a_reason_counts_as_cut(store: ChatStore, answers: Answers) -> None:
    assert ended(answers, begin(store, answers, scripted(StreamEvent("half")))).ended == "cut"


@pytest.mark.parametrize(
    ("reason", "ending"), [("eos_token", "stop"), ("too long", "stop"), ("content_filter", "cut"), ("abort", "cut")]
)
def test_reason_that_only_a_server_knows_is_one_of_ours(
    store: ChatStore, answers: Answers, reason: str, ending: str
) -> None:
    assert ended(answers, begin(store, answers, scripted(StreamEvent("x", reason)))).ended == ending


@pytest.mark.parametrize(("total", "reason"), [(99, "length"), (100, "full")])
def test_answer_that_fills_the_context_window_ends_as_full(
    store: ChatStore, answers: Answers, total: int, reason: str
) -> None:
    piece = StreamEvent("x", "length", usage={"total_tokens": total})
    assert ended(answers, begin(store, answers, scripted(piece))).ended == reason


def test_stop_closes_the_stream_and_the_text_stays(store: ChatStore, answers: Answers) -> None:
    message = begin(store, answers, until_closed(StreamEvent("half")))
    wait_until(lambda: answers.latest(message).text, what="some text")

    answers.stop(message.id)

    now = ended(answers, message)
    assert (now.text, now.ended, now.problem) == ("half", "stopped", "")


def test_stop_reaches_the_process_that_generates_the_answer(store: ChatStore, answers: Answers) -> None:
    message = begin(store, answers, until_closed(StreamEvent("half")))
    other_store = ChatStore(store.path)
    other = Answers(other_store)
    wait_until(lambda: other.latest(message).text == "half", what="the text seen from outside")

    other.stop(message.id)

    assert ended(other, message).ended == "stopped"


@pytest.mark.parametrize("is_elsewhere", [False, True], ids=["same process", "another process"])
def test_answer_waits_for_the_one_before_it(store: ChatStore, answers: Answers, is_elsewhere: bool) -> None:
    go_on = threading.Event()
    first = begin(store, answers, scripted(StreamEvent("one"), go_on.wait, StreamEvent("", "stop")))
    sent: list[str] = []

    def send() -> Any:
        sent.append(store.message(first.id).ended)
        return ScriptedAnswer([StreamEvent("two", "stop")])

    ours = Answers(ChatStore(store.path)) if is_elsewhere else answers
    second = begin(store, ours, send, waits_for=first.id)
    wait_until(lambda: ours.latest(second).phase == "waiting", what="waiting for the first")
    assert sent == []
    go_on.set()
    assert ended(ours, second).text == "two"
    assert sent == ["stop"]


def test_streaming_answer_goes_on_although_the_store_has_marked_it_as_cut(store: ChatStore, answers: Answers) -> None:
    go_on = threading.Event()
    message = begin(store, answers, scripted(StreamEvent("half"), go_on.wait, StreamEvent("", "stop")))
    asleep = ChatStore(store.path, clock=lambda: time.time() + 2 * HEARTBEAT_SECONDS)  # as after the machine has slept
    cut = asleep.message(message.id)
    assert cut.ended == "cut"
    assert answers.current(cut).ended == ""
    go_on.set()
    wait_until(lambda: store.message(message.id).ended == "stop", what="its own end")


def test_request_is_sent_again_until_a_starting_server_is_ready(store: ChatStore, answers: Answers) -> None:
    replies: list[Any] = [ServerUnreachable("no"), RequestRefused("no worker", 503), StreamEvent("yes", "stop")]
    phases = []

    def send() -> Any:
        phases.append(answers.latest(message).phase)
        return ScriptedAnswer([replies.pop(0)])

    message = new_answer(store)
    answers.start(message, send, ScriptedServer(["starting", "loading", "ready"]))
    assert ended(answers, message).text == "yes"
    assert len(phases) == 3


def test_request_to_a_server_that_is_down_fails_at_once(store: ChatStore, answers: Answers) -> None:
    down = begin(store, answers, scripted(ServerUnreachable("No server.")), server=ScriptedServer(["down"]))
    assert ended(answers, down).problem == "No server."


def test_continuation_appends_its_text(store: ChatStore, answers: Answers) -> None:
    piece = StreamEvent("It is", "length", usage={"completion_tokens": 2, "total_tokens": 5})
    message = begin(store, answers, scripted(piece))
    ended(answers, message)
    store.reopen(message.id)
    answers.start(store.message(message.id), scripted(StreamEvent(" so.", "stop")), ScriptedServer())
    assert ended(answers, store.message(message.id)).text == "It is so."


def test_wait_returns_as_soon_as_an_answer_changes(store: ChatStore, answers: Answers) -> None:
    version = answers.wait(-1, 0.0)
    assert answers.wait(version, 0.0) == version
    message = begin(store, answers, scripted(StreamEvent("x", "stop")))
    assert answers.wait(version, 60.0) > version
    ended(answers, message)


def test_answer_that_cannot_be_saved_is_shown_with_the_reason(store: ChatStore, answers: Answers) -> None:
    go_on = threading.Event()
    message = begin(store, answers, scripted(StreamEvent("half"), go_on.wait, StreamEvent("", "stop")))
    wait_until(lambda: answers.latest(message).text, what="some text")
    store.close()
    go_on.set()
    now = ended(answers, message)
    assert (now.text, now.ended) == ("half", "failed")
    assert str(store.path) in now.problem
