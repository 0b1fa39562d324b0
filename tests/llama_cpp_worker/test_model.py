"""The model with real files, the demo model and a tiny Llama 2: grammars, log probabilities, the KV cache."""

import itertools
import json
import math
from collections.abc import Iterator

import jsonschema
import pytest

from llama_cpp_worker.engine import Engine
from llama_cpp_worker.model import Chunk, Model
from llama_cpp_worker.request import Request
from llama_cpp_worker.sampling_params import SamplingParams
from tests.llama_cpp_worker.schemas.sample import sample
from tests.support.scripted_model import run_to_end
from tests.support.tiny_llama import write_tiny_llama
from torchserve_client.config import PROJECT

DEMO = PROJECT / "models" / "SmolLM2-135M-Instruct-Q8_0.gguf"


@pytest.fixture(scope="module")
def demo() -> Iterator[Model]:
    if not DEMO.is_file():
        pytest.skip(f"{DEMO} is missing: run `make package` first")
    model = Model(str(DEMO), n_slots=2, n_ctx=1024, n_threads=1)
    yield model
    model.close()


@pytest.fixture(scope="module")
def llama2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    model = Model(str(write_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")), n_slots=1, n_threads=1)
    yield model
    model.close()


def complete(model: Model, question: str, logprobs: int | None = None, **params: object) -> Request:
    tokens = model.tokenizer.tokenize_chat([{"role": "user", "content": question}])
    request = Request(tokens, SamplingParams(**{"temperature": 0, "max_tokens": 40, **params}), logprobs=logprobs)  # type: ignore[arg-type]
    engine = Engine(model)
    engine.submit(request)
    while not engine.is_idle:
        engine.step()
    return request


# --- grammars

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["name", "age"],
}


@pytest.mark.parametrize("seed", range(5))
def test_a_hot_answer_follows_its_schema_and_ends_with_it(demo: Model, seed: int) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    request = complete(demo, "Who is Ann?", temperature=2.0, top_k=0, seed=seed, max_tokens=500, response_format=form)
    answer = json.loads(request.take_text())
    assert request.finish_reason == "stop"
    assert isinstance(answer["name"], str) and 0 <= answer["age"] <= 120


@pytest.mark.parametrize("number", range(4), ids=lambda number: f"OpenAI {number}")
def test_an_answer_of_the_real_model_is_valid_against_a_schema_of_the_sample(demo: Model, number: int) -> None:
    _, schema = list(sample())[number]
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    request = complete(demo, "Make up an example.", max_tokens=300, response_format=form, temperature=0.7, seed=1)
    text = request.take_text()
    if request.finish_reason == "stop":
        jsonschema.validate(json.loads(text), schema)
    else:
        assert (request.finish_reason, request.error, len(request.completion)) == ("length", None, 300)


def test_a_grammar_leaves_an_answer_that_follows_it_anyway_as_it_is(demo: Model) -> None:
    question = "Describe a person named Ann, 30 years old, as JSON."
    free, bound = complete(demo, question), complete(demo, question, response_format={"type": "json_object"})
    assert free.take_text() == bound.take_text()


@pytest.mark.parametrize(
    "grammar", ['root ::= "yes" | "no"', 'root ::= ""', 'root ::= "🙂🙃"', 'root ::= "<|im_end|>"']
)
@pytest.mark.parametrize("ignore_eos", [False, True], ids=["", "ignore_eos"])
def test_an_answer_ends_where_its_grammar_ends(demo: Model, grammar: str, ignore_eos: bool) -> None:
    request = complete(demo, "Hello", grammar=grammar, ignore_eos=ignore_eos)
    assert request.finish_reason == "stop"
    assert request.take_text() in ["yes", "no", "", "🙂🙃", "<|im_end|>"]
    assert (f'"{request.take_text()}"' in grammar) or request.completion


def test_a_grammar_that_no_token_can_continue_fails_its_request_alone(demo: Model) -> None:
    request = complete(demo, "Hello", grammar="root ::= x{1}\nx ::= x{1}")
    assert request.finish_reason == "error"
    assert "cannot be continued" in (request.error or "")
    assert complete(demo, "Hello").finish_reason in ("stop", "length")


def test_an_ambiguous_grammar_does_not_stop_the_engine(demo: Model) -> None:
    request = complete(demo, "aaaaaaaaaaaaaaaa", grammar='root ::= s\ns ::= "a" s "b" | "a" s "c" | "a"')
    assert request.finish_reason == "length"


# --- what changes the choice


def test_a_bias_bans_or_forces_a_token(demo: Model) -> None:
    first = complete(demo, "Hello", max_tokens=1).completion[0]
    other = demo.tokenizer.tokenize("zebra")[0]
    assert complete(demo, "Hello", max_tokens=1, logit_bias={first: -100}).completion[0] != first
    assert complete(demo, "Hello", max_tokens=3, logit_bias={other: 100}).completion == [other] * 3


def test_penalties_count_generated_tokens_and_not_the_prompt(demo: Model) -> None:
    question = "Repeat: la la la la la la la la la la"
    free = complete(demo, question, ignore_eos=True).completion
    penalized = complete(demo, question, ignore_eos=True, frequency_penalty=2.0, presence_penalty=2.0).completion
    assert penalized[0] == free[0]
    assert len(set(penalized)) > len(set(free))


def test_a_temperature_just_above_zero_works_like_zero(demo: Model) -> None:
    assert complete(demo, "Hello", temperature=1e-40).completion == complete(demo, "Hello").completion


# --- log probabilities


def test_log_probabilities_are_those_before_any_sampler(demo: Model) -> None:
    request = complete(demo, "Hello", logprobs=20, max_tokens=5, ignore_eos=True)
    tokens = request.take_tokens()
    assert len(tokens) == 5
    for token in tokens:
        probabilities = [math.exp(one.logprob) for one in token.likeliest]
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0.3 < sum(probabilities) <= 1.0001
    banned = {demo.tokenizer.tokenize("zebra")[0]: 100.0}
    forced = complete(demo, "Hello", logprobs=1, max_tokens=1, logit_bias=banned).take_tokens()[0]
    assert forced.chosen.piece == b"z" or forced.chosen.piece.startswith(b"z")
    assert forced.chosen.logprob < -5
    assert forced.likeliest == tokens[0].likeliest[:1]


def test_the_log_probabilities_of_a_prompt_are_those_of_its_tokens_one_after_the_other(llama2: Model) -> None:
    prompt = llama2.tokenizer.tokenize("</s>Hello the user [INST] " * 12)
    request = Request(prompt, SamplingParams(max_tokens=0), prompt_logprobs=3)
    engine = Engine(llama2)
    engine.submit(request)
    run_to_end(engine)
    assert (request.finish_reason, request.completion, len(prompt) > llama2.n_outputs) == ("length", [], True)
    names = [llama2.tokenizer.piece(token, shows_control=True) for token in prompt[1:]]
    assert [token.chosen.piece for token in request.prompt_tokens] == names
    llama2.trim(0, 0)
    for place, (token, following) in enumerate(itertools.pairwise(prompt)):
        (index,) = llama2.decode([Chunk(0, place, [token], True)])
        both = (llama2.logprobs(index, following, 3, shows_control=True), request.prompt_tokens[place])
        alone, reported = ([each.logprob for each in (token.chosen, *token.likeliest)] for token in both)
        assert reported == pytest.approx(alone, abs=0.1)  # the KV cache is rounded; other tokens differ by whole units
    llama2.trim(0, 0)


def test_a_likeliest_token_of_a_prompt_has_the_same_number_in_both_places(demo: Model) -> None:
    """lm-eval compares the two to know whether a prompt is what the model would have written."""
    answer = complete(demo, "Count from one to ten.", max_tokens=20)
    request = Request([*answer.prompt, *answer.completion], SamplingParams(max_tokens=0), prompt_logprobs=1)
    engine = Engine(demo)
    engine.submit(request)
    run_to_end(engine)
    scored = request.prompt_tokens[len(answer.prompt) - 1 :]
    assert [token.chosen.logprob == token.likeliest[0].logprob for token in scored] == [True] * len(answer.completion)


def test_a_forbidden_end_token_is_reported_among_the_likeliest(demo: Model) -> None:
    answer = complete(demo, "Say only: yes", logprobs=5, ignore_eos=True, max_tokens=40)
    names = [one.piece for token in answer.take_tokens() for one in token.likeliest]
    assert b"<|im_end|>" in names
    assert b"<|im_end|>" not in [demo.tokenizer.piece(token, shows_control=True) for token in answer.completion]


def test_the_bytes_of_all_tokens_are_the_text(demo: Model) -> None:
    answer = complete(demo, "Say: naïve café 🙂 日本語", logprobs=0, max_tokens=60, temperature=1.0, seed=4)
    tokens = answer.take_tokens()
    text = answer.take_text()
    raw = b"".join(token.chosen.piece for token in tokens)
    assert raw.decode(errors="ignore") == text
    assert all(token.likeliest == () for token in tokens)


def test_a_q8_0_cache_takes_half_the_memory_and_gives_nearly_the_same_logits(demo: Model) -> None:
    small = Model(str(DEMO), n_slots=2, n_ctx=1024, n_threads=1, kv_cache_type="q8_0")
    question = "What is the closest star to Earth?"
    likeliest = [complete(model, question, logprobs=1, max_tokens=1).take_tokens()[0] for model in (demo, small)]
    ratio = small.state_size(0) / demo.state_size(0)
    small.close()
    assert likeliest[0].chosen.piece == likeliest[1].chosen.piece
    assert abs(likeliest[0].chosen.logprob - likeliest[1].chosen.logprob) < 0.2
    assert 0.5 < ratio < 0.6
