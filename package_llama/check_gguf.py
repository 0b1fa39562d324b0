"""A program of its own: is a GGUF file sound, and how much worse does it predict a text than the one it was made of?

    python -m package_llama.check_gguf <source> <result>
    python -m package_llama.check_gguf <made> <source> <type> <result>

The second prints one line with size, type and perplexity; it ends with a sentence on stderr if the file is broken: it
must have the source's tensors, in types that belong to `type`, load, hold no NaN, and read the text nearly as well. The
first is a head start: it reads the text with the source, in time that nobody else wants, and leaves the perplexity in
the file `result`.

Not covered: whether the source itself is any good. Where it only guesses, the perplexities are not judged, and the line
says so.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import llama_cpp
import numpy as np
import psutil

from package_llama.gguf_header import GgufHead, InvalidGguf, read_head
from package_llama.llama_log import ERROR, llama_log
from package_llama.weight_types import QUANTIZATIONS

TEXT = Path(__file__).with_name("check_gguf.txt")
MIN_TOKENS, MAX_TOKENS = 24, 384
WINDOW_TOKENS = 384  # read at once, without what came before
OPERATIONS = 3.5e11  # for one reading: Llama 2 7B reads only 25 tokens of the text, in about 2 s on two cores


class CheckFailed(Exception):
    """What is wrong with the file, as a part of a sentence."""


def examine(made: Path, source: Path, quantization: str, source_perplexity: float | None = None) -> str:
    """The line that describes a sound file; raises Unsound. source_perplexity: None if not measured yet."""
    head, text = read_head(made), TEXT.read_bytes()
    _compare(head, read_head(source), quantization)
    perplexity, n_read, n_vocab = measure(made, text, tokens_to_read(head), checks_weights=True)
    if source_perplexity is None:
        is_same = made.samefile(source)  # type F16 is its own source
        source_perplexity = perplexity if is_same else measure(source, text, n_read, checks_weights=False)[0]
    ratio, worst = perplexity / source_perplexity, QUANTIZATIONS[quantization].worst_ratio
    is_guessing = source_perplexity > n_vocab / 2
    if ratio > worst and not is_guessing:
        raise CheckFailed(f"its perplexity is {ratio:,.2f} times that of {source.name}, where {worst} is the most")
    size = f"{made.stat().st_size / 1e9:.2f} GB"
    line = (
        f"Sound: {quantization}, {size}, perplexity {perplexity:,.2f}, {ratio:.3f} times its source's ({n_read} tokens)"
    )
    return f"{line}; not judged, both guess among {n_vocab:,} tokens, like random weights" if is_guessing else line


def _compare(made: GgufHead, source: GgufHead, quantization: str) -> None:
    expected = QUANTIZATIONS[quantization]
    if made.metadata.get("general.file_type") != expected.file_type:
        raise CheckFailed(f"it says to be of type {made.metadata.get('general.file_type')}, not {expected.file_type}")
    if shapes(made) != shapes(source):
        missing = len(shapes(source).items() - shapes(made).items())
        raise CheckFailed(f"{missing} of {len(source.tensors)} tensors are missing or have another shape")
    odd = [name for name, tensor in made.tensors.items() if tensor.kind not in expected.tensor_types]
    odd = [name for name in odd if made.tensors[name].kind != source.tensors[name].kind]
    if odd:
        raise CheckFailed(f"{odd[0]} is of a type ({made.tensors[odd[0]].kind}) that is not part of {quantization}")


def shapes(head: GgufHead) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in head.tensors.items()}


def tokens_to_read(head: GgufHead) -> int:
    n_weights = sum(tensor.n_elements for tensor in head.tensors.values())
    return int(min(max(OPERATIONS / (2 * n_weights), MIN_TOKENS), MAX_TOKENS))


def measure(path: Path, text: bytes, n_tokens: int, *, checks_weights: bool) -> tuple[float, int, int]:
    """Perplexity of the text's first `n_tokens`, how many there were, and the vocabulary's size. Raises Unsound.

    On the CPU and through mmap, wherever the model will run: the f16 file may be larger than the memory.
    """
    reasons: list[str] = []

    def take(level: int, line: str) -> None:
        if level == ERROR:
            reasons.append(line.rpartition(": ")[2])

    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    params.check_tensors = checks_weights  # for NaN and the like
    params.use_extra_bufts = False  # weights as they are in the file: rearranging them takes longer, and their memory
    with llama_log(take):
        model = llama_cpp.llama_model_load_from_file(bytes(path), params)
        if not model:
            raise CheckFailed(f"it cannot be loaded: {(reasons or ['llama.cpp gave no reason'])[0]}")
        try:
            vocabulary = llama_cpp.llama_model_get_vocab(model)
            tokens = tokenize(vocabulary, text)[:n_tokens]
            n_vocab = llama_cpp.llama_vocab_n_tokens(vocabulary)
            windows = [tokens[begin : begin + WINDOW_TOKENS] for begin in range(0, len(tokens), WINDOW_TOKENS)]
            logs = [each for window in windows for each in _log_probabilities(model, window, n_vocab)]
            perplexity = float(np.exp(-np.mean(logs)))
        finally:
            llama_cpp.llama_model_free(model)
    if not math.isfinite(perplexity):
        raise CheckFailed(f"{path.name} predicts no numbers ({perplexity})")
    return perplexity, len(tokens), n_vocab


def tokenize(vocabulary: object, text: bytes) -> list[int]:
    tokens = (llama_cpp.llama_token * (len(text) + 2))()
    count = llama_cpp.llama_tokenize(vocabulary, text, len(text), tokens, len(tokens), True, False)
    return list(tokens[:count])


def _log_probabilities(model: object, tokens: list[int], n_vocab: int) -> Iterable[float]:
    """Of each token but the first, given those before it."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = len(tokens)
    params.n_threads = params.n_threads_batch = psutil.cpu_count(logical=False) or 1
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise CheckFailed("llama.cpp has no memory for reading a text")
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    try:
        for position, token in enumerate(tokens):
            batch.token[position], batch.pos[position], batch.n_seq_id[position] = token, position, 1
            batch.seq_id[position][0], batch.logits[position] = 0, 1
        batch.n_tokens = len(tokens)
        if status := llama_cpp.llama_decode(context, batch):
            raise CheckFailed(f"llama.cpp cannot read a text with it (status {status})")
        for position, following in enumerate(tokens[1:]):
            pointer = llama_cpp.llama_get_logits_ith(context, position)
            logits = np.ctypeslib.as_array(pointer, (n_vocab,)).astype(np.float64)
            logits -= logits.max()
            yield float(logits[following] - np.log(np.exp(logits).sum()))
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)


def _get_ahead(source: Path, result: Path) -> None:
    os.nice(19)
    perplexity, _, _ = measure(source, TEXT.read_bytes(), tokens_to_read(read_head(source)), checks_weights=False)
    result.write_text(repr(perplexity))


def main() -> None:
    *files, result = sys.argv[1:]
    try:
        if len(files) == 1:
            _get_ahead(Path(files[0]), Path(result))
        else:
            made, source, quantization = files
            known = float(Path(result).read_text()) if Path(result).is_file() else None
            print(examine(Path(made), Path(source), quantization, known), flush=True)
    except (CheckFailed, InvalidGguf) as problem:
        sys.exit(str(problem))


if __name__ == "__main__":
    main()
