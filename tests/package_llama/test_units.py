"""Parts of package_llama/ by themselves: a GGUF's head, what makes a file unsound, the words of progress."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from package_llama import console
from package_llama.check_gguf import CheckFailed, examine
from package_llama.gguf_header import InvalidGguf, read_head
from package_llama.quantize import quantize_gguf
from package_llama.weight_types import F32, Q8_0
from tests.support.tiny_llama import N_CTX, N_EMBD, TEMPLATE, write_tiny_llama
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


def test_llama_cpp_can_go_on_in_the_program_that_has_quantized(tiny_source: Path, tmp_path: Path) -> None:
    """A log callback that Python has freed would end it."""
    script = (
        "import sys, llama_cpp; from pathlib import Path; from package_llama.quantize import quantize_gguf\n"
        "quantize_gguf(Path(sys.argv[1]), Path(sys.argv[2]), 'Q8_0')\n"
        "llama_cpp.llama_model_load_from_file(sys.argv[2].encode(), llama_cpp.llama_model_default_params())"
    )
    program = [sys.executable, "-c", script, str(tiny_source), str(tmp_path / "made.gguf")]
    assert subprocess.run(program, cwd=PROJECT, stderr=subprocess.DEVNULL).returncode == 0


def test_head_of_a_gguf_has_its_metadata_and_tensors(tiny_source: Path, tiny_made: Path) -> None:
    source, made = read_head(tiny_source), read_head(tiny_made)
    assert source.metadata["llama.context_length"] == N_CTX
    assert source.metadata["tokenizer.chat_template"] == TEMPLATE
    assert "tokenizer.ggml.tokens" not in source.metadata  # an array
    assert source.tensors["blk.0.attn_q.weight"].shape == (N_EMBD, N_EMBD)
    assert source.f16_file_bytes == tiny_source.stat().st_size
    kinds = {name: tensor.kind for name, tensor in made.tensors.items()}
    assert (kinds["blk.0.attn_q.weight"], kinds["output_norm.weight"]) == (Q8_0, F32)


@pytest.mark.parametrize("length", [0, 3, 20, 400])
def test_head_that_is_cut_short_is_broken(tiny_source: Path, tmp_path: Path, length: int) -> None:
    (tmp_path / "cut.gguf").write_bytes(tiny_source.read_bytes()[:length])
    with pytest.raises(InvalidGguf, match=r"cut\.gguf"):
        read_head(tmp_path / "cut.gguf")


def test_sound_file_is_one_line_with_size_type_and_perplexity(tiny_source: Path, tiny_made: Path) -> None:
    line = examine(tiny_made, tiny_source, "Q8_0")
    figures, judgement = line.split("; ")
    assert re.fullmatch(
        r"Sound: Q8_0, 0\.00 GB, perplexity [\d,.]+, \d\.\d{3} times its source's \(384 tokens\)", figures
    )
    assert judgement == "not judged, both guess among 275 tokens, like random weights"


def cut_short(made: Path) -> None:
    with made.open("rb+") as file:
        file.truncate(made.stat().st_size - 1000)


def with_nan(made: Path) -> None:
    """In the scale of a block of the first attention weights."""
    head = read_head(made)
    with made.open("rb+") as file:
        file.seek(head.weights_begin + head.tensors["blk.0.attn_q.weight"].offset)
        file.write(NAN)


def with_another_shape(made: Path) -> None:
    """Half as many rows in one tensor; its name is followed by the number of dimensions and by these."""
    content = bytearray(made.read_bytes())
    place = content.index(b"blk.0.ffn_up.weight") + len(b"blk.0.ffn_up.weight") + 4 + 8
    (rows,) = struct.unpack_from("<Q", content, place)
    struct.pack_into("<Q", content, place, rows // 2)
    made.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "quantization", "reason"),
    [
        (cut_short, "Q8_0", "it cannot be loaded: "),
        (with_nan, "Q8_0", "it cannot be loaded: .*invalid data"),
        (with_another_shape, "Q8_0", "1 of 12 tensors are missing or have another shape"),
        (lambda made: None, "Q4_0", "it says to be of type 7, not 2"),
    ],
    ids=["cut", "NaN", "shape", "type"],
)
def test_unsound_file_is_refused_with_the_reason(
    tiny_source: Path, tiny_made: Path, spoil: Callable[[Path], None], quantization: str, reason: str
) -> None:
    spoil(tiny_made)
    with pytest.raises(CheckFailed, match=reason):
        examine(tiny_made, tiny_source, quantization)


def test_file_that_predicts_much_worse_than_its_source_is_unsound(demo_store: Path, tmp_path: Path) -> None:
    source = read_archive(demo_store / "llamacpp.tar.gz").model_path
    assert source
    made = Path(shutil.copy(source, tmp_path / "made.gguf"))
    assert re.search("perplexity .*, 1.000 times its source's", examine(made, source, "Q8_0"))
    head = read_head(made)
    with made.open("rb+") as file:  # zeros instead of one layer's weights of one kind
        file.seek(head.weights_begin + head.tensors["blk.0.ffn_down.weight"].offset)
        file.write(bytes(head.tensors["blk.0.ffn_down.weight"].n_elements * 34 // 32))

    with pytest.raises(CheckFailed, match=r"its perplexity is [\d,.]+ times that of .*, where 1.05 is the most"):
        examine(made, source, "Q8_0")


@pytest.mark.parametrize(
    ("seconds", "fraction", "words"),
    [
        (0.5, 0.1, "Writing: 10 %"),
        (10, 0.25, "Writing: 25 %, about 30 s left"),
        (60, 0.2, "Writing: 20 %, about 4 min left"),
        (60, 1.0, "Writing: 100 %"),
    ],
)
def test_progress_tells_the_time_left(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seconds: float,
    fraction: float,
    words: str,
) -> None:
    progress = console.Progress("Writing")
    for now, done in ((100.0, 0.0), (100 + seconds, fraction)):
        monkeypatch.setattr(console.time, "monotonic", lambda now=now: now)
        progress.show(done)
    assert capsys.readouterr().err.splitlines() == ["Writing: 0 %", words]
