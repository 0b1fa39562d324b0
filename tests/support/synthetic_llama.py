"""Writes a snapshot of Llama 2 7B, or of a smaller Llama 2, in Hugging Face's format. Its weights are random.

Config, tensor names, shapes, shards, index, chat template and the vocabulary's size and kind are those of Llama 2. The
tensors are written one by one: 7B takes 13.5 GB on the disk and 0.3 GB in memory.

    python -m tests.support.synthetic_llama FOLDER [--layers 32] [--bin] [--seed 0]
"""

import argparse
import json
import random
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import BinaryIO

import numpy as np

PROJECT = Path(__file__).resolve().parents[2]
SHARD_BYTES = 10**10  # save_pretrained made two shards of this size of 7B
CHUNK = 2**24  # values that are made together
LEARNED_PIECES = 800  # of the vocabulary; the other pieces are made-up words
SPREAD = 0.02  # Llama 2's initializer_range

# As in meta-llama/Llama-2-7b-chat-hf's tokenizer_config.json.
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a Llama 2. The default is 7B."""

    n_layers: int = 32
    width: int = 4096
    n_ff: int = 11008
    n_heads: int = 32
    n_vocab: int = 32_000


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the snapshot. kind: safetensors' name for its type."""

    name: str
    shape: tuple[int, ...]
    kind: str = "F16"

    @property
    def n_bytes(self) -> int:
        return int(np.prod(self.shape)) * (4 if self.kind == "F32" else 2)

    def chunks(self, dice: np.random.Generator) -> Iterator[np.ndarray]:
        """The values: rotary frequencies are exact, norms are near one, all others are normal with SPREAD."""
        if self.kind == "F32":
            yield (10_000.0 ** -(np.arange(self.shape[0]) / self.shape[0])).astype("<f4")
            return
        middle = 1.0 if len(self.shape) == 1 else 0.0
        for begin in range(0, int(np.prod(self.shape)), CHUNK):
            count = min(CHUNK, int(np.prod(self.shape)) - begin)
            values = dice.standard_normal(count, dtype=np.float32)
            yield (values * np.float32(SPREAD) + np.float32(middle)).astype("<f2")


def llama_2_tensors(size: Size) -> list[Tensor]:
    width, n_ff = size.width, size.n_ff
    tensors = [Tensor("model.embed_tokens.weight", (size.n_vocab, width))]
    for layer in range(size.n_layers):
        prefix = f"model.layers.{layer}."
        tensors += [Tensor(f"{prefix}self_attn.{name}_proj.weight", (width, width)) for name in "qkvo"]
        tensors += [
            Tensor(f"{prefix}self_attn.rotary_emb.inv_freq", (width // size.n_heads // 2,), "F32"),
            Tensor(f"{prefix}mlp.gate_proj.weight", (n_ff, width)),
            Tensor(f"{prefix}mlp.up_proj.weight", (n_ff, width)),
            Tensor(f"{prefix}mlp.down_proj.weight", (width, n_ff)),
            Tensor(f"{prefix}input_layernorm.weight", (width,)),
            Tensor(f"{prefix}post_attention_layernorm.weight", (width,)),
        ]
    return [*tensors, Tensor("model.norm.weight", (width,)), Tensor("lm_head.weight", (size.n_vocab, width))]


def write_snapshot(
    folder: Path, size: Size, *, seed: int = 0, shard_bytes: int = SHARD_BYTES, is_bin: bool = False
) -> Path:
    """Makes `folder` and returns it. is_bin: PyTorch files instead of safetensors; each is made in memory."""
    folder.mkdir(parents=True)
    _write_texts(folder, size)
    _write_tokenizer(folder / "tokenizer.model", size.n_vocab, seed)
    shards: list[list[Tensor]] = [[]]
    for tensor in llama_2_tensors(size):
        if shards[-1] and sum(each.n_bytes for each in shards[-1]) + tensor.n_bytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    stem, ending = ("pytorch_model", "bin") if is_bin else ("model", "safetensors")
    dice = np.random.default_rng(seed)
    files: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.{ending}"
        (_write_bin if is_bin else _write_safetensors)(folder / name, tensors, dice)
        files |= {tensor.name: name for tensor in tensors}
    total = sum(tensor.n_bytes for tensors in shards for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index, indent=2))
    return folder


def _write_safetensors(path: Path, tensors: list[Tensor], dice: np.random.Generator) -> None:
    """Sorts the tensors as safetensors does: by the width of the type, then by name."""
    tensors = sorted(tensors, key=lambda tensor: (-int(tensor.kind[1:]), tensor.name))
    header, end = {}, 0
    for tensor in tensors:
        begin, end = end, end + tensor.n_bytes
        header[tensor.name] = {"dtype": tensor.kind, "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            _write_values(file, tensor, dice)


def _write_values(file: BinaryIO, tensor: Tensor, dice: np.random.Generator) -> None:
    for chunk in tensor.chunks(dice):
        file.write(chunk.data)


def _write_bin(path: Path, tensors: list[Tensor], dice: np.random.Generator) -> None:
    import torch

    values = {tensor.name: np.concatenate(list(tensor.chunks(dice))).reshape(tensor.shape) for tensor in tensors}
    torch.save({name: torch.from_numpy(array) for name, array in values.items()}, path)


def _write_texts(folder: Path, size: Size) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": size.width,
        "initializer_range": SPREAD,
        "intermediate_size": size.n_ff,
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "num_attention_heads": size.n_heads,
        "num_hidden_layers": size.n_layers,
        "num_key_value_heads": size.n_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.32.0.dev0",
        "use_cache": True,
        "vocab_size": size.n_vocab,
    }
    tokenizer = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": False,
        "model_max_length": 4096,
        "tokenizer_class": "LlamaTokenizer",
        "chat_template": CHAT_TEMPLATE,
    }
    for name, content in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        (folder / name).write_text(json.dumps(content, indent=2))


def _write_tokenizer(path: Path, n_vocab: int, seed: int) -> None:
    """Writes a SentencePiece BPE model: LEARNED_PIECES learned from the license, and made-up words."""
    import sentencepiece

    with tempfile.TemporaryDirectory() as folder:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter((PROJECT / "LICENSE").read_text().splitlines()),
            model_prefix=f"{folder}/tokenizer",
            model_type="bpe",
            vocab_size=LEARNED_PIECES,
            byte_fallback=True,
            minloglevel=2,
        )
        learned = Path(folder, "tokenizer.model").read_bytes()
    model = sentencepiece.SentencePieceProcessor(model_proto=learned)
    known = {model.id_to_piece(token) for token in range(model.get_piece_size())}
    words = [word for word in _made_up_words(seed) if word not in known][: n_vocab - len(known)]
    assert len(known) + len(words) == n_vocab
    pieces = (_piece(word, -float(len(known) - 259 + rank)) for rank, word in enumerate(words))
    path.write_bytes(learned + b"".join(pieces))


def _made_up_words(seed: int) -> list[str]:
    syllables = ["".join(parts) for parts in product("bdfgklmnprstvw", "aeiou")]
    words = ["".join(parts) for parts in product(syllables, repeat=2)] + [
        "▁" + "".join(p) for p in product(syllables, repeat=3)
    ]
    random.Random(seed).shuffle(words)
    return words


def _piece(text: str, score: float) -> bytes:
    """One element of ModelProto's repeated field 1. protobuf allows to append it to the serialized model."""
    word = text.encode()
    message = bytes([0x0A, len(word)]) + word + b"\x15" + struct.pack("<f", score)
    return bytes([0x0A, len(message)]) + message


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=Size().n_layers)
    parser.add_argument("--bin", action="store_true", help="PyTorch files instead of safetensors")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(write_snapshot(given.folder, Size(given.layers), seed=given.seed, is_bin=given.bin))


if __name__ == "__main__":
    main()
