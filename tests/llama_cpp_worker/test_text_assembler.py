"""When text and tokens are released: whole characters only, and nothing of a stop string."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from llama_cpp_worker.sampling_params import SampledToken, TokenLogprob
from llama_cpp_worker.text_assembler import TextAssembler


def split(raw: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({cut % (len(raw) + 1) for cut in cuts} | {0, len(raw)})
    return [raw[start:end] for start, end in itertools.pairwise(ends)]


def push(assembler: TextAssembler, piece: bytes) -> tuple[str, bytes]:
    """The released text, and the bytes of the released tokens."""
    text = assembler.push(piece, SampledToken(TokenLogprob(piece, -1.0), ()))
    return text, released_bytes(assembler)


def released_bytes(assembler: TextAssembler) -> bytes:
    return b"".join(token.chosen.piece for token in assembler.take_tokens())


@given(st.text(), st.lists(st.integers(0, 10_000)))
def test_any_split_of_utf8_text_gives_the_original_text(text: str, cuts: list[int]) -> None:
    assembler = TextAssembler()
    pieces = [assembler.push(piece) for piece in split(text.encode(), cuts)]
    assert "".join(pieces) + assembler.finish() == text


@given(st.text("abAB", max_size=40), st.lists(st.text("abAB", min_size=1, max_size=4), max_size=3), st.data())
def test_a_stop_string_cuts_at_one_place_for_any_split(text: str, stop: list[str], data: st.DataObject) -> None:
    ends = [text.find(string) + len(string) for string in stop if string in text]
    first_complete = [string for string in stop if string in text and text.find(string) + len(string) == min(ends)]
    expected = text[: min(ends) - max(map(len, first_complete))] if ends else text

    assembler, released = TextAssembler(stop), ""
    for piece in split(text.encode(), data.draw(st.lists(st.integers(0, 10_000)))):
        released += assembler.push(piece)
        assert expected.startswith(released), "a part of a stop string was released"
        if assembler.is_stopped:
            break
    assert assembler.is_stopped == bool(ends)
    assert assembler.stop_string == (max(first_complete, key=len) if ends else None)
    assert released + assembler.finish() == expected


def test_bytes_of_an_incomplete_character_are_left_out_at_the_end() -> None:
    assembler = TextAssembler()
    assert assembler.push("né🦙".encode()[:-2]) + assembler.finish() == "né"


@given(st.text(), st.lists(st.integers(0, 10_000)))
def test_without_stop_strings_every_token_is_released_after_its_text(text: str, cuts: list[int]) -> None:
    assembler = TextAssembler()
    shown, token_bytes = "", b""
    for piece in split(text.encode(), cuts):
        more, tokens = push(assembler, piece)
        shown, token_bytes = shown + more, token_bytes + tokens
        assert shown.encode().startswith(token_bytes)
    assembler.finish()
    assert token_bytes + released_bytes(assembler) == text.encode()


@given(st.text("ab🙂", max_size=20), st.text("ab🙂", min_size=1, max_size=3), st.lists(st.integers(0, 100)))
def test_no_released_token_contains_a_part_of_a_stop_string(text: str, stop: str, cuts: list[int]) -> None:
    assembler = TextAssembler([stop])
    token_bytes = b""
    for piece in split(text.encode(), cuts):
        token_bytes += push(assembler, piece)[1]
        if assembler.is_stopped:
            break
    assembler.finish()
    token_bytes += released_bytes(assembler)
    before = text.partition(stop)[0].encode()
    assert before.startswith(token_bytes)
    if stop not in text:
        assert token_bytes == text.encode()


def test_the_tokens_of_an_incomplete_character_are_released_at_the_end() -> None:
    assembler = TextAssembler(["x"])
    assert push(assembler, b"a\xf0\x9f") == ("a", b"")
    assert assembler.finish() == ""
    assert released_bytes(assembler) == b"a\xf0\x9f"
