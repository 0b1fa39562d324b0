"""The schedule, against a scripted model: fast, and every token known."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_cpp_worker.engine import LEAST_AWAITED, PROMPT_SECONDS, Engine, Request
from llama_cpp_worker.model import DecodeError
from llama_cpp_worker.sampling_params import SamplingParams
from llama_cpp_worker.text_assembler import TextAssembler
from tests.support.scripted_model import ScriptedModel


def make_request(prompt: str, **params: object) -> Request:
    return Request(list(prompt.encode()), SamplingParams(**{"max_tokens": 30} | params))


def run_to_end(engine: Engine) -> None:
    for _ in range(10_000):
        if engine.is_idle:
            return
        engine.step()
    pytest.fail("the engine never became idle")


def complete_alone(prompt: str, **params: object) -> tuple[str, str | None]:
    engine = Engine(ScriptedModel(n_slots=1))
    request = make_request(prompt, **params)
    engine.submit(request)
    run_to_end(engine)
    return request.take_text(), request.finish_reason


PROMPTS = ["a", "hello", "x" * 150, "another one", "hello", "yet another " * 10, "z"]


def test_batched_output_equals_one_at_a_time_output_with_fewer_slots_than_requests() -> None:
    model = ScriptedModel(n_slots=3, n_batch=16)
    engine = Engine(model)
    requests = [make_request(prompt) for prompt in PROMPTS]
    for request in requests:
        engine.submit(request)
    run_to_end(engine)
    assert [(r.take_text(), r.finish_reason) for r in requests] == [complete_alone(prompt) for prompt in PROMPTS]
    assert max(len(batch) for batch in model.batches) == 3


@pytest.mark.parametrize("seed", range(20))
def test_requests_that_come_and_go_at_any_time_do_not_change_each_others_text(seed: int) -> None:
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


def test_a_newcomer_joins_at_the_next_step_and_is_answered_before_the_first_ends() -> None:
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


@pytest.mark.parametrize("steps", [0, 1, 6], ids=["waiting", "reading", "writing"])
def test_cancelled_request_frees_its_slot(steps: int) -> None:
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


def test_cancelling_what_has_ended_changes_nothing() -> None:
    engine = Engine(ScriptedModel())
    request = make_request("hello", max_tokens=1)
    engine.submit(request)
    run_to_end(engine)
    engine.cancel(request)
    assert request.finish_reason == "length"
    assert engine.counters.cancelled == 0


def test_a_failed_batch_ends_its_requests_with_an_error_and_the_next_ones_are_served() -> None:
    model = ScriptedModel(n_slots=2)
    engine = Engine(model)
    hit = [make_request("a"), make_request("hello")]
    waiting = make_request("another one")
    for request in [*hit, waiting]:
        engine.submit(request)
    model.fail_with = DecodeError(-3)
    assert engine.step()
    assert [request.finish_reason for request in hit] == ["error", "error"]
    assert all(request.error and "-3" in request.error for request in hit)
    run_to_end(engine)
    assert waiting.take_text() == complete_alone("another one")[0]
    assert engine.counters.failed == 2


def test_a_long_prompt_is_read_in_chunks_and_holds_up_writers_for_a_bounded_time() -> None:
    model = ScriptedModel(n_slots=2, n_batch=512, window=6000)
    engine = Engine(model, clock=model.clock)
    writer = make_request("hello", max_tokens=500)
    engine.submit(writer)
    engine.step()
    engine.submit(make_request("x" * 3000))
    longest = 0.0
    while not writer.is_finished and len(model.batches) < 200:
        before = model.seconds
        engine.step()
        longest = max(longest, model.seconds - before)
    assert sum(len(chunk.tokens) for batch in model.batches for chunk in batch if chunk.slot == 1) >= 3000
    assert longest <= 1.5 * PROMPT_SECONDS


def test_completion_ends_at_max_tokens_and_at_the_context_window() -> None:
    assert len(complete_alone("hello", max_tokens=3)[0]) == 3
    engine = Engine(ScriptedModel(window=20, script=b"a" * 100))
    request = make_request("0123456789>", max_tokens=1000)
    engine.submit(request)
    run_to_end(engine)
    assert (request.take_text(), request.finish_reason) == ("a" * 9, "length")


def test_a_raw_prompt_is_not_answered_with_nothing() -> None:
    engine = Engine(ScriptedModel(script=b""))
    empty, raw = make_request("a>"), make_request("a>")
    raw.allows_empty = False
    engine.submit(empty)
    engine.submit(raw)
    run_to_end(engine)
    assert (empty.take_text(), raw.take_text()) == ("", "!")


def test_run_returns_at_the_first_token_and_otherwise_after_its_slice() -> None:
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


def test_stop_string_ends_the_completion_and_is_not_part_of_it() -> None:
    engine = Engine(ScriptedModel(script=b"Yes. Stop it, now"))
    request = make_request("q>", stop=["STOP", "Stop it"])
    engine.submit(request)
    run_to_end(engine)
    assert (request.take_text(), request.finish_reason) == ("Yes. ", "stop")


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in zip(ends, ends[1:], strict=False)]


@given(st.text(), st.lists(st.integers(0, 10_000)))
def test_any_split_of_utf8_text_gives_the_same_text_back(text: str, cuts: list[int]) -> None:
    assembler = TextAssembler()
    pieces = [assembler.push(piece) for piece in split(text.encode(), cuts)]
    assert "".join(pieces) + assembler.finish() == text


@given(st.text("abAB", max_size=40), st.lists(st.text("abAB", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_strings_cut_at_the_same_place_however_the_pieces_fall(
    text: str, stop: list[str], data: st.DataObject
) -> None:
    ends = [text.find(string) + len(string) for string in stop if string in text]
    first_to_be_whole = [string for string in stop if string in text and text.find(string) + len(string) == min(ends)]
    expected = text[: min(ends) - max(map(len, first_to_be_whole))] if ends else text

    assembler, got = TextAssembler(stop), ""
    for piece in split(text.encode(), data.draw(st.lists(st.integers(0, 10_000)))):
        got += assembler.push(piece)
        assert expected.startswith(got), "a part of a stop string was let out"
        if assembler.is_stopped:
            break
    assert assembler.is_stopped == bool(ends)
    assert got + assembler.finish() == expected


def test_bytes_of_an_unfinished_character_are_left_out_at_the_end() -> None:
    assembler = TextAssembler()
    assert assembler.push("né🦙".encode()[:-2]) + assembler.finish() == "né"


SYSTEM = "You are a helpful assistant who answers briefly. " * 3


def test_a_prompt_that_others_share_is_computed_once_and_changes_no_text() -> None:
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
    assert all(request.n_cached > len(SYSTEM) - LEAST_AWAITED for request in requests[1:])


def test_who_waits_for_a_shared_prefix_goes_on_when_its_reader_is_cancelled() -> None:
    engine = Engine(ScriptedModel(n_slots=2, n_batch=16, window=400))
    reader, follower = make_request(SYSTEM + "a"), make_request(SYSTEM + "b")
    engine.submit(reader)
    engine.submit(follower)
    engine.step()
    engine.step()
    assert follower.n_read == 0
    engine.cancel(reader)
    run_to_end(engine)
    assert follower.finish_reason in ("stop", "length")
    assert follower.n_cached >= 16


def test_the_next_turn_of_a_conversation_computes_only_what_is_new() -> None:
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


def test_running_slots_are_brought_together_when_others_leave() -> None:
    model = ScriptedModel(n_slots=4, script=b"a" * 150)
    engine = Engine(model)
    requests = [make_request(f"{number}>", max_tokens=100 if number in (1, 3) else 3) for number in range(4)]
    for request in requests:
        engine.submit(request)
    while not requests[0].is_finished:
        engine.step()
    passes, steps = model.n_passes, engine.counters.steps
    run_to_end(engine)
    assert model.n_passes - passes == engine.counters.steps - steps, "a gap between slots costs a second pass"
    assert [request.take_text() for request in requests] == ["aaa", "a" * 100, "aaa", "a" * 100]
