"""package_llama.sh with the real tools: a small and a wide Llama 2 of random weights, and the demo model."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import llama_cpp
import pytest

from experiments.load_test import run_load, torchserve_target
from package_llama.gguf_header import read_head
from tests.support.packaged_project import BASH, IN_ARCHIVE, PROJECT, SOURCED, SOURCED_BASH, Project
from tests.support.serving import make_home, running_server
from tests.support.synthetic_llama import N_VOCAB, WIDTH, llama_2_7b_tensors, write_snapshot
from torchserve_client.management import ManagementClient, ServingSettings

pytest_plugins = ["tests.support.packaging_fixtures"]


def make_snapshot(folder: Path) -> None:
    """A Llama 2 in small, as Hugging Face stores it: random weights, and a SentencePiece vocabulary of English."""
    import sentencepiece
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((PROJECT / "LICENSE").read_text().splitlines()),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=800,
        byte_fallback=True,
        minloglevel=2,
    )
    config = LlamaConfig(
        vocab_size=800,
        hidden_size=256,  # a row of whole K-quant blocks
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.float16).save_pretrained(folder)


@pytest.mark.parametrize("way", SOURCED)
def test_a_real_snapshot_becomes_a_model_that_llama_cpp_runs(real_project: Project, tmp_path: Path, way: str) -> None:
    make_snapshot(tmp_path / "Tiny-Llama 2")

    outcome = real_project.run(way, "Tiny-Llama 2")

    assert (outcome.status, outcome.changes) == (0, []), outcome
    gguf = real_project.root / "models" / "Tiny-Llama 2-Q4_K_M.gguf"
    assert real_project.ggufs() == {gguf.name} and not real_project.unfinished()
    assert outcome.model == str(gguf) == real_project.config()["handler"]["model_path"]
    assert all(real_project.read(name, "llamacpp-dynamic.tar.gz") for name in IN_ARCHIVE)
    assert re.search(
        r"^Sound: Q4_K_M, .* both guess among 800 tokens, like random weights", outcome.stdout, re.MULTILINE
    )
    model = llama_cpp.Llama(str(gguf), n_ctx=64, verbose=False)
    assert model.metadata["general.file_type"] == str(llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M)
    assert model.metadata["llama.block_count"] == "2"
    words = b"Licensor shall mean the copyright owner"
    assert model.detokenize(model.tokenize(words, add_bos=False)).strip() == words
    assert model.create_completion("Licensor", max_tokens=4)["usage"]["completion_tokens"] > 0


def test_two_layers_of_llama_2_7b_at_full_width_are_packaged_and_served(real_project: Project, tmp_path: Path) -> None:
    """The whole model with its 32 layers: benchmarks/packaging.py and benchmarks/served.py."""
    snapshot = write_snapshot(tmp_path / "Llama-2-7b-2-layers", n_layers=2, shard_bytes=700_000_000)
    assert len(list(snapshot.glob("model-*-of-00002.safetensors"))) == 2

    outcome = real_project.run(BASH, snapshot, "--quantization", "Q4_0")

    shutil.rmtree(snapshot)
    assert outcome.status == 0, outcome
    gguf = real_project.root / "models" / "Llama-2-7b-2-layers-Q4_0.gguf"
    assert "takes up to 1.7 GB" in outcome.stdout and re.search(r"Sound: Q4_0, 0\.4\d GB", outcome.stdout)
    assert re.search(r"^Converting: \d+ %", outcome.stderr, re.MULTILINE)
    assert outcome.stderr.splitlines()[-1] == "Quantizing to Q4_0: 100 %"
    head = read_head(gguf)
    weights = [tensor for tensor in llama_2_7b_tensors(2) if tensor.kind == "F16"]
    assert sorted(tensor.shape for tensor in head.tensors.values()) == sorted(each.shape[::-1] for each in weights)
    assert [head.metadata[f"llama.{name}"] for name in ("block_count", "embedding_length")] == [2, WIDTH]
    assert llama_cpp.Llama(str(gguf), vocab_only=True, verbose=False).n_vocab() == N_VOCAB

    questions = [
        {"messages": [{"role": "user", "content": f"Licensor {number}"}], "max_tokens": 8, "ignore_eos": True}
        for number in range(4)
    ]
    with running_server(make_home(tmp_path / "home", model_store=real_project.root / "model_store")) as config:
        ManagementClient(config).register(ServingSettings(batch_size=4, max_batch_delay_ms=0, workers=1))
        samples = run_load(torchserve_target(config), questions, clients=4).samples
    assert [(sample.error, sample.completion_tokens) for sample in samples] == [(None, 8)] * 4
    gguf.unlink()


def test_a_damaged_real_snapshot_is_one_sentence(real_project: Project, tmp_path: Path) -> None:
    make_snapshot(tmp_path / "tiny")
    with (tmp_path / "tiny" / "model.safetensors").open("rb+") as file:
        file.truncate(100_000)
    outcome = real_project.run(BASH, "tiny")
    assert outcome.status == 1
    assert re.search(r"package_llama.sh: Converting .*/tiny failed \(.+\): check that the snapshot", outcome.stderr)
    assert "Traceback" not in outcome.stderr
    assert not real_project.ggufs() and not real_project.unfinished()


def test_the_real_demo_model_is_made_once_and_runs(demo_project: Project) -> None:
    assert demo_project.run(BASH, "--demo").status == 0
    gguf = PROJECT / "models" / "SmolLM2-135M-Instruct-Q8_0.gguf"
    made_at = gguf.stat().st_mtime_ns

    outcome = demo_project.run(SOURCED_BASH, "--demo")

    assert outcome.status == 0 and gguf.samefile(str(outcome.model))
    assert gguf.stat().st_mtime_ns == made_at
    model = llama_cpp.Llama(str(gguf), n_ctx=64, verbose=False)
    answer = model.create_completion("The capital of France is", max_tokens=3, temperature=0.0)
    assert "Paris" in answer["choices"][0]["text"]


def test_a_real_write_that_fails_in_the_middle_leaves_no_gguf(demo_project: Project) -> None:
    assert demo_project.run(BASH, "--demo").status == 0
    (demo_project.root / "models").unlink()
    source = PROJECT / "models" / "SmolLM2-135M-Instruct-Q8_0.gguf"
    command = demo_project.command(BASH, source, "--quantization", "F16")
    small_files = ["bash", "-c", 'ulimit -f 20000; exec "$@"', "small_files"]  # of 20 MB at most, and F16 has 270

    process = subprocess.run(
        [*small_files, *command], env=demo_project.environment, capture_output=True, text=True, timeout=300
    )

    assert process.returncode == 1
    assert "llama_model_quantize: failed to quantize" in process.stderr and "Traceback" not in process.stderr
    assert not demo_project.ggufs() and not demo_project.unfinished()
    assert demo_project.config()["handler"]["model_path"].endswith("-Q8_0.gguf")
