"""What the entry makes of nodes that are full, that end, and that end in the middle of an answer."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from front.app import make_app
from front.errors import ApiError

pytest.importorskip("ray", reason="Ray is not installed: `make cluster-test` installs it")

from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from cluster.entry import N_TRIES, Nodes
from cluster.messages import Cut, Head
from cluster.node_facts import routing

HEAD = Head(200, {"content-type": "text/event-stream"})


class Answer:
    """Stands in for Ray Serve's response."""

    def __init__(self, steps: list[Any]) -> None:
        self._steps, self.is_cancelled = iter(steps), False

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        step = next(self._steps, None)
        if step is None:
            raise StopAsyncIteration
        if isinstance(step, Exception):
            raise step
        return step

    def cancel(self) -> None:
        self.is_cancelled = True


class Handle:
    """Stands in for the handle of the nodes: each call takes the next answer."""

    def __init__(self, *answers: list[Any]) -> None:
        self._answers, self.made = list(answers), list[Answer]()
        self.sessions: list[str] = []
        self.answer = self

    def options(self, stream: bool = True, session_id: str = "") -> "Handle":
        self.sessions.append(session_id)
        return self

    def remote(self, path: str, body: object) -> Answer:
        self.made.append(Answer(self._answers.pop(0)))
        return self.made[-1]


@pytest.fixture(autouse=True)
def _one_node_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "reports", [{"name": "node-1"}])


def received(handle: Handle, session: str = "") -> bytes:
    async def receive() -> bytes:
        async with Nodes(handle, "key", 1000).answer("v1/models", None, session) as answer:
            assert answer.status_code == 200
            return b"".join([piece async for piece in answer.aiter_raw()])

    return asyncio.run(receive())


def test_pieces_pass_through_as_they_are() -> None:
    handle = Handle([HEAD, b"data: 1", b"\n\n", b"data: 2\n\n"])
    assert received(handle) == b"data: 1\n\ndata: 2\n\n"
    assert handle.made[0].is_cancelled, "the node is told that the entry is done"


def test_full_nodes_are_a_503_with_a_time_to_wait() -> None:
    with pytest.raises(ApiError) as refusal:
        received(Handle([BackPressureError(1, 1)]))
    assert refusal.value.status_code == 503 and refusal.value.headers == {"Retry-After": "1"}


def test_without_a_node_the_request_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "reports", [])
    with pytest.raises(ApiError, match="No node serves now") as refusal:
        received(Handle([HEAD]))
    assert refusal.value.status_code == 503 and refusal.value.headers == {"Retry-After": "1"}


def test_a_node_that_ends_before_its_answer_is_replaced() -> None:
    handle = Handle([ActorDiedError()], [Cut()], [HEAD, b"data: 1\n\n"])
    assert received(handle) == b"data: 1\n\n"


def test_after_some_nodes_the_request_is_answered_with_an_error() -> None:
    handle = Handle(*([ActorDiedError()] for _ in range(N_TRIES)))
    with pytest.raises(ApiError) as refusal:
        received(handle)
    assert refusal.value.status_code == 502 and len(handle.made) == N_TRIES


@pytest.mark.parametrize("error", [ActorDiedError, Cut])
def test_a_whole_answer_that_is_cut_is_an_error_and_does_not_begin_again(error: Callable[[], Exception]) -> None:
    handle = Handle([Head(200, {"content-type": "application/json"}), b'{"choices": ', error()])
    with pytest.raises(ApiError, match="The answer was cut") as refusal:
        received(handle)
    assert refusal.value.status_code == 502 and len(handle.made) == 1


def test_a_stream_that_is_cut_ends_with_an_event_that_says_so() -> None:
    handle = Handle([HEAD, b"data: 1\n\n", ActorDiedError()])
    app = make_app(Nodes(handle, "key", 1000), ["cluster"], [])

    async def receive() -> str:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://cluster") as client:
            headers = {"Authorization": "Bearer key"}
            return (await client.post("/v1/chat/completions", json={"messages": []}, headers=headers)).text

    assert asyncio.run(receive()).startswith(
        'data: 1\n\n\n\nevent: error\ndata: {"error": {"message": "The answer was cut'
    )


def test_requests_of_a_session_have_one_key() -> None:
    handle = Handle([HEAD], [HEAD])
    assert [received(handle, "mine"), received(handle, "mine")] == [b"", b""]
    first, second = filter(None, handle.sessions)
    assert first == second


@pytest.mark.parametrize(("key", "is_right"), [("key", True), ("kez", False), ("", False), ("schlüssel", False)])
def test_only_the_key_is_accepted(key: str, is_right: bool) -> None:
    assert asyncio.run(Nodes(Handle(), "key", 1000).accepts(["", key])) == is_right
