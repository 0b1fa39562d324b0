"""GGUF files that a person gives: what package_llama.sh says about each kind, and models that are split into parts."""

import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from package_llama.errors import PackagingError
from package_llama.gguf_header import read_head, read_tensors
from package_llama.given_gguf import check_given
from package_llama.subprocesses import run
from tests.support.packaged_project import BASH, Project
from tests.support.tiny_llama import TEMPLATE, write_parts, write_tiny_llama

pytest_plugins = ["tests.support.packaging_fixtures"]


def with_bytes(content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "given.gguf").write_bytes(content)
        return folder / "given.gguf"

    return write


def with_head(**head: object) -> Callable[[Path], Path]:
    return lambda folder: write_tiny_llama(folder / "given.gguf", **head)  # type: ignore[arg-type]


def with_version(layout: str, version: int) -> Callable[[Path], Path]:
    return with_bytes(b"GGUF" + struct.pack(layout, version) + bytes(60))


def cut(folder: Path) -> Path:
    content = write_tiny_llama(folder / "whole.gguf").read_bytes()
    return with_bytes(content[: len(content) // 2])(folder)


def with_a_broken_template(folder: Path) -> Path:
    content = write_tiny_llama(folder / "whole.gguf").read_bytes()
    return with_bytes(content.replace(TEMPLATE.encode(), TEMPLATE.replace("{%", "{{").encode()))(folder)


def with_a_renamed_tensor(folder: Path) -> Path:
    content = write_tiny_llama(folder / "whole.gguf").read_bytes()
    return with_bytes(content.replace(b"ffn_up.weight", b"ffn_xx.weight"))(folder)


def second_part(folder: Path) -> Path:
    return write_parts(write_tiny_llama(folder / "big.gguf"), 3)[1]


def without_a_part(folder: Path) -> Path:
    parts = write_parts(write_tiny_llama(folder / "big.gguf"), 3)
    parts[2].unlink()
    return parts[0]


def with_a_cut_part(folder: Path) -> Path:
    parts = write_parts(write_tiny_llama(folder / "big.gguf"), 3)
    parts[2].write_bytes(parts[2].read_bytes()[:-100])
    return parts[0]


def renamed_part(folder: Path) -> Path:
    return write_parts(write_tiny_llama(folder / "big.gguf"), 3)[0].rename(folder / "joined.gguf")


REFUSED = {
    "empty": (with_bytes(b""), "is empty: download it again."),
    "only the first word": (with_bytes(b"GGUF"), "is damaged or incomplete (it has 4 bytes"),
    "cut": (cut, "is damaged or incomplete (it has "),
    "version 1": (with_version("<I", 1), "is of GGUF version 1, and llama.cpp reads 2 and 3: give another file."),
    "big-endian": (with_version(">I", 3), "is a big-endian GGUF file: download the model for usual"),
    "web page": (with_bytes(b"\n<!DOCTYPE html><html>"), "is a web page, not a GGUF file: download the file itself"),
    "LFS": (with_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer, not a GGUF file: run"),
    "safetensors": (with_bytes(struct.pack("<Q", 90) + b'{"__metadata__":{}}'), "is a safetensors file, not a GGUF"),
    "PyTorch": (with_bytes(b"PK\x03\x04model"), "is a zip or PyTorch file, not a GGUF file: give the snapshot folder"),
    "old format": (with_bytes(b"tjgg\3\0\0\0"), "of before August 2023, not a GGUF file: download the model as GGUF."),
    "projector": (with_head(architecture="clip"), "is a vision projector, which only adds pictures to a model: give"),
    "adapter": (with_head(kind="adapter"), "is a LoRA adapter: merge it into its base model first"),
    "encoder": (with_head(architecture="bert", is_causal=False), "is an encoder for embeddings (bert), which cannot"),
    "unknown architecture": (with_head(architecture="llama9"), "llama.cpp failed (unknown model architecture: 'llama9"),
    "tensors missing": (with_a_renamed_tensor, "'blk.0.ffn_up.weight' not found): give another"),
    "broken template": (
        with_a_broken_template,
        "failed (its vocabulary or chat template cannot be used: the chat template cannot",
    ),
    "second part": (second_part, "is part 2 of 3: give the first one, big-00001-of-00003.gguf."),
    "part missing": (without_a_part, "and big-00003-of-00003.gguf cannot be found beside it: download all parts."),
    "part cut": (with_a_cut_part, "big-00003-of-00003.gguf is damaged or incomplete"),
    "part renamed": (renamed_part, "does not end in -00001-of-00003.gguf: give the parts their names back"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_be_served_is_refused_with_a_sentence(tmp_path: Path, case: str) -> None:
    write, words = REFUSED[case]
    path = write(tmp_path)
    with pytest.raises(PackagingError) as refusal:
        check_given(path)
    assert words in str(refusal.value) and str(tmp_path) in str(refusal.value)
    assert re.fullmatch(r".+\.", str(refusal.value))


def test_a_process_that_llama_cpp_ends_is_a_sentence_too() -> None:
    code = "import os; os.abort()"
    with pytest.raises(
        PackagingError, match=r"Loading x failed \(it was ended by SIGABRT\): correct that, then run the same"
    ):
        run("timeit", "-n", "1", code, purpose="Loading x")


def test_the_first_part_may_have_no_weights(tmp_path: Path) -> None:
    parts = write_parts(write_tiny_llama(tmp_path / "a.gguf"), 3, first_is_empty=True)
    assert not read_head(parts[0]).tensors and check_given(parts[0]) == parts


def test_replace_does_not_overwrite_its_own_source(real_project: Project, tmp_path: Path) -> None:
    (real_project.root / "models").mkdir()
    own = write_tiny_llama(real_project.root / "models" / "mine-Q8_0.gguf")  # of another type than its name says
    content = own.read_bytes()
    (tmp_path / "mine.gguf").symlink_to(own)
    outcome = real_project.run(BASH, tmp_path / "mine.gguf", "--quantization", "Q8_0", "--replace")
    assert outcome.status == 1 and "is the source itself" in outcome.stderr
    assert own.read_bytes() == content


def test_a_model_in_parts_is_served_where_it_is_and_requantized_to_one_file(
    real_project: Project, tmp_path: Path
) -> None:
    folder = tmp_path / "a\nfolder"
    folder.mkdir()
    first = write_parts(write_tiny_llama(folder / "Grün 🦙.gguf"), 3)[0]
    assert real_project.run(BASH, first).status == 0
    assert real_project.config()["handler"]["model_path"] == str(first)

    outcome = real_project.run(BASH, first, "--quantization", "Q8_0")

    assert outcome.status == 0, outcome
    assert real_project.ggufs() == {"Grün 🦙-Q8_0.gguf"}
    made = real_project.root / "models" / "Grün 🦙-Q8_0.gguf"
    assert len(read_tensors(made)) == 12 and check_given(made) == [made]
