"""A GGUF of a Llama turned back into a Hugging Face snapshot: config, float16 weights, tokenizer and chat template.

Knows what llama.cpp's converter does with such a snapshot (conversion/llama.py), and does the reverse.

Not covered: SentencePiece vocabularies.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.llama_snapshots import gguf_library

LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def write_snapshot_of(gguf: Path, folder: Path) -> Path:
    """Returns `folder`."""
    reader = gguf_library().GGUFReader(gguf)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}
    folder.mkdir(parents=True, exist_ok=True)
    _write_weights(reader.tensors, heads, folder)
    _write_config(fields, has_output="output.weight" in {tensor.name for tensor in reader.tensors}, folder=folder)
    _write_tokenizer(fields, folder)
    return folder


def write_tokenizer_of(gguf: Path, folder: Path) -> Path:
    """Only the tokenizer and its chat template. Returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_tokenizer({name: field.contents() for name, field in gguf_library().GGUFReader(gguf).fields.items()}, folder)
    return folder


def _write_weights(tensors: Any, heads: dict[str, int], folder: Path) -> None:
    from safetensors.numpy import save_file

    weights = {}
    for tensor in tensors:
        *place, kind, _ = tensor.name.split(".")
        values = gguf_library().quants.dequantize(tensor.data, tensor.tensor_type)
        if kind in heads:
            values = _in_hugging_faces_order(values, heads[kind])
        name = f"model.layers.{place[1]}.{LAYER[kind]}" if place else OUTSIDE[kind]
        weights[f"{name}.weight"] = np.ascontiguousarray(values, dtype=np.float16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _in_hugging_faces_order(weights: np.ndarray, n_heads: int) -> np.ndarray:
    """llama.cpp keeps the two halves that a rotation turns side by side, Hugging Face one after the other."""
    pairs = weights.reshape(n_heads, weights.shape[0] // n_heads // 2, 2, *weights.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weights.shape)


def _write_config(fields: dict[str, Any], has_output: bool, folder: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float16",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": fields["llama.rope.freq_base"],
        "vocab_size": fields["llama.vocab_size"],
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "tie_word_embeddings": not has_output,
    }
    (folder / "config.json").write_text(json.dumps(config))


def _write_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE(vocab={text: token for token, text in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [text for text, kind in zip(tokens, kinds, strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": fields["tokenizer.ggml.add_bos_token"],
        "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
        "chat_template": fields["tokenizer.chat_template"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
