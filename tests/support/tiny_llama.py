"""A tiny GGUF file: a Llama with random weights and a vocabulary like Llama 2's (SentencePiece, <s>, </s>).

It has 100 kB, and a real file format, tokenizer and chat template. It is for tests of tokens, not of answers.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from package_llama.gguf_header import read_head

WORDS = ["▁", "▁Hello", "▁the", "ing", "[", "INST", "]", "<", "/", "s", ">", "user", "▁a", "e", "t", "o"]
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # tokenizer.ggml.token_type
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
N_EMBD, N_HEAD, N_FF, N_CTX = 32, 4, 64, 512

_UINT16, _UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 2, 4, 5, 6, 7, 8, 9  # enum gguf_metadata_value_type


def write_tiny_llama(
    path: Path,
    seed: int = 1,
    more_controls: Sequence[str] = (),
    pooling_type: int | None = None,
    architecture: str = "llama",
    kind: str = "model",
    is_causal: bool = True,
) -> Path:
    """Returns `path`.

    more_controls: names of control tokens at the end of the vocabulary. pooling_type: llama.cpp's number, for
    embeddings; chat models have none. architecture, kind, is_causal: what the head says; the tensors are a Llama's.
    """
    tokens = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
    tokens += [(f"<0x{byte:02X}>", BYTE) for byte in range(256)] + [(word, NORMAL) for word in WORDS]
    tokens += [(name, CONTROL) for name in more_controls]
    names = [name for name, _ in tokens]
    fields = [
        _field("general.architecture", _STRING, _string(architecture)),
        _field("general.type", _STRING, _string(kind)),
        _field(f"{architecture}.attention.causal", _BOOL, bytes([is_causal])),
        _field("llama.context_length", _UINT32, struct.pack("<I", N_CTX)),
        _field("llama.embedding_length", _UINT32, struct.pack("<I", N_EMBD)),
        _field("llama.block_count", _UINT32, struct.pack("<I", 1)),
        _field("llama.feed_forward_length", _UINT32, struct.pack("<I", N_FF)),
        _field("llama.attention.head_count", _UINT32, struct.pack("<I", N_HEAD)),
        _field("llama.attention.layer_norm_rms_epsilon", _FLOAT32, struct.pack("<f", 1e-5)),
        _field("tokenizer.ggml.model", _STRING, _string("llama")),
        _field("tokenizer.ggml.tokens", _ARRAY, _array(_STRING, [_string(name) for name in names])),
        _field("tokenizer.ggml.scores", _ARRAY, _array(_FLOAT32, [struct.pack("<f", -i) for i in range(len(names))])),
        _field("tokenizer.ggml.token_type", _ARRAY, _array(_INT32, [struct.pack("<i", kind) for _, kind in tokens])),
        _field("tokenizer.ggml.bos_token_id", _UINT32, struct.pack("<I", 1)),
        _field("tokenizer.ggml.eos_token_id", _UINT32, struct.pack("<I", 2)),
        _field("tokenizer.chat_template", _STRING, _string(TEMPLATE)),
    ]
    if pooling_type is not None:
        fields.append(_field("llama.pooling_type", _UINT32, struct.pack("<I", pooling_type)))
    shapes = {
        "token_embd.weight": (len(names), N_EMBD),
        "output_norm.weight": (N_EMBD,),
        "output.weight": (len(names), N_EMBD),
        "blk.0.attn_norm.weight": (N_EMBD,),
        **{f"blk.0.attn_{name}.weight": (N_EMBD, N_EMBD) for name in ("q", "k", "v", "output")},
        "blk.0.ffn_norm.weight": (N_EMBD,),
        "blk.0.ffn_gate.weight": (N_FF, N_EMBD),
        "blk.0.ffn_up.weight": (N_FF, N_EMBD),
        "blk.0.ffn_down.weight": (N_EMBD, N_FF),
    }
    dice = np.random.default_rng(seed)
    infos, contents = b"", b""
    for name, shape in shapes.items():
        dimensions = struct.pack(f"<{len(shape)}Q", *reversed(shape))  # the innermost first
        infos += _string(name) + struct.pack("<I", len(shape)) + dimensions + struct.pack("<IQ", 0, len(contents))
        contents += dice.normal(size=shape).astype("<f4").tobytes()
        assert len(contents) % 32 == 0, "tensors are aligned to 32 bytes"
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(fields)) + b"".join(fields) + infos
    path.write_bytes(head + bytes(-len(head) % 32) + contents)
    return path


def write_parts(path: Path, n_parts: int, *, first_is_empty: bool = False) -> list[Path]:
    """Writes the model `path` as several GGUF files, as llama-gguf-split does. Returns their paths.

    first_is_empty: the first part has no tensors (its option --no-tensor-first-split).
    """
    head, content = read_head(path), path.read_bytes()
    begin, n_fields = head.tensors[0].field.offset, struct.unpack_from("<Q", content, 16)[0]
    paths = []
    for number in range(n_parts):
        fields = [
            _field("split.no", _UINT16, struct.pack("<H", number)),
            _field("split.count", _UINT16, struct.pack("<H", n_parts)),
            _field("split.tensors.count", _INT32, struct.pack("<i", len(head.tensors))),
        ]
        others = content[24:begin] if number == 0 else b""
        tensors, infos, contents = head.tensors[number::n_parts], b"", b""
        if first_is_empty:
            tensors = head.tensors[number - 1 :: n_parts - 1] if number else []
        for tensor in tensors:
            dimensions = struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape.tolist())
            infos += _string(tensor.name) + struct.pack("<I", len(tensor.shape)) + dimensions
            infos += struct.pack("<IQ", tensor.tensor_type, len(contents))
            contents += content[tensor.data_offset : tensor.data_offset + tensor.n_bytes]
        counts = struct.pack("<IQQ", 3, len(tensors), len(fields) + (n_fields if others else 0))
        begins = b"GGUF" + counts + others + b"".join(fields) + infos
        paths.append(path.with_name(f"{path.stem}-{number + 1:05}-of-{n_parts:05}.gguf"))
        paths[-1].write_bytes(begins + bytes(-len(begins) % 32) + contents)
    return paths


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _array(kind: int, items: list[bytes]) -> bytes:
    return struct.pack("<IQ", kind, len(items)) + b"".join(items)


def _field(name: str, kind: int, value: bytes) -> bytes:
    return _string(name) + struct.pack("<I", kind) + value
