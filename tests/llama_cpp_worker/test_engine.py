"""The engine's schedule with a scripted model: fast, and every token is known."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from llama_cpp_worker.chunk_size import DEEP_TOKENS, MIN_CHUNK_TOKENS, MIN_DEEP_CHUNK_TOKENS, PREFILL_STEP_SECONDS
from llama_cpp_worker.engine import MIN_AWAITED_TOKENS, UNEXPECTED_ERROR, Engine
from llama_cpp_worker.model import Chunk, DecodeError
from llama_cpp_worker.prefill import OLDEST_FIRST_EVERY
from llama_cpp_worker.request import Request
from llama_cpp_worker.sampler import SamplingError
from llama_cpp_worker.sampling_params import SamplingParams
from tests.support.scripted_model import ScriptedModel, ScriptedSampler, logprob_after, run_to_end


def make_request(prompt: str, **params: Any) -> Request:
    return Request(list(prompt.encode()), SamplingParams(**{"max_tokens": 30} | params))


def complete_alone(prompt: str, **params: Any) -> tuple[str, str | None]:
    engine = Engine(ScriptedModel(n_slots=1))
    request = make_request(prompt, **params)
    engine.submit(request)
    run_to_end(engine)
    return request.take_text(), request.finish_reason


PROMPTS = ["a", "hello", "x" * 150, "another one", "hello", "yet another " * 10, "z"]


def test_batched_output_equals_one_at_a_time_output_with_few_slots() -> None:
    model = ScriptedModel(n_slots=3, n_batch=16)
    engine = Engine(model)
    requests = [make_request(prompt) for prompt in PROMPTS]
    for request in requests:
        engine.submit(request)
    run_to_end(engine)
    assert [(r.take_text(), r.finish_reason) for r in requests] == [complete_alone(prompt) for prompt in PROMPTS]
    assert max(len(batch) for batch in model.batches) == 3


@pytest.mark.parametrize("seed", range(20))
def test_requests_that_come_and_go_do_not_change_the_text_of_others(seed: int) -> None:
    dice = random.Random(seed)
    model = ScriptedModel(n_slots=dice.randint(1, 4), n_batch=dice.randint(8, 32))
    engine = Engine(model, n_saved_bytes=dice.choice([0, 100, 10_000]))
    requests = [make_request(dice.choice(PROMPTS), max_tokens=dice.randint(1, 40)) for _ in range(12)]
    cancelled = set()
    todo = list(requests)
    while todo or not engine.is_idle:
        if todo and dice.random() < 0.3:
            engine.submit(todo.pop())
        elif not engine.is_idle:
            if dice.random() < 0.05:
                victim = dice.choice([*engine.waiting, *engine.running.values()])
                engine.cancel(victim)
                cancelled.add(id(victim))
            if not engine.is_idle:
                engine.step()
    for request in requests:
        if id(request) not in cancelled:
            alone = complete_alone(bytes(request.prompt).decode(), max_tokens=request.params.max_tokens)
            assert (request.take_text(), request.finish_reason) == alone
    assert all(sampler.is_closed for sampler in model.samplers)
    assert engine.counters.cancelled == len(cancelled)


def test_a_new_request_joins_the_running_ones_at_the_next_step() -> None:
    engine = Engine(ScriptedModel())
    first, second = make_request("hello", max_tokens=20), make_request("a", max_tokens=2)
    engine.submit(first)
    for _ in range(3):
        engine.step()
    engine.submit(second)
    engine.step()
    assert len(second.completion) == 1
    assert not first.is_finished
    assert len(first.completion) == 3
    engine.step()
    assert (len(first.completion), len(second.completion)) == (4, 2)


@pytest.mark.parametrize("steps", [0, 1, 6], ids=["waiting", "prefilling", "decoding"])
def test_a_cancelled_request_frees_its_slot(steps: int) -> None:
    model = ScriptedModel(n_slots=1, n_batch=16)
    engine = Engine(model)
    victim, follower = make_request("x" * 60, max_tokens=100), make_request("hello")
    engine.submit(victim)
    engine.submit(follower)
    for _ in range(steps):
        engine.step()
    engine.cancel(victim)
    assert victim.finish_reason == "cancelled"
    assert not engine.running
    run_to_end(engine)
    assert follower.take_text() == complete_alone("hello")[0]
    assert engine.counters.cancelled == 1


def test_cancelling_an_ended_request_changes_nothing() -> None:
    engine = Engine(ScriptedModel())
    request = make_request("hello", max_tokens=1)
    engine.submit(request)
    run_to_end(engine)
    engine.cancel(request)
    assert request.finish_reason == "length"
    assert engine.counters.cancelled == 0


def test_a_failed_batch_ends_its_requests_and_the_next_ones_are_served() -> None:
    model = ScriptedModel(n_slots=2)
    engine = Engine(model)
    hit = [make_request("a"), make_request("hello")]
    waiting = make_request("another one")
    for request in [*hit, waiting]:
        engine.submit(request)
    model.fail_with = DecodeError("llama_decode returned -3")
    assert engine.step()
    assert [request.finish_reason for request in hit] == ["error", "error"]
    assert all(request.error and "-3" in request.error for request in hit)
    run_to_end(engine)
    assert waiting.take_text() == complete_alone("another one")[0]
    assert engine.counters.failed == 2


class BrokenModel(ScriptedModel):
    """Fails in one method with an error that nobody expects, for the request whose seed is 1."""

    def __init__(self, broken_method: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._broken_method = broken_method
        self._broken_samplers: list[ScriptedSampler] = []

    def sampler(self, params: SamplingParams, prompt: Sequence[int], constraint: str | None) -> ScriptedSampler:
        if params.seed == 1 and self._broken_method == "sampler":
            raise ZeroDivisionError("a bug")
        sampler = super().sampler(params, prompt, constraint)
        self._broken_samplers += [sampler] if params.seed == 1 else []
        return sampler

    def sample(self, sampler: ScriptedSampler, index: int, *, forbid_end: bool) -> int:
        if sampler in self._broken_samplers and self._broken_method == "sample":
            raise ZeroDivisionError("a bug")
        return super().sample(sampler, index, forbid_end=forbid_end)


@pytest.mark.parametrize("broken_method", ["sampler", "sample"])
def test_an_unexpected_error_ends_only_its_own_request(broken_method: str, caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(BrokenModel(broken_method, n_slots=3))
    requests = [make_request("hello", seed=seed) for seed in (0, 1, 2)]
    for request in requests:
        engine.submit(request)
    while not engine.is_idle:
        engine.run(1.0)
    assert [request.error for request in requests] == [None, UNEXPECTED_ERROR, None]
    assert [request.finish_reason == "error" for request in requests] == [False, True, False]
    assert requests[0].take_text() == requests[2].take_text() == complete_alone("hello")[0]
    assert engine.counters.failed == 1
    assert "ZeroDivisionError: a bug" in caplog.text


def test_an_unexpected_error_in_a_decode_ends_its_batch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ScriptedModel(n_slots=2)
    engine = Engine(model)
    hit, later = [make_request("a"), make_request("hello")], make_request("another one")
    for request in hit:
        engine.submit(request)
    with monkeypatch.context() as patch:
        patch.setattr(model, "decode", lambda _: 1 // 0)
        engine.run(1.0)
    engine.submit(later)
    run_to_end(engine)
    assert [request.error for request in hit] == [UNEXPECTED_ERROR] * 2
    assert later.take_text() == complete_alone("another one")[0]


def test_an_error_in_the_schedule_itself_ends_the_running_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(ScriptedModel(n_slots=1))
    running, waiting = make_request("a"), make_request("hello")
    engine.submit(running)
    engine.submit(waiting)
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_build_batch", lambda: 1 // 0)
        engine.run(1.0)
    assert running.error == UNEXPECTED_ERROR
    run_to_end(engine)
    assert waiting.take_text() == complete_alone("hello")[0]


def test_a_swap_that_fails_ends_only_the_request_that_it_would_have_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ScriptedModel(n_slots=5, script=b"a" * 150)
    engine = Engine(model)
    requests = [make_request(f"{number}>", max_tokens=2 if number == 3 else 100) for number in range(5)]
    for request in requests:
        engine.submit(request)
    monkeypatch.setattr(model, "restore_state", lambda slot, state: 1 // 0)
    while not engine.is_idle:
        engine.run(1.0)
    assert [request.finish_reason for request in requests] == ["length"] * 4 + ["error"]
    assert [request.take_text() for request in requests[:3]] == ["a" * 100] * 3


def test_a_model_that_cannot_trim_after_an_error_ends_no_other_request(monkeypatch: pytest.MonkeyPatch) -> None:
    model = BrokenModel("sample", n_slots=2, script=b"abc")
    engine = Engine(model)
    broken, other = make_request("1>", seed=1, max_tokens=3), make_request("2>", max_tokens=3)
    engine.submit(broken)
    engine.submit(other)
    engine._admit()
    engine._start_prefills()
    monkeypatch.setattr(model, "trim", lambda slot, n_tokens: 1 // 0)
    engine.run(1.0)
    engine.run(1.0)
    assert (broken.finish_reason, other.finish_reason, other.take_text()) == ("error", "length", "abc")


class SlowAtDepth(ScriptedModel):
    """Decodes as slowly as a real model: a fixed time for each pass, and more for each token behind a long context."""

    pace = 1.0  # 20: a machine that is busy with other programs

    def decode(self, chunks: Sequence[Chunk]) -> list[int]:
        depth = max(chunk.position for chunk in chunks)
        size = sum(len(chunk.tokens) for chunk in chunks)
        indices = super().decode(chunks)
        self.seconds += self.pace * (0.01 + 0.001 * size * depth / 1000)
        return indices


def prefill_steps(model: ScriptedModel) -> list[list[Chunk]]:
    """Batches with prompt tokens: a step either prefills or decodes, and a decoded token comes after its prompt."""
    return [batch for batch in model.batches if any(len(chunk.tokens) > 1 or not chunk.wants_logits for chunk in batch)]


@pytest.mark.parametrize("pace", [1.0, 20.0])
def test_a_long_prompt_delays_other_answers_for_a_bounded_time(pace: float) -> None:
    model = SlowAtDepth(n_slots=2, n_batch=512, window=6000)
    model.pace = pace
    engine = Engine(model, clock=model.clock)
    decoding = make_request("hello>", max_tokens=5000)
    model._script = b"a" * 5000
    engine.submit(decoding)
    engine.step()
    long = make_request(">" + "x" * 3000)
    engine.submit(long)
    longest = 0.0
    while not long.is_prefilled:
        before = model.seconds
        engine.step()
        longest = max(longest, model.seconds - before)
    chunks = [chunk for batch in model.batches for chunk in batch if chunk.slot == 1 and chunk.position < 3001]
    assert sum(len(chunk.tokens) for chunk in chunks) >= 3001
    smallest_step = MIN_DEEP_CHUNK_TOKENS * (0.001 + pace * 0.001 * 3) + pace * 0.01
    assert longest <= max(1.5 * PREFILL_STEP_SECONDS, smallest_step)
    assert all(len(chunk.tokens) >= MIN_CHUNK_TOKENS for chunk in chunks if not chunk.wants_logits)


def test_whole_prompts_wait_for_one_decode_step_each() -> None:
    model = SlowAtDepth(n_slots=6, n_batch=512, window=1000)
    engine = Engine(model, clock=model.clock)
    for number in range(6):
        engine.submit(Request([number] * 150, SamplingParams(max_tokens=100, ignore_eos=True)))
    kinds = []
    while engine.n_decoding < 6:
        engine.step()
        kinds.append("prefill" if any(len(chunk.tokens) > 1 for chunk in model.batches[-1]) else "decode")
    assert "decode decode" not in " ".join(kinds)
    assert kinds.count("prefill") >= 3


def test_chunks_stay_as_large_as_the_kernels_need_on_a_busy_machine() -> None:
    model = SlowAtDepth(n_slots=2, n_batch=512, window=8200)
    model.pace = 1000.0
    engine = Engine(model, clock=model.clock)
    engine.submit(make_request("x" * 8000))
    run_to_end(engine)
    sizes = [(chunk.position, len(chunk.tokens)) for (chunk,) in prefill_steps(model) if not chunk.wants_logits]
    assert min(size for _, size in sizes) == MIN_CHUNK_TOKENS
    assert min(size for position, size in sizes if position >= DEEP_TOKENS) == MIN_DEEP_CHUNK_TOKENS


def test_a_short_prompt_waits_for_one_step_of_a_long_one() -> None:
    model = SlowAtDepth(n_slots=4, n_batch=512, window=8200)
    engine = Engine(model, clock=model.clock)
    long = make_request("x" * 8000)
    engine.submit(long)
    for number in range(6):
        engine.step()
        short = make_request(f"{number} {'y' * 25}", max_tokens=1)
        engine.submit(short)
        before = len(prefill_steps(model))
        while short.first_token_at is None:
            engine.step()
        assert len(prefill_steps(model)) - before <= 2  # its own, and one of the oldest prompt
    assert not long.is_prefilled


@pytest.mark.parametrize("seed", range(30))
def test_no_prompt_waits_longer_than_the_schedule_promises(seed: int) -> None:
    """The bound of the schedule for prompts of all lengths that arrive all the time."""
    dice = random.Random(seed)
    model = SlowAtDepth(n_slots=dice.randint(2, 6), n_batch=dice.choice([64, 128, 512]), window=4200)
    model.pace = dice.choice([0.1, 1.0, 30.0])
    engine = Engine(model, clock=model.clock)
    lengths = [dice.choice([10, 30, 100, 500, 4000]) for _ in range(25)]
    bounds: dict[Request, int] = {}  # of the prompts that are being prefilled: the number of the step that ends them
    for _ in range(5000):
        if lengths and dice.random() < 0.3:
            prompt = [dice.randrange(97, 123) for _ in range(lengths.pop())]
            n_reported = dice.choice([None, None, None, 1])
            engine.submit(Request(prompt, SamplingParams(max_tokens=dice.randint(1, 4)), prompt_logprobs=n_reported))
        engine.step()
        n_steps = len(prefill_steps(model))
        for request in engine.running.values():
            if request.is_started and not request.completion and request not in bounds:
                older = [each for each in engine.running.values() if each.submitted_at <= request.submitted_at]
                chunks = sum(-(-each.n_to_prefill // MIN_CHUNK_TOKENS) for each in older)
                bounds[request] = n_steps + OLDEST_FIRST_EVERY * (chunks + 1)
        for request, bound in list(bounds.items()):
            assert n_steps <= bound, f"{len(request.prompt)} tokens: {n_steps} steps, promised {bound}"
            if request.completion:
                del bounds[request]
        if not lengths and engine.is_idle:
            return
    pytest.fail("a prompt was never prefilled")


@pytest.mark.parametrize(("method", "error"), [(name, ZeroDivisionError) for name in ("piece", "logprobs", "is_end")])
def test_an_error_in_any_call_for_one_request_ends_that_request_only(method: str, error: type[Exception]) -> None:
    """`sampler` and `sample` are above. The call fails for the third token of one of three requests."""
    model = ScriptedModel(n_slots=3, script=b"abcdefgh")
    engine = Engine(model)
    requests = [Request(list(f"{n}>".encode()), SamplingParams(max_tokens=6), logprobs=1) for n in range(3)]
    for request in requests:
        engine.submit(request)
    original = getattr(model, method)
    hit: list[str] = []

    def broken(*arguments: Any, **named: Any) -> Any:
        if requests[1].completion and len(requests[1].completion) == 3 and not hit:
            hit.append(method)
            raise error("a bug")
        return original(*arguments, **named)

    setattr(model, method, broken)
    while not engine.is_idle:
        engine.run(1.0)
    assert hit
    assert sorted(str(request.finish_reason) for request in requests) == ["error", "length", "length"]
    assert engine.counters.failed == 1


def test_a_completion_ends_at_max_tokens_and_at_the_context_window() -> None:
    assert len(complete_alone("hello", max_tokens=3)[0]) == 3
    engine = Engine(ScriptedModel(window=20, script=b"a" * 100))
    request = make_request("0123456789>", max_tokens=1000)
    engine.submit(request)
    run_to_end(engine)
    assert (request.take_text(), request.finish_reason) == ("a" * 9, "length")


def test_a_raw_prompt_never_gets_an_empty_answer() -> None:
    engine = Engine(ScriptedModel(script=b""))
    empty, raw = make_request("a>"), make_request("a>")
    raw.allows_empty = False
    engine.submit(empty)
    engine.submit(raw)
    run_to_end(engine)
    assert (empty.take_text(), raw.take_text()) == ("", "!")


def test_run_returns_at_the_first_token_and_after_its_time_slice() -> None:
    model = ScriptedModel(script=b"abcdefghijklmnopqrstuvwxyz")
    engine = Engine(model, clock=model.clock)
    request = make_request("a" * 20 + ">", max_tokens=20)
    engine.submit(request)
    engine.run(1.0)
    assert request.take_text() == "a"
    engine.run(0.0045)
    assert request.take_text() == "bcdef"
    engine.run(100.0)
    assert request.is_finished


def test_a_stop_string_ends_the_completion_and_is_not_part_of_it() -> None:
    engine = Engine(ScriptedModel(script=b"Yes. Stop it, now"))
    request = make_request("q>", stop=["STOP", "Stop it"])
    engine.submit(request)
    run_to_end(engine)
    assert (request.take_text(), request.finish_reason) == ("Yes. ", "stop")


SYSTEM = "You are a helpful assistant who answers briefly. " * 3


def test_a_shared_prompt_prefix_is_computed_once_and_changes_no_text() -> None:
    prompts = [f"{SYSTEM}{number}" for number in range(5)]
    model = ScriptedModel(n_slots=4, n_batch=48, window=400)
    engine = Engine(model)
    requests = [make_request(prompt) for prompt in prompts]
    for request in requests:
        engine.submit(request)
    run_to_end(engine)
    alone = []
    for prompt in prompts:
        single = Engine(ScriptedModel(n_slots=1, window=400))
        request = make_request(prompt)
        single.submit(request)
        run_to_end(single)
        alone.append(request.take_text())
    assert [request.take_text() for request in requests] == alone
    assert requests[0].n_cached == 0
    assert all(request.n_cached > len(SYSTEM) - MIN_AWAITED_TOKENS for request in requests[1:])


def test_a_request_that_awaits_a_prefix_goes_on_if_it_is_cancelled() -> None:
    engine = Engine(ScriptedModel(n_slots=2, n_batch=16, window=400))
    first, second = make_request(SYSTEM + "a"), make_request(SYSTEM + "b")
    engine.submit(first)
    engine.submit(second)
    engine.step()
    engine.step()
    assert second.n_prefilled == 0
    engine.cancel(first)
    run_to_end(engine)
    assert second.finish_reason in ("stop", "length")
    assert second.n_cached >= 16


def test_the_next_turn_of_a_conversation_computes_only_new_tokens() -> None:
    model = ScriptedModel(n_slots=2, window=1000)
    engine = Engine(model)
    first = make_request(SYSTEM)
    engine.submit(first)
    run_to_end(engine)
    history = bytes([*first.prompt, *(token for token in first.completion if token < 256)]).decode()
    second = make_request(history + " And now?")
    engine.submit(second)
    run_to_end(engine)
    assert second.n_cached >= len(first.prompt) + len(first.completion) - 2


def test_running_slots_become_consecutive_when_others_end() -> None:
    model = ScriptedModel(n_slots=4, script=b"a" * 150)
    engine = Engine(model)
    requests = [make_request(f"{number}>", max_tokens=100 if number in (1, 3) else 3) for number in range(4)]
    for request in requests:
        engine.submit(request)
    while not requests[0].is_finished:
        engine.step()
    passes, steps = model.n_passes, len(model.batches)
    run_to_end(engine)
    assert model.n_passes - passes == len(model.batches) - steps, "a gap between slots costs a second pass"
    assert [request.take_text() for request in requests] == ["aaa", "a" * 100, "aaa", "a" * 100]


def test_a_request_reports_its_tokens_only_if_logprobs_are_requested() -> None:
    with_report, without = (
        Request(list(b"1>"), SamplingParams(max_tokens=5, stop=("cd",)), logprobs=logprobs) for logprobs in (2, None)
    )
    engine = Engine(ScriptedModel(script=b"abcde"))
    for request in (with_report, without):
        engine.submit(request)
    while not engine.is_idle:
        engine.step()
    tokens = with_report.take_tokens()
    assert [token.chosen.piece for token in tokens] == [b"a", b"b"]
    assert [len(token.likeliest) for token in tokens] == [2, 2]
    assert with_report.take_text() == without.take_text() == "ab"
    assert without.take_tokens() == []


def report_of(request: Request) -> list[float]:
    return [token.chosen.logprob for token in request.prompt_tokens]


def expected_report(prompt: Sequence[int]) -> list[float]:
    return [logprob_after(prompt[:place], prompt[place]) for place in range(1, len(prompt))]


@pytest.mark.parametrize("seed", range(20))
def test_each_token_of_a_prompt_but_the_first_gets_its_log_probability(seed: int) -> None:
    """Beside other requests, with prefixes that are computed already, in one chunk and in many."""
    dice = random.Random(seed)
    model = ScriptedModel(n_slots=dice.randint(1, 4), n_batch=dice.choice([8, 64, 200]), window=700)
    engine = Engine(model, n_saved_bytes=1000)
    requests = []
    for _ in range(12):
        prompt = list(SYSTEM.encode())[: dice.randint(0, 150)] + [
            dice.randrange(256) for _ in range(dice.choice([1, 200]))
        ]
        params = SamplingParams(max_tokens=dice.choice([0, 1, 5]))
        requests.append(Request(prompt, params, prompt_logprobs=dice.choice([None, 0, 3]), allows_empty=False))
        engine.submit(requests[-1])
        for _ in range(dice.randrange(4)):
            engine.step()
    run_to_end(engine)
    for request in requests:
        if request.prompt_logprobs is None:
            assert request.prompt_tokens == []
        else:
            assert (report_of(request), request.n_cached) == (expected_report(request.prompt), 0)
            assert all(len(token.likeliest) == request.prompt_logprobs for token in request.prompt_tokens)
        alone = Engine(ScriptedModel(n_slots=1, window=700))
        again = Request(request.prompt, request.params, allows_empty=False)
        alone.submit(again)
        run_to_end(alone)
        assert (again.completion, again.finish_reason) == (request.completion, request.finish_reason)


@pytest.mark.parametrize("prompt_logprobs", [None, 2])
def test_a_request_for_no_token_ends_after_its_prefill(prompt_logprobs: int | None) -> None:
    model = ScriptedModel()
    engine = Engine(model)
    request = Request(list(b"hello" * 20), SamplingParams(max_tokens=0), prompt_logprobs=prompt_logprobs)
    engine.submit(request)
    run_to_end(engine)
    assert (request.finish_reason, request.completion, request.take_text()) == ("length", [], "")
    assert len(model.cache[0]) == len(request.prompt)
    assert request.first_token_at is None
    assert all(sampler.is_closed for sampler in model.samplers)


def test_the_prefix_of_a_prompt_with_log_probabilities_can_be_reused_by_others() -> None:
    engine = Engine(ScriptedModel(n_slots=2, n_batch=32, window=400))
    scored = Request(list(f"{SYSTEM}a".encode()), SamplingParams(max_tokens=0), prompt_logprobs=1)
    other = make_request(f"{SYSTEM}b")
    engine.submit(scored)
    engine.submit(other)
    run_to_end(engine)
    assert other.n_cached > len(SYSTEM) - MIN_AWAITED_TOKENS


def test_a_prompt_with_log_probabilities_delays_other_answers_for_one_small_chunk() -> None:
    model = ScriptedModel(n_slots=2, n_batch=512, window=4000)
    engine = Engine(model, clock=model.clock)
    decoding = Request(list(b"hello"), SamplingParams(max_tokens=3000, ignore_eos=True))
    engine.submit(decoding)
    engine.step()
    scored = Request(list(b"x" * 3000), SamplingParams(max_tokens=0), prompt_logprobs=1)
    engine.submit(scored)
    sizes, earlier = [], len(decoding.completion)
    while not scored.is_finished:
        engine.step()
        sizes.append(sum(len(chunk.tokens) for chunk in model.batches[-1]))
    assert max(sizes) == model.n_outputs
    assert len(decoding.completion) - earlier >= len(sizes) // 2


def test_a_failed_sampling_ends_its_own_request_only() -> None:
    class Stuck(ScriptedModel):
        def sample(self, sampler: ScriptedSampler, index: int, *, forbid_end: bool) -> int:
            if sampler is self.samplers[0]:
                raise SamplingError("the grammar is stuck")
            return super().sample(sampler, index, forbid_end=forbid_end)

    engine = Engine(Stuck(script=b"abc"))
    stuck, other = (Request(list(b"1>"), SamplingParams(max_tokens=3)) for _ in range(2))
    engine.submit(stuck)
    engine.submit(other)
    while not engine.is_idle:
        engine.step()
    assert (stuck.finish_reason, stuck.error) == ("error", "The model failed: the grammar is stuck.")
    assert (other.finish_reason, other.take_text()) == ("length", "abc")
    assert engine.counters.failed == 1


def test_a_client_with_many_prompts_shares_the_slots_with_others() -> None:
    engine = Engine(ScriptedModel(n_slots=2))
    many, other = object(), object()
    crowd = [make_request(f"crowd {number}", max_tokens=5) for number in range(20)]
    for request in crowd:
        request.api_request = many
        engine.submit(request)
    engine.step()
    late = [make_request(f"late {number}", max_tokens=5) for number in range(3)]
    for request in late:
        request.api_request = other
        engine.submit(request)
    while not all(request.is_finished for request in late):
        engine.step()
    assert sum(request.is_finished for request in crowd) <= 5  # two before them, then one beside each of them
    run_to_end(engine)
    assert all(request.is_finished for request in crowd)


def test_a_client_with_many_prompts_is_served_while_others_keep_coming() -> None:
    engine = Engine(ScriptedModel(n_slots=2))
    crowd = [make_request(f"crowd {number}", max_tokens=3) for number in range(6)]
    many = object()
    for request in crowd:
        request.api_request = many
        engine.submit(request)
    for number in range(200):
        if len(engine.waiting) < 8:
            engine.submit(make_request(f"other {number}", max_tokens=3))
        engine.step()
    assert all(request.is_finished for request in crowd)
