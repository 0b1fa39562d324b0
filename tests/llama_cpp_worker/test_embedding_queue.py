"""Embeddings beside other requests, with a scripted model: order, bounds, errors."""

import random
from collections.abc import Sequence

import pytest

from llama_cpp_worker.chunk_size import MIN_CHUNK_TOKENS, MIN_DEEP_CHUNK_TOKENS, PREFILL_STEP_SECONDS
from llama_cpp_worker.embedder import EmbeddingError
from llama_cpp_worker.embedding_queue import EmbeddingRequest
from llama_cpp_worker.engine import UNEXPECTED_ERROR, Engine
from llama_cpp_worker.request import Request
from llama_cpp_worker.sampling_params import SamplingParams
from tests.support.scripted_model import ScriptedModel, run_to_end


class ScriptedEmbedder:
    """The embedding of a text is its tokens. Each token takes a fixed time of the model's clock."""

    def __init__(self, model: ScriptedModel, seconds_per_token: float = 0.002) -> None:
        self.window = model.window
        self.n_batch = 128
        self.chunks: list[int] = []  # their sizes
        self.fail_with: Exception | None = None
        self._model = model
        self._seconds_per_token = seconds_per_token
        self._tokens: list[int] = []

    def begin(self) -> None:
        self._tokens = []

    def add(self, tokens: Sequence[int]) -> None:
        if self.fail_with:
            error, self.fail_with = self.fail_with, None
            raise error
        assert 0 < len(tokens) <= self.n_batch
        self.chunks.append(len(tokens))
        self._tokens += tokens
        self._model.seconds += self._seconds_per_token * len(tokens)

    def embedding(self) -> list[float]:
        return [float(token) for token in self._tokens]


def make_engine(seconds_per_token: float = 0.002) -> tuple[Engine, ScriptedModel, ScriptedEmbedder]:
    model = ScriptedModel(n_slots=2, n_batch=512, window=8200)
    model.embedder = embedder = ScriptedEmbedder(model, seconds_per_token)
    return Engine(model, clock=model.clock), model, embedder


def embed(engine: Engine, tokens: Sequence[int]) -> EmbeddingRequest:
    request = EmbeddingRequest(tokens)
    engine.submit(request)
    return request


def answer(engine: Engine, n_prompt: int = 5, max_tokens: int = 1000) -> Request:
    request = Request([1] * n_prompt, SamplingParams(max_tokens=max_tokens, ignore_eos=True))
    engine.submit(request)
    return request


def test_each_text_gets_its_own_embedding_in_order_of_arrival() -> None:
    engine, _, _ = make_engine()
    texts = [list(range(length)) for length in (5, 700, 1, 3000, 64)]
    requests = [embed(engine, text) for text in texts]
    run_to_end(engine)
    assert [request.embedding for request in requests] == texts
    assert [request.finish_reason for request in requests] == ["stop"] * 5
    ends = [request.finished_at for request in requests]
    assert ends == sorted(ends, key=lambda end: end or 0.0)
    assert engine.counters.requests == 5


@pytest.mark.parametrize("seconds_per_token", [0.0001, 0.002, 0.05])
def test_embeddings_delay_other_answers_for_a_bounded_time(seconds_per_token: float) -> None:
    engine, model, embedder = make_engine(seconds_per_token)
    decoding = answer(engine)
    engine.step()
    dice = random.Random(1)
    for _ in range(30):
        embed(engine, [1] * dice.choice([3, 50, 200, 2000]))
    longest, n_steps, n_before = 0.0, 0, len(decoding.completion)
    while engine.embeddings.waiting and not decoding.is_finished:
        before = model.seconds
        engine.step()
        n_steps += 1
        longest = max(longest, model.seconds - before)
    assert longest <= 1.01 * max(PREFILL_STEP_SECONDS, MIN_DEEP_CHUNK_TOKENS * seconds_per_token)
    assert len(decoding.completion) - n_before >= n_steps // 2
    assert max(embedder.chunks) >= MIN_CHUNK_TOKENS


def test_many_short_texts_share_a_step() -> None:
    engine, _, _ = make_engine()
    requests = [embed(engine, [number] * 10) for number in range(20)]
    assert engine.step()
    assert sum(request.is_finished for request in requests) >= 10


def test_prompts_and_texts_take_turns() -> None:
    engine, model, embedder = make_engine()
    prompt, text = answer(engine, n_prompt=8000, max_tokens=1), embed(engine, [1] * 8000)
    while not (prompt.is_finished or text.is_finished):
        before = len(model.batches), len(embedder.chunks)
        engine.step()
        engine.step()
        assert len(model.batches) > before[0] and len(embedder.chunks) > before[1]
    run_to_end(engine)
    assert (prompt.finish_reason, text.finish_reason) == ("length", "stop")


def test_an_engine_with_texts_is_neither_idle_nor_steady() -> None:
    engine, _, _ = make_engine()
    answer(engine)
    engine.step()
    assert (engine.n_decoding, engine.n_waiting) == (1, 0)
    embed(engine, [1, 2])
    assert (engine.n_decoding, engine.n_waiting, engine.is_idle) == (0, 1, False)
    engine.cancel(next(iter(engine.running.values())))
    assert not engine.is_idle
    assert engine.run(1.0)
    assert engine.is_idle


def test_a_cancelled_text_leaves_nothing_to_the_next_one() -> None:
    engine, _, _ = make_engine()
    first, second = embed(engine, [7] * 3000), embed(engine, [8] * 300)
    engine.step()
    assert 0 < first.n_added < 3000
    engine.cancel(first)
    engine.cancel(first)
    run_to_end(engine)
    assert (first.finish_reason, first.embedding) == ("cancelled", None)
    assert second.embedding == [8.0] * 300
    assert engine.counters.cancelled == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (EmbeddingError("llama_decode returned 1"), "The model failed: llama_decode returned 1."),
        (ZeroDivisionError("a bug"), UNEXPECTED_ERROR),
    ],
)
def test_an_error_ends_only_the_text_that_it_belongs_to(error: Exception, message: str) -> None:
    engine, _, embedder = make_engine()
    decoding = answer(engine, max_tokens=10)
    broken, other = embed(engine, [1] * 300), embed(engine, [2] * 3)
    embedder.fail_with = error
    run_to_end(engine)
    assert (broken.finish_reason, broken.error, broken.embedding) == ("error", message, None)
    assert (other.embedding, decoding.finish_reason) == ([2.0] * 3, "length")
    assert engine.counters.failed == 1


def test_clients_with_texts_take_turns() -> None:
    engine, _, _ = make_engine()
    ends: list[str] = []
    clients = {name: object() for name in ("many", "one", "two")}
    texts: list[tuple[str, EmbeddingRequest]] = []
    for name in (*["many"] * 10, "one", "two", "two"):
        request = EmbeddingRequest([1] * 100, clients[name])
        engine.submit(request)
        texts.append((name, request))
    while not engine.is_idle:
        engine.step()
        ends += [name for name, request in texts if request.is_finished]
        texts = [(name, request) for name, request in texts if not request.is_finished]
    assert ends[:6] == ["many", "one", "two", "many", "two", "many"]
    assert ends[6:] == ["many"] * 7
