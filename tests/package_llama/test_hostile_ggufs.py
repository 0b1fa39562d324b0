"""Thousands of damaged GGUF files: package_llama.sh refuses each one that the worker cannot serve, with a sentence.

HOSTILE_GGUFS is the number of files (docs/CONTRIBUTING.md). Each one is a tiny Llama with a mutation that its number
determines. One in 100 goes through the script itself, the others only through the check that the script makes; there,
a forked process takes the place of the program that asks llama.cpp.
"""

import faulthandler
import os
import random
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from llama_cpp_worker.model import Model
from package_llama import given_gguf
from package_llama.errors import PackagingError
from package_llama.gguf_header import read_head
from package_llama.probe_gguf import probe
from tests.support.packaged_project import BASH, Project
from tests.support.tiny_llama import write_tiny_llama

pytest_plugins = ["tests.support.packaging_fixtures"]

N_FILES = int(os.environ.get("HOSTILE_GGUFS", "40"))
MAX_SECONDS, MAX_BYTES = 60, 2 * 2**30  # of each process, and above what pytest had; usual are 0.1 s and 0.3 GB
NUMBERS = (0, 1, 2, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)


class Mutator:
    """Damages `content`, a GGUF file. places: the positions of all numbers in its head that describe its structure."""

    def __init__(self, path: Path) -> None:
        head, self.content = read_head(path), path.read_bytes()
        self.head_bytes = int(head.data_offset)
        self.places = {4: "<I", 8: "<Q", 16: "<Q"}  # version, number of tensors, number of fields
        for name, field in head.fields.items():
            if not name.startswith("GGUF."):
                kind = field.offset + 8 + len(name.encode())
                self.places |= {field.offset: "<Q", kind: "<I", kind + 4: "<I", kind + 8: "<Q"}
        for tensor in head.tensors:
            begin, n_dims = tensor.field.offset, len(tensor.shape)
            dims = begin + 8 + len(tensor.name.encode())
            self.places |= {begin: "<Q", dims: "<I", dims + 4 + 8 * n_dims: "<I", dims + 8 + 8 * n_dims: "<Q"}
            self.places |= {dims + 4 + 8 * each: "<Q" for each in range(n_dims)}

    def mutated(self, number: int) -> bytes:
        dice = random.Random(number)
        content = bytearray(self.content)
        kind = dice.choice(["cut", "cut head", "flip", "flip", "number", "number", "number", "text", "drop"])
        if kind.startswith("cut"):
            return bytes(content[: dice.randrange(self.head_bytes if kind == "cut head" else len(content))])
        if kind == "drop":  # some bytes are lost
            begin = dice.randrange(4, self.head_bytes)
            del content[begin : begin + dice.choice([1, 4, 8, 32, 1000])]
        for _ in range(dice.choice([1, 1, 1, 2, 4])):
            if kind == "flip":
                content[dice.randrange(4, self.head_bytes)] ^= 1 << dice.randrange(8)
            elif kind == "number":
                place, layout = dice.choice(sorted(self.places.items()))
                old = struct.unpack_from(layout, content, place)[0]
                new = dice.choice([*NUMBERS, *range(14), old + 1, old - 1, old * 2]) % 256 ** struct.calcsize(layout)
                struct.pack_into(layout, content, place, new)
            elif kind == "text":
                begin = dice.randrange(4, self.head_bytes)
                content[begin : begin + 8] = dice.randbytes(8)
        return bytes(content)


def in_child(function: Callable[[Path], object], path: Path) -> str:
    """Runs `function` in a forked process. Returns its exception, the signal that ended it, or nothing."""
    reading, writing = os.pipe()
    bytes_before = psutil.Process().memory_info().rss  # the child begins with all that pytest has
    child = os.fork()
    if child == 0:
        try:
            faulthandler.disable()  # pytest has switched it on
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(MAX_SECONDS)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            function(path)
        except BaseException as error:  # the process ends in any case
            os.write(writing, repr(error).encode() or b"unknown")
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        reason = pipe.read().decode()
    _, status, usage = os.wait4(child, 0)
    n_bytes = usage.ru_maxrss * 1024 - bytes_before
    assert n_bytes < MAX_BYTES, f"{path} took {n_bytes} bytes"
    return reason or (f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "")


def serve(path: Path) -> None:
    """What the worker does when it starts, and the tokens of a first question."""
    model = Model(str(path), n_slots=1, n_ctx=256)
    assert model.tokenizer.tokenize_chat([{"role": "user", "content": "Hello"}])


def probe_in_child(_: str, path: str, *, purpose: str, **others: str) -> None:
    reason = in_child(probe, Path(path))
    assert "signal 14" not in reason, "it takes too long"
    if reason:
        raise PackagingError(f"{purpose} failed ({reason})")


@pytest.mark.timeout(7200)
def test_no_damaged_gguf_is_packed(real_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given_gguf, "run", probe_in_child)
    monkeypatch.setenv("GGML_NO_BACKTRACE", "1")
    whole, path = write_tiny_llama(tmp_path / "whole.gguf"), tmp_path / "damaged.gguf"
    mutator, bad, n_taken = Mutator(whole), [], 0
    assert in_child(serve, whole) == "" and given_gguf.check_given(whole) == [whole]
    for number in range(N_FILES):
        path.write_bytes(mutator.mutated(number))
        refusal = ""
        try:
            given_gguf.check_given(path)
        except PackagingError as error:
            refusal = str(error)
            assert str(path) in refusal and "\n" not in refusal, (number, refusal)
        else:
            n_taken += 1
            if reason := in_child(serve, path):
                bad.append((number, reason))
        if number % 100 == 1:
            outcome = real_project.run(BASH, path)
            assert (outcome.status == 0) == (refusal == ""), (number, refusal, outcome)
            assert len(outcome.stderr.splitlines()) == bool(refusal) and "Traceback" not in outcome.stderr, outcome
            assert outcome.status != 0 or real_project.config()["handler"]["model_path"] == str(path)
    print(f"{N_FILES} files: {n_taken} taken and served, {N_FILES - n_taken} refused")
    assert bad == [], f"{len(bad)} of {n_taken}: {bad}"
