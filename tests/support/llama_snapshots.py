"""Hugging Face snapshots with the real vocabularies of Llama 2 and Llama 3, tiny random weights, and their GGUFs.

The vocabularies are llama.cpp's own test files, and the converter is llama.cpp's: both come out of llama-cpp-python's
source archive, which is fetched once into .cache/.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp
import pytest

from tests.support.synthetic_llama import CHAT_TEMPLATE
from torchserve_client.config import PROJECT
from torchserve_client.file_lock import file_lock

VERSION = llama_cpp.__version__
SOURCES = PROJECT / ".cache" / f"llama.cpp-tests-{VERSION}"
PARTS = re.compile(
    r"convert_hf_to_gguf\.py|(conversion|gguf-py)/.+|models/ggml-vocab-llama-(spm|bpe)\.gguf(\.inp|\.out)?"
    r"|models/templates/meta-llama-Llama-3\.1-8B-Instruct\.jinja"
)
FETCH_SECONDS = 600  # 77 MB
N_TRAIN = 512  # tokens of context
LLAMA_3_WORDS = (  # how the snapshot's tokenizer.json splits a text
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def llama_cpp_sources() -> Path:
    """What the tests need of llama.cpp's sources; skips the test where they cannot be fetched."""
    with file_lock(SOURCES.parent / f"{SOURCES.name}.lock", FETCH_SECONDS):  # one of several processes fetches
        if not SOURCES.is_dir():
            _fetch()
    return SOURCES


def _fetch() -> None:
    with tempfile.TemporaryDirectory(dir=SOURCES.parent, prefix=".fetching-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        command += ["--no-binary", "llama-cpp-python", f"llama-cpp-python=={VERSION}"]
        process = subprocess.run(command, env={**os.environ, "TMPDIR": folder}, capture_output=True, text=True)
        if process.returncode != 0:
            why = (process.stderr.strip().splitlines() or ["no reason given"])[-1]
            pytest.skip(f"llama-cpp-python's source archive (77 MB) cannot be fetched: {why}")
        _unpack(next(Path(folder).glob("*.tar.gz")), Path(folder, "sources"))
        Path(folder, "sources").rename(SOURCES)


def _unpack(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.partition("/vendor/llama.cpp/")[2]
            if member.isfile() and PARTS.fullmatch(name) and ".." not in name:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                assert content is not None
                (target / name).write_bytes(content.read())


def gguf_library() -> Any:
    """The module gguf that belongs to these sources."""
    path = str(llama_cpp_sources() / "gguf-py")
    if path not in sys.path:
        sys.path.append(path)
    return importlib.import_module("gguf")


def read_vocabulary(name: str) -> dict[str, Any]:
    """The `tokenizer.ggml.` fields of the GGUF with the vocabulary `name`, llama-spm or llama-bpe."""
    fields = gguf_library().GGUFReader(llama_cpp_sources() / "models" / f"ggml-vocab-{name}.gguf").fields
    start = "tokenizer.ggml."
    return {key.removeprefix(start): field.contents() for key, field in fields.items() if key.startswith(start)}


def write_llama_2_tokenizer(folder: Path) -> None:
    """Llama 2's tokenizer.model and tokenizer_config.json (meta-llama/Llama-2-7b-chat-hf) into a snapshot `folder`."""
    from sentencepiece import sentencepiece_model_pb2

    vocabulary = read_vocabulary("llama-spm")
    model = sentencepiece_model_pb2.ModelProto()
    for text, score, kind in zip(vocabulary["tokens"], vocabulary["scores"], vocabulary["token_type"], strict=True):
        model.pieces.add(piece=text, score=score, type=kind)  # GGUF has SentencePiece's numbers for the types
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.vocab_size = len(vocabulary["tokens"])
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.pad_id = -1
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.remove_extra_whitespaces = False
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": False,
        "tokenizer_class": "LlamaTokenizer",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def llama_2_tokenizer_json(folder: Path) -> Any:
    """The tokenizers.Tokenizer that transformers 4 made of `folder`'s tokenizer.model, and that snapshots bring along.

    Its merges come in the order of the scores, and a space comes before every text, also after a control token.
    """
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
    from tokenizers.models import BPE
    from transformers.tokenization_utils_base import generate_merges

    model = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    pieces = range(model.get_piece_size())
    scores = {model.id_to_piece(each): model.get_score(each) for each in pieces}
    ids = {model.id_to_piece(each): each for each in pieces}
    merges = generate_merges(ids, scores)
    tokenizer = Tokenizer(BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1)]
    )
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def write_llama_3_tokenizer(folder: Path) -> None:
    """Llama 3's tokenizer files (meta-llama/Llama-3.1-8B-Instruct): tokenizer.json and tokenizer_config.json."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE

    vocabulary = read_vocabulary("llama-bpe")
    tokens, bos = vocabulary["tokens"], vocabulary["tokens"][vocabulary["bos_token_id"]]
    special = [text for text, kind in zip(tokens, vocabulary["token_type"], strict=True) if kind == 3]
    ids = {text: index for index, text in enumerate(tokens) if text not in special}
    merges = [tuple(merge.split(" ")) for merge in vocabulary["merges"]]
    tokenizer = Tokenizer(BPE(vocab=ids, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokens.index(bos))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    template = llama_cpp_sources() / "models" / "templates" / "meta-llama-Llama-3.1-8B-Instruct.jinja"
    config = {
        "bos_token": bos,
        "eos_token": "<|eot_id|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": template.read_text(),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_weights(folder: Path, n_vocab: int) -> None:
    """A Llama's config and weights, too small to say anything."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=n_vocab,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=N_TRAIN,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    model.half().save_pretrained(folder)


def convert(snapshot: Path, gguf: Path) -> Path:
    """What package_llama.sh does first: llama.cpp's converter, f16. Returns `gguf`."""
    command = [sys.executable, str(llama_cpp_sources() / "convert_hf_to_gguf.py"), str(snapshot)]
    command += ["--outtype", "f16", "--outfile", str(gguf)]
    process = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-2000:]
    return gguf
