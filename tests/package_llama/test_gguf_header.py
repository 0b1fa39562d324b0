"""Reading the heads of whole, cut and changed GGUF files. test_hostile_ggufs.py has many more."""

from pathlib import Path

import pytest

from package_llama.gguf_header import InvalidGguf, read_head, read_tensors
from tests.support.tiny_llama import N_EMBD, TEMPLATE, write_parts, write_tiny_llama


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def test_a_head_has_metadata_and_tensors_but_no_values_of_arrays(tiny: Path) -> None:
    head = read_head(tiny)
    assert head.fields["tokenizer.chat_template"].contents() == TEMPLATE
    assert head.fields["tokenizer.ggml.tokens"].data == []
    assert head.fields["tokenizer.ggml.scores"].data == []
    shapes = {tensor.name: tensor.shape.tolist() for tensor in head.tensors}
    assert shapes["blk.0.attn_q.weight"] == [N_EMBD, N_EMBD]
    last = max(head.tensors, key=lambda tensor: tensor.data_offset)
    assert last.data_offset + last.n_bytes == tiny.stat().st_size


@pytest.mark.parametrize("n_bytes", [0, 3, 4, 20, 400, 6000, -1])
def test_a_file_that_is_cut_short_is_invalid(tiny: Path, tmp_path: Path, n_bytes: int) -> None:
    (tmp_path / "cut.gguf").write_bytes(tiny.read_bytes()[:n_bytes])
    with pytest.raises(InvalidGguf, match=r"cut\.gguf is (empty|not a GGUF file|damaged or incomplete)"):
        read_head(tmp_path / "cut.gguf")


@pytest.mark.parametrize("place", [8, 16], ids=["tensors", "fields"])
def test_absurd_counts_are_refused_before_anything_is_counted(tiny: Path, tmp_path: Path, place: int) -> None:
    content = bytearray(tiny.read_bytes())
    content[place : place + 8] = b"\xff" * 8
    (tmp_path / "many.gguf").write_bytes(content)
    with pytest.raises(InvalidGguf, match=r"its head names 18,446,744,073,709,551,615 (tensors|fields)"):
        read_head(tmp_path / "many.gguf")


def test_the_tensors_of_a_split_model_are_those_of_all_parts(tiny: Path) -> None:
    parts = write_parts(tiny, 3)
    assert {tensor.name for tensor in read_tensors(parts[0])} == {tensor.name for tensor in read_tensors(tiny)}
    assert len(read_tensors(parts[0])) == 12


def test_a_tensor_position_beyond_64_bits_is_invalid(tiny: Path, tmp_path: Path) -> None:
    """The number of dimensions, two dimensions, the type and the position follow the name."""
    content = bytearray(tiny.read_bytes())
    position = content.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16 + 4
    content[position : position + 8] = b"\xff" * 8
    (tmp_path / "far.gguf").write_bytes(content)
    with pytest.raises(InvalidGguf, match=r"far\.gguf is damaged or incomplete"):
        read_head(tmp_path / "far.gguf")
