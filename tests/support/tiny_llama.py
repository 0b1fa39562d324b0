"""A tiny GGUF file: a Llama with random weights and a vocabulary like Llama 2's (SentencePiece, <s>, </s>).

It has 100 kB, and a real file format, tokenizer and chat template. It is for tests of tokens, not of answers.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

WORDS = ["▁", "▁Hello", "▁the", "ing", "[", "INST", "]", "<", "/", "s", ">", "user", "▁a", "e", "t", "o"]
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # tokenizer.ggml.token_type
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
N_EMBD, N_HEAD, N_FF, N_CTX = 32, 4, 64, 512

_UINT32, _FLOAT32, _STRING, _ARRAY, _INT32 = 4, 6, 8, 9, 5  # enum gguf_metadata_value_type


def write_tiny_llama(
    path: Path, seed: int = 1, more_controls: Sequence[str] = (), pooling_type: int | None = None
) -> Path:
    """Returns `path`.

    more_controls: names of control tokens at the end of the vocabulary. pooling_type: llama.cpp's number, for
    embeddings; chat models have none.
    """
    tokens = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
    tokens += [(f"<0x{byte:02X}>", BYTE) for byte in range(256)] + [(word, NORMAL) for word in WORDS]
    tokens += [(name, CONTROL) for name in more_controls]
    names = [name for name, _ in tokens]
    fields = [
        _field("general.architecture", _STRING, _string("llama")),
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


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _array(kind: int, items: list[bytes]) -> bytes:
    return struct.pack("<IQ", kind, len(items)) + b"".join(items)


def _field(name: str, kind: int, value: bytes) -> bytes:
    return _string(name) + struct.pack("<I", kind) + value
