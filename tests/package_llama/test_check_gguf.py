"""The check of quantized GGUF files, with a tiny model and with the demo model."""

import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, ReaderTensor

from package_llama import check_gguf
from package_llama.check_gguf import CheckFailed, check
from package_llama.gguf_header import read_head
from package_llama.quantize import quantize_gguf
from tests.support.tiny_llama import write_tiny_llama
from torchserve_client.archives import read_archive
from torchserve_client.config import PROJECT

NAN = struct.pack("<e", float("nan"))


@pytest.fixture(scope="module")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny") / "source.gguf")


@pytest.fixture
def tiny_made(tiny_source: Path, tmp_path: Path) -> Path:
    """The tiny model as Q8_0."""
    quantize_gguf(tiny_source, tmp_path / "made.gguf", "Q8_0")
    return tmp_path / "made.gguf"


def tensor_of(path: Path, name: str) -> ReaderTensor:
    return next(tensor for tensor in read_head(path).tensors if tensor.name == name)


def test_quantizing_rounds_matrices_and_not_norms(tiny_made: Path) -> None:
    assert tensor_of(tiny_made, "blk.0.attn_q.weight").tensor_type == GGMLQuantizationType.Q8_0
    assert tensor_of(tiny_made, "output_norm.weight").tensor_type == GGMLQuantizationType.F32


def test_llama_cpp_works_on_in_the_process_that_quantized(tiny_source: Path, tmp_path: Path) -> None:
    """It would crash if llama.cpp called a log callback that Python has freed."""
    script = (
        "import sys, llama_cpp; from pathlib import Path; from package_llama.quantize import quantize_gguf\n"
        "quantize_gguf(Path(sys.argv[1]), Path(sys.argv[2]), 'Q8_0')\n"
        "llama_cpp.llama_model_load_from_file(sys.argv[2].encode(), llama_cpp.llama_model_default_params())"
    )
    program = [sys.executable, "-c", script, str(tiny_source), str(tmp_path / "made.gguf")]
    assert subprocess.run(program, cwd=PROJECT, stderr=subprocess.DEVNULL).returncode == 0


def test_a_good_file_is_described_in_one_line(tiny_source: Path, tiny_made: Path) -> None:
    line = check(tiny_made, tiny_source, "Q8_0")
    figures, judgement = line.split("; ")
    assert re.fullmatch(
        r"Checked: Q8_0, 0\.00 GB, perplexity [\d,.]+, \d\.\d{3} times its source's \(384 tokens\)", figures
    )
    assert judgement == "not compared, both guess among 275 tokens"


def with_nan(made: Path) -> None:
    """In the scale of a block of the first attention weights."""
    offset = tensor_of(made, "blk.0.attn_q.weight").data_offset
    with made.open("rb+") as file:
        file.seek(offset)
        file.write(NAN)


def with_another_shape(made: Path) -> None:
    """Half as many rows in one tensor. The number of dimensions and the dimensions follow the name."""
    content = bytearray(made.read_bytes())
    position = content.index(b"blk.0.ffn_up.weight") + len(b"blk.0.ffn_up.weight") + 4 + 8
    (rows,) = struct.unpack_from("<Q", content, position)
    struct.pack_into("<Q", content, position, rows // 2)
    made.write_bytes(content)


def with_another_format(made: Path) -> None:
    """One tensor is Q4_0. The number of dimensions, two dimensions and the format follow the name."""
    content = bytearray(made.read_bytes())
    position = content.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16
    struct.pack_into("<I", content, position, GGMLQuantizationType.Q4_0)
    made.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "quantization", "reason"),
    [
        (with_nan, "Q8_0", "it cannot be loaded: .*invalid data"),
        (with_another_shape, "Q8_0", "1 of 12 tensors are missing or have another shape"),
        (with_another_format, "Q8_0", "blk.0.attn_q.weight is Q4_0, which is not part of Q8_0"),
        (lambda made: None, "Q4_0", "its type is 7, not 2"),
    ],
    ids=["NaN", "shape", "format", "type"],
)
def test_a_broken_file_is_refused_with_the_reason(
    tiny_source: Path, tiny_made: Path, spoil: Callable[[Path], None], quantization: str, reason: str
) -> None:
    spoil(tiny_made)
    with pytest.raises(CheckFailed, match=reason):
        check(tiny_made, tiny_source, quantization)


def test_a_file_that_predicts_much_worse_than_its_source_is_refused(
    demo_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_gguf, "MAX_TOKENS", 48)
    source = read_archive(demo_store / "llamacpp.tar.gz").model_path
    assert source
    made = Path(shutil.copy(source, tmp_path / "made.gguf"))
    assert re.search("perplexity .*, 1.000 times its source's", check(made, source, "Q8_0"))
    np.memmap(made, mode="r+")[tensor_of(made, "blk.0.ffn_down.weight").data_offset :][: 576 * 1536] = 0

    with pytest.raises(CheckFailed, match=r"its perplexity is [\d,.]+ times that of .*, and the limit is 1.05"):
        check(made, source, "Q8_0")
