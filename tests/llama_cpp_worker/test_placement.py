"""Where the engine puts requests: conversations keep their slot, running slots are neighbours."""

import random
from pathlib import Path

import pytest

from llama_cpp_worker.engine import Engine
from llama_cpp_worker.model import Chunk, Model
from llama_cpp_worker.prefix_cache import PrefixCache
from llama_cpp_worker.request import Request
from llama_cpp_worker.sampling_params import SamplingParams
from tests.support.scripted_model import END, ScriptedModel, run_to_end
from tests.support.tiny_llama import write_tiny_llama


def submit(engine: Engine, prompt: list[int], max_tokens: int | None = 20) -> Request:
    request = Request(prompt, SamplingParams(max_tokens=max_tokens, ignore_eos=True))
    engine.submit(request)
    return request


def talk(engine: Engine, history: list[int], n_new_tokens: int = 15) -> Request:
    """A turn of a conversation: adds a question and the answer to `history`."""
    history += b"q" * n_new_tokens
    request = submit(engine, list(history))
    run_to_end(engine)
    history += request.completion
    return request


def test_two_conversations_in_turn_reuse_what_they_computed_without_saved_sequences() -> None:
    engine = Engine(ScriptedModel(n_slots=4, window=2000), n_saved_bytes=0)
    histories = [list(b"<system>Ann: "), list(b"<system>Bob: ")]
    earlier, cached = 0, 0
    for turn in range(20):
        for history in histories:
            n_earlier = len(history) if turn else 0
            request = talk(engine, history)
            earlier += n_earlier
            cached += request.n_cached if turn else 0
    assert cached >= 0.95 * earlier > 0
    assert engine.cache.hits["own"] >= 38


def test_a_conversation_beside_running_requests_keeps_its_prefix() -> None:
    engine = Engine(ScriptedModel(n_slots=4, window=4000, n_batch=64), n_saved_bytes=0)
    history = list(b"a conversation ")
    talk(engine, history, n_new_tokens=60)
    for number in range(20):
        background = submit(engine, [number] * 40, max_tokens=30)
        n_earlier = len(history)
        assert talk(engine, history).n_cached >= n_earlier - 1
        assert background.is_finished


def test_the_idle_conversation_in_a_gap_is_not_lost() -> None:
    model = ScriptedModel(n_slots=3, window=1000)
    engine = Engine(model, n_saved_bytes=0)
    first = submit(engine, list(b"1" * 50), max_tokens=100)
    middle = submit(engine, list(b"2" * 50), max_tokens=3)
    last = submit(engine, list(b"3" * 50), max_tokens=100)
    while not middle.is_finished:
        engine.step()
    passes, batches = model.n_passes, len(model.batches)
    run_to_end(engine)
    assert model.n_passes - passes == len(model.batches) - batches, "a gap between slots costs a second pass"
    assert engine.cache.swaps == 1
    for request in (first, middle, last):
        again = submit(engine, [*request.prompt, *request.completion, 1], max_tokens=1)
        run_to_end(engine)
        assert again.n_cached >= len(request.prompt) + len(request.completion) - 1


@pytest.mark.parametrize("seed", range(30))
def test_the_cache_and_the_texts_are_right_whatever_comes_and_goes(seed: int) -> None:
    dice = random.Random(seed)
    model = ScriptedModel(n_slots=dice.randint(1, 6), n_batch=dice.choice([8, 64]), window=1000)
    model.copied_bytes_per_second = dice.choice([1e4, 1e6])
    engine = Engine(model, n_saved_bytes=dice.choice([0, 200, 5000]))
    prompts = [[dice.randrange(3)] * 30 + [dice.randrange(200) for _ in range(dice.randrange(90))] for _ in range(4)]
    requests: list[Request] = []
    for _ in range(400):
        if dice.random() < 0.1:
            old = dice.choice(requests).completion if requests and dice.random() < 0.5 else []
            requests.append(submit(engine, dice.choice(prompts) + old + [1], max_tokens=dice.randint(1, 60)))
        if engine.running and dice.random() < 0.02:
            engine.cancel(dice.choice(list(engine.running.values())))
        engine.step()
        assert all(request.slot == slot for slot, request in engine.running.items())
        assert [list(engine.cache.tokens(slot)) for slot in range(model.n_slots)] == list(model.cache.values())
    run_to_end(engine)
    for request in requests:
        if request.finish_reason == "length":
            alone = Engine(ScriptedModel(n_slots=1, window=1000))
            expected = submit(alone, list(request.prompt), max_tokens=request.params.max_tokens)
            run_to_end(alone)
            assert request.completion == expected.completion
            assert END not in request.completion


def test_swapped_sequences_of_a_real_model_give_equal_logits(tmp_path: Path) -> None:
    model = Model(str(write_tiny_llama(tmp_path / "tiny.gguf")), n_slots=3, n_threads=1)
    cache = PrefixCache(model, n_saved_bytes=0)
    tokens = {0: list(range(3, 60)), 2: list(range(10, 90))}
    before = {}
    for slot in tokens:
        cache.append(slot, tokens[slot])
        model.decode([Chunk(slot, 0, tokens[slot], False)])
        (index,) = model.decode([Chunk(slot, len(tokens[slot]), [5], True)])
        before[slot] = model.logprobs(index, 5, 3)
        model.trim(slot, len(tokens[slot]))
    assert model.state_size(2) == len(model.save_state(2)) > model.state_size(0) > model.state_size(1)
    cache.swap(0, 2)
    cache.swap(0, 1)
    for slot, old_slot in ((2, 0), (1, 2)):
        (index,) = model.decode([Chunk(slot, len(tokens[old_slot]), [5], True)])
        after = model.logprobs(index, 5, 3)
        assert after.chosen.logprob == pytest.approx(before[old_slot].chosen.logprob, abs=1e-4)
        assert [each.piece for each in after.likeliest] == [each.piece for each in before[old_slot].likeliest]
    assert model.prefilled_tokens_per_second > 0
    assert model.copied_bytes_per_second > 0
    model.close()
