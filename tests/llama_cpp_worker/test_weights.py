"""The weights of a tiny Llama 2: what identifies a file, and the memory of a KV cache."""

from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import pytest

from llama_cpp_worker.weights import Weights
from tests.support.tiny_llama import write_tiny_llama


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Weights]:
    weights = Weights(str(write_tiny_llama(tmp_path / "tiny.gguf")))
    yield weights
    weights.close()


def test_the_fingerprint_depends_on_the_file_and_n_ctx(tiny: Weights, tmp_path: Path) -> None:
    same, other = Weights(tiny.path), Weights(str(write_tiny_llama(tmp_path / "other.gguf")))
    fingerprints = [weights.fingerprint(1024) for weights in (tiny, same, other)]
    same.close()
    other.close()
    assert fingerprints[0] == fingerprints[1]
    assert len({*fingerprints, tiny.fingerprint(2048)}) == 3


def test_the_size_of_a_head_in_the_file_counts_for_the_memory_of_the_cache(
    tiny: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = tiny.cache_bytes_per_token("f16")
    sizes = {"key": "32", "value": "64"}
    n_embd, n_head = llama_cpp.llama_model_n_embd(tiny.pointer), llama_cpp.llama_model_n_head(tiny.pointer)

    def metadata(_: object, key: str) -> str:
        return sizes[key.split(".")[-1].removesuffix("_length")] if "attention" in key else "qwen3"

    monkeypatch.setattr("llama_cpp_worker.weights.metadata", metadata)
    assert tiny.cache_bytes_per_token("f16") == usual * (32 + 64) / (2 * (n_embd // n_head))
