"""package_llama.sh with the real tools: a small Llama 2 with random weights, and the demo model.

The full size of Llama 2 7B: benchmarks/packaging.py.
"""

import re
import subprocess
from pathlib import Path

import llama_cpp
import pytest

from package_llama.gguf_header import read_head
from tests.support.packaged_project import BASH, PROJECT, SOURCED_BASH, Project
from tests.support.synthetic_llama import Size, llama_2_tensors, write_snapshot

pytest_plugins = ["tests.support.packaging_fixtures"]

SMALL = Size(n_layers=2, width=256, n_ff=512, n_heads=4, n_vocab=1000)  # 256: the block size of the K types


@pytest.fixture
def small_snapshot(tmp_path: Path) -> Path:
    """Two safetensors files, and a SentencePiece vocabulary of English."""
    snapshot = write_snapshot(tmp_path / "Tiny-Llama 2", SMALL, shard_bytes=2_000_000)
    assert len(list(snapshot.glob("model-*-of-00002.safetensors"))) == 2
    return snapshot


@pytest.mark.slow
def test_a_real_snapshot_becomes_a_model_that_llama_cpp_runs(real_project: Project, small_snapshot: Path) -> None:
    outcome = real_project.run(SOURCED_BASH, small_snapshot.name)

    assert (outcome.status, outcome.changes) == (0, []), outcome
    gguf = real_project.root / "models" / "Tiny-Llama 2-Q4_K_M.gguf"
    assert real_project.ggufs() == {gguf.name} and not real_project.unfinished()
    assert outcome.model == str(gguf) == real_project.config()["handler"]["model_path"]
    assert re.search(r"^Checked: Q4_K_M, .* both guess among 1,000 tokens$", outcome.stdout, re.MULTILINE)
    weights = [tensor for tensor in llama_2_tensors(SMALL) if tensor.kind == "F16"]
    shapes = sorted(tuple(tensor.shape.tolist()) for tensor in read_head(gguf).tensors)
    assert shapes == sorted(tensor.shape[::-1] for tensor in weights)
    model = llama_cpp.Llama(str(gguf), n_ctx=64, verbose=False)
    assert model.metadata["general.file_type"] == str(llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M)
    words = b"Licensor shall mean the copyright owner"
    tokens = model.tokenize(words, add_bos=False)
    assert model.detokenize(tokens).strip() == words
    model.eval(tokens)
    assert model.sample() < SMALL.n_vocab
    model.close()


@pytest.mark.slow
def test_a_damaged_real_snapshot_is_one_sentence(real_project: Project, small_snapshot: Path) -> None:
    (small_snapshot / "tokenizer.model").write_bytes(b"damaged")
    outcome = real_project.run(BASH, small_snapshot)
    assert outcome.status == 1
    assert re.fullmatch(
        r"package_llama.sh: Converting .*/Tiny-Llama 2 failed \(.+\): check that the snapshot .*\n", outcome.stderr
    )
    assert not real_project.ggufs() and not real_project.unfinished()


def test_the_demo_model_is_made_once_and_runs(demo_project: Project) -> None:
    assert demo_project.run(BASH, "--demo").status == 0
    gguf = PROJECT / "models" / "SmolLM2-135M-Instruct-Q8_0.gguf"
    made_at = gguf.stat().st_mtime_ns

    outcome = demo_project.run(BASH, "--demo")

    assert outcome.status == 0 and gguf.samefile(demo_project.config()["handler"]["model_path"])
    assert gguf.stat().st_mtime_ns == made_at
    model = llama_cpp.Llama(str(gguf), n_ctx=64, verbose=False)
    model.eval(model.tokenize(b"The capital of France is"))
    assert model.detokenize([model.sample(temp=0.0)]).strip() == b"Paris"
    model.close()


def test_a_write_that_fails_in_the_middle_leaves_no_gguf(demo_project: Project) -> None:
    assert demo_project.run(BASH, "--demo").status == 0
    (demo_project.root / "models").unlink()
    source = PROJECT / "models" / "SmolLM2-135M-Instruct-Q8_0.gguf"
    command = demo_project.command(BASH, source, "--quantization", "F16")
    limited = ["bash", "-c", 'ulimit -f 20000; exec "$@"', "limited"]  # files of 20 MB at most; F16 has 270 MB

    process = subprocess.run(
        [*limited, *command], env=demo_project.environment, capture_output=True, text=True, timeout=300
    )

    assert process.returncode == 1
    assert "llama_model_quantize: failed to quantize" in process.stderr and "Traceback" not in process.stderr
    assert not demo_project.ggufs() and not demo_project.unfinished()
    assert demo_project.config()["handler"]["model_path"].endswith("-Q8_0.gguf")
