"""Which tokens are told of, and when: with their text, and never one with a part of a stop string in it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llama_cpp_worker.engine import Engine, Request
from llama_cpp_worker.sampler import SamplingError
from llama_cpp_worker.sampling_params import SampledToken, SamplingParams, TokenLogprob
from llama_cpp_worker.text_assembler import TextAssembler
from tests.support.scripted_model import ScriptedModel


def split(raw: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({cut % (len(raw) + 1) for cut in cuts} | {0, len(raw)})
    return [raw[start:end] for start, end in zip(ends, ends[1:], strict=False)]


def push(assembler: TextAssembler, piece: bytes) -> tuple[str, bytes]:
    """The text that has come out, and the bytes of the tokens that have."""
    text = assembler.push(piece, SampledToken(TokenLogprob(piece, -1.0), ()))
    return text, told(assembler)


def told(assembler: TextAssembler) -> bytes:
    return b"".join(token.chosen.piece for token in assembler.take_tokens())


@given(st.text(), st.lists(st.integers(0, 10_000)))
def test_without_stop_strings_every_token_is_told_of_and_never_before_its_text(text: str, cuts: list[int]) -> None:
    assembler = TextAssembler()
    shown, bytes_told = "", b""
    for piece in split(text.encode(), cuts):
        more, tokens = push(assembler, piece)
        shown, bytes_told = shown + more, bytes_told + tokens
        assert shown.encode().startswith(bytes_told)
    assembler.finish()
    assert bytes_told + told(assembler) == text.encode()


@given(st.text("ab🙂", max_size=20), st.text("ab🙂", min_size=1, max_size=3), st.lists(st.integers(0, 100)))
def test_no_token_tells_a_part_of_a_stop_string(text: str, stop: str, cuts: list[int]) -> None:
    assembler = TextAssembler([stop])
    bytes_told = b""
    for piece in split(text.encode(), cuts):
        bytes_told += push(assembler, piece)[1]
        if assembler.is_stopped:
            break
    assembler.finish()
    bytes_told += told(assembler)
    before = text.partition(stop)[0].encode()
    assert before.startswith(bytes_told)
    if stop not in text:
        assert bytes_told == text.encode()


def test_an_unfinished_character_at_the_end_is_told_of_by_its_bytes() -> None:
    assembler = TextAssembler(["x"])
    assert push(assembler, b"a\xf0\x9f") == ("a", b"")
    assert assembler.finish() == ""
    assert told(assembler) == b"a\xf0\x9f"


def test_a_request_tells_of_its_tokens_only_if_asked() -> None:
    asked, unasked = (
        Request(list(b"1>"), SamplingParams(max_tokens=5, stop=("cd",)), logprobs=logprobs) for logprobs in (2, None)
    )
    engine = Engine(ScriptedModel(script=b"abcde"))
    for request in (asked, unasked):
        engine.submit(request)
    while not engine.is_idle:
        engine.step()
    tokens = asked.take_tokens()
    assert [token.chosen.piece for token in tokens] == [b"a", b"b"]
    assert [len(token.likeliest) for token in tokens] == [2, 2]
    assert asked.take_text() == unasked.take_text() == "ab"
    assert unasked.take_tokens() == []


def test_a_token_that_cannot_be_chosen_ends_its_request_with_an_error_and_no_other() -> None:
    class Stuck(ScriptedModel):
        def sample(self, sampler, index, *, forbid_end):  # type: ignore[no-untyped-def]
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
