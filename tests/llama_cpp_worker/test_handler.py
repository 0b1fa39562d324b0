"""The handler without a server: TorchServe's own context, continuous batching, and a scripted model."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ts.context import Context, RequestProcessor

import llama_cpp_handler
from llama_cpp_handler import LlamaCppHandler
from llama_cpp_worker.api.reply import Reply
from llama_cpp_worker.engine import UNEXPECTED_ERROR
from llama_cpp_worker.request import Request
from llama_cpp_worker.sampling_params import SamplingParams
from tests.support.metric_cache import MetricCache
from tests.support.scripted_model import ScriptedModel, ScriptedSampler
from tests.support.serving import wait_until

GOOD = {"prompt": "good>", "max_tokens": 4}


class ServedModel(ScriptedModel):
    """Has a bug in its tokenizer for the prompt "bug>", and one in its sampler for the seed 13."""

    n_vocab, fingerprint = 257, "fp_1"

    def __init__(self, n_slots: int, **_: object) -> None:
        super().__init__(n_slots, script=b"abcdefgh")
        self.tokenizer = self

    def describe(self) -> dict[str, object]:
        return {"slots": self.n_slots}

    def tokenize(self, prompt: str) -> list[int]:
        return [1 // 0] if prompt == "bug>" else list(prompt.encode())

    def sampler(self, params: SamplingParams, prompt: Sequence[int], constraint: str | None) -> ScriptedSampler:
        assert params.seed != 13, "a bug"
        return super().sampler(params, prompt, constraint)


class Server:
    """Calls the handler as TorchServe does: new requests with their body, the open ones again until they end."""

    def __init__(self) -> None:
        config = {"continuousBatching": True, "handler": {"model_path": "x.gguf"}}
        self.context = Context("llamacpp", "", {}, 4, None, "", metrics=MetricCache(), model_yaml_config=config)
        self.handler = LlamaCppHandler()
        self.handler.initialize(self.context)
        self.open: list[str] = []
        self.path = ""

    def call(self, **new: dict[str, Any]) -> dict[str, str]:
        """One call with the open and the `new` requests. Returns the pieces by request id."""
        ids = [*self.open, *new]
        self.context.request_ids = dict(enumerate(ids))
        self.context.request_processor = [RequestProcessor({"url_path": self.path}) for _ in ids]
        pieces = self.handler.handle([{"body": new[name]} if name in new else {} for name in ids], self.context)
        ends = [self.context.stopping_criteria[index](piece) for index, piece in enumerate(pieces)]
        self.open = [name for name, is_last in zip(ids, ends, strict=True) if is_last is False]
        return dict(zip(ids, pieces, strict=True))

    def answers(self, **new: dict[str, Any]) -> dict[str, str]:
        """The whole answers to `new` requests that are sent at once."""
        texts = self.call(**new)
        while self.open:
            for name, piece in self.call().items():
                texts[name] += piece
        return texts


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    monkeypatch.setattr(llama_cpp_handler, "Model", ServedModel)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # for the file of the workers' numbers
    return Server()


def message(answer: str) -> str:
    return str(json.loads(answer.removeprefix("data: "))["error"]["message"])


def test_open_requests_are_answered_piece_by_piece(server: Server) -> None:
    answers = server.answers(plain=GOOD, stream={**GOOD, "stream": True}, refused={"prompt": ""})
    assert answers["plain"] == "good>abcd"
    assert answers["stream"].endswith("data: [DONE]\n\n")
    assert message(answers["refused"]).startswith("prompt: ")
    assert not server.handler._replies


def test_a_request_whose_client_disconnects_is_cancelled(server: Server) -> None:
    server.call(leaver={**GOOD, "max_tokens": 100, "ignore_eos": True, "stream": True})
    assert len(server.handler._engine.running) == 1
    server.open.clear()
    assert server.answers(next=GOOD)["next"] == "good>abcd"
    assert server.handler._engine.counters.cancelled == 1


def test_the_engine_is_reported_idle_when_no_call_comes_and_busy_at_the_next(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = "llamacpp_slots_busy"
    endless = {**GOOD, "max_tokens": 100, "ignore_eos": True, "stream": True}
    monkeypatch.setattr(llama_cpp_handler, "SLICE_SECONDS", 0.0)
    reported = server.context.metrics.last
    server.call(slow=endless)
    assert reported[busy] == 1
    wait_until(lambda: reported[busy] == 0, what="the report of an idle engine")
    server.call()
    assert reported[busy] == 1
    assert len(server.answers()["slow"]) > 0


def test_many_sequences_decode_one_more_step_between_two_calls(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp_handler, "SLICE_SECONDS", 0.0)
    requests = {f"r{number}": {**GOOD, "max_tokens": 8, "stream": True} for number in range(4)}
    server.call(**requests)
    engine = server.handler._engine
    assert server.handler._step_ahead is not None
    server.handler._step_ahead.result()
    n_tokens = engine.counters.completion_tokens
    assert n_tokens == 8  # the first token of each in the call, the second one after it
    answers = server.answers()
    assert all(answer.endswith("data: [DONE]\n\n") for answer in answers.values())
    assert engine.counters.completion_tokens == 32
    assert server.handler._step_ahead is None


def test_the_step_ahead_is_decoded_while_requests_wait_for_a_slot(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp_handler, "SLICE_SECONDS", 0.0)
    requests = {f"r{number}": {**GOOD, "max_tokens": 8, "stream": True} for number in range(6)}
    server.call(**requests)
    assert server.handler._step_ahead is not None
    assert all(answer.endswith("data: [DONE]\n\n") for answer in server.answers().values())


def test_a_client_that_leaves_during_the_step_ahead_is_cancelled(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp_handler, "SLICE_SECONDS", 0.0)
    endless = {**GOOD, "max_tokens": 100, "ignore_eos": True, "stream": True}
    server.call(**{f"r{number}": endless for number in range(4)})
    server.open.remove("r2")
    server.call()
    assert len(server.handler._engine.running) == 3
    assert server.handler._engine.counters.cancelled == 1
    assert server.handler._step_ahead is None  # three sequences are too few


def test_a_bug_in_the_tokenizer_fails_its_own_request_only(server: Server) -> None:
    answers = server.call(bug={"prompt": "bug>"}, good=GOOD)
    assert message(answers["bug"]) == UNEXPECTED_ERROR
    assert server.context.get_response_status(0)[0] == 500
    assert server.open == ["good"]
    assert server.answers()["good"].endswith("abcd")


def test_a_bug_in_the_engine_fails_its_own_request_only(server: Server) -> None:
    answers = server.answers(bug={**GOOD, "seed": 13}, good=GOOD)
    assert message(answers["bug"]) == UNEXPECTED_ERROR
    assert answers["good"] == "good>abcd"
    assert server.answers(later=GOOD)["later"] == "good>abcd"


def test_a_bug_between_two_choices_of_a_request_leaves_neither_running(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = server.handler._engine.submit
    server.path = "v1/completions"

    def fails_at_the_second(request: Request) -> None:
        assert request.params.seed != 8, "a bug"
        submit(request)

    monkeypatch.setattr(server.handler._engine, "submit", fails_at_the_second)
    answers = server.call(bug={**GOOD, "seed": 7, "n": 2, "max_tokens": 100, "ignore_eos": True}, good=GOOD)
    assert message(answers["bug"]) == UNEXPECTED_ERROR
    assert server.handler._replies.keys() == {"good"}
    assert [request.params.max_tokens for request in server.handler._engine.running.values()] == [4]


def test_a_bug_in_an_answer_fails_this_answer_only(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Reply.next_piece

    def next_piece(reply: Reply) -> str:
        assert reply.requests[0].params.seed != 7, "a bug"
        return original(reply)

    monkeypatch.setattr(Reply, "next_piece", next_piece)
    answers = server.answers(bug={**GOOD, "seed": 7}, good=GOOD)
    assert message(answers["bug"]) == UNEXPECTED_ERROR
    assert answers["good"] == "good>abcd"


def test_an_answer_that_torchserve_cannot_pass_on_is_an_error_instead(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Reply.next_piece

    def next_piece(reply: Reply) -> str:
        piece = original(reply)
        return piece * 2_000_000 if reply.requests[0].params.seed == 7 else piece

    monkeypatch.setattr(Reply, "next_piece", next_piece)
    answers = server.answers(large={**GOOD, "seed": 7}, good=GOOD)
    assert message(answers["large"]).startswith("The answer has 18,000,000 bytes, but TorchServe passes on at most")
    assert json.loads(answers["large"])["error"]["code"] == "too_long"
    assert answers["good"] == "good>abcd"
    assert server.answers(later=GOOD)["later"] == "good>abcd"


def test_a_bug_in_the_report_of_a_bug_fails_this_answer_only(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Reply.next_piece

    def next_piece(reply: Reply) -> str:
        assert reply.requests[0].params.seed != 7, "a bug"
        return original(reply)

    monkeypatch.setattr(Reply, "next_piece", next_piece)
    monkeypatch.setattr("llama_cpp_worker.api.openai_format.OpenAIFormat.failure", lambda *_: 1 // 0)
    answers = server.answers(bug={**GOOD, "seed": 7}, good=GOOD)
    assert message(answers["bug"]) == UNEXPECTED_ERROR
    assert answers["good"] == "good>abcd"
