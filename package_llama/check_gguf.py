"""Checks a quantized GGUF file against its source, as a separate program.

    python -m package_llama.check_gguf <made> <source> <type>

The file must have the source's tensors, in formats that belong to `type`. It must load, contain no NaN, and predict a
text nearly as well as the source (weight_types.py has the limits). The program prints one line about a good file, or a
sentence on stderr.

Not covered: whether the source is a good model. If it only guesses, the perplexities are not compared.
"""

import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp
import numpy as np
import psutil
from gguf import ReaderTensor

from package_llama.gguf_header import InvalidGguf, read_head, read_tensors, value
from package_llama.llama_log import ERROR, llama_log
from package_llama.weight_types import QUANTIZATIONS

TEXT = Path(__file__).with_name("check_gguf.txt")
MIN_TOKENS, MAX_TOKENS = 24, 384  # a longer text is evaluated in parts of MAX_TOKENS
MAX_OPERATIONS = 3.5e11  # per file: 25 tokens of Llama 2 7B, about 2 s on two cores


class CheckFailed(Exception):
    """The message is the problem, as a part of a sentence."""


class Perplexity(NamedTuple):
    """n_tokens: how many tokens of the text were evaluated. n_vocab: the size of the model's vocabulary."""

    value: float
    n_tokens: int
    n_vocab: int


def check(made: Path, source: Path, quantization: str) -> str:
    """Returns the line that describes a good file. Raises CheckFailed and InvalidGguf."""
    text, tensors = TEXT.read_bytes(), read_tensors(made)
    expected_type, file_type = QUANTIZATIONS[quantization].file_type, value(read_head(made), "general.file_type")
    if file_type != expected_type:
        raise CheckFailed(f"its type is {file_type}, not {expected_type}")
    _compare_tensors(tensors, read_tensors(source), quantization)
    result = measure_perplexity(made, text, _tokens_to_evaluate(tensors), checks_weights=True)
    expected = result  # type F16 is its own source
    if not made.samefile(source):
        expected = measure_perplexity(source, text, result.n_tokens, checks_weights=False)
    ratio, worst = result.value / expected.value, QUANTIZATIONS[quantization].worst_ratio
    is_guessing = expected.value > result.n_vocab / 2
    if ratio > worst and not is_guessing:
        raise CheckFailed(f"its perplexity is {ratio:,.2f} times that of {source.name}, and the limit is {worst}")
    line = (
        f"Checked: {quantization}, {made.stat().st_size / 1e9:.2f} GB, perplexity {result.value:,.2f}, "
        f"{ratio:.3f} times its source's ({result.n_tokens} tokens)"
    )
    return f"{line}; not compared, both guess among {result.n_vocab:,} tokens" if is_guessing else line


def _compare_tensors(made: list[ReaderTensor], source: list[ReaderTensor], quantization: str) -> None:
    shapes = [{tensor.name: tuple(tensor.shape.tolist()) for tensor in tensors} for tensors in (made, source)]
    if shapes[0] != shapes[1]:
        missing = len(shapes[1].items() - shapes[0].items())
        raise CheckFailed(f"{missing} of {len(source)} tensors are missing or have another shape")
    source_types = {tensor.name: tensor.tensor_type for tensor in source}
    for tensor in made:
        if tensor.tensor_type not in {*QUANTIZATIONS[quantization].tensor_types, source_types[tensor.name]}:
            raise CheckFailed(f"{tensor.name} is {tensor.tensor_type.name}, which is not part of {quantization}")


def _tokens_to_evaluate(tensors: list[ReaderTensor]) -> int:
    n_weights = sum(int(tensor.n_elements) for tensor in tensors)
    return int(min(max(MAX_OPERATIONS / (2 * n_weights), MIN_TOKENS), MAX_TOKENS))


def measure_perplexity(path: Path, text: bytes, n_tokens: int, *, checks_weights: bool) -> Perplexity:
    """Evaluates the text's first `n_tokens` tokens. checks_weights: also search for NaN. Raises CheckFailed.

    Works on the CPU and maps the file, on every machine: an f16 file can be larger than the memory.
    """
    errors: list[str] = []

    def on_line(level: int, line: str) -> None:
        if level == ERROR:
            errors.append(line.rpartition(": ")[2])

    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    params.check_tensors = checks_weights
    params.use_extra_bufts = False  # do not rearrange the weights: that needs time, and memory for a copy
    with llama_log(on_line):
        model = llama_cpp.llama_model_load_from_file(bytes(path), params)
        if not model:
            raise CheckFailed(f"it cannot be loaded: {(errors or ['llama.cpp gave no reason'])[0]}")
        try:
            vocabulary = llama_cpp.llama_model_get_vocab(model)
            tokens = _tokenize(vocabulary, text)[:n_tokens]
            n_vocab = llama_cpp.llama_vocab_n_tokens(vocabulary)
            parts = [tokens[begin : begin + MAX_TOKENS] for begin in range(0, len(tokens), MAX_TOKENS)]
            logs = [each for part in parts for each in _log_probabilities(model, part, n_vocab)]
            perplexity = float(np.exp(-np.mean(logs)))
        finally:
            llama_cpp.llama_model_free(model)
    if not math.isfinite(perplexity):
        raise CheckFailed(f"{path.name} has the perplexity {perplexity}")
    return Perplexity(perplexity, len(tokens), n_vocab)


def _tokenize(vocabulary: Any, text: bytes) -> list[int]:
    tokens = (llama_cpp.llama_token * (len(text) + 2))()
    count = llama_cpp.llama_tokenize(vocabulary, text, len(text), tokens, len(tokens), True, False)
    return list(tokens[:count])


def _log_probabilities(model: Any, tokens: list[int], n_vocab: int) -> Iterable[float]:
    """Of each token except the first, given the tokens before it."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = len(tokens)
    params.n_threads = params.n_threads_batch = psutil.cpu_count(logical=False) or 1
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise CheckFailed("llama.cpp has too little memory to evaluate a text")
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    try:
        for position, token in enumerate(tokens):
            batch.token[position], batch.pos[position], batch.n_seq_id[position] = token, position, 1
            batch.seq_id[position][0], batch.logits[position] = 0, 1
        batch.n_tokens = len(tokens)
        if status := llama_cpp.llama_decode(context, batch):
            raise CheckFailed(f"llama.cpp cannot evaluate a text with it (status {status})")
        for position, following in enumerate(tokens[1:]):
            pointer = llama_cpp.llama_get_logits_ith(context, position)
            logits = np.ctypeslib.as_array(pointer, (n_vocab,)).astype(np.float64)
            logits -= logits.max()
            yield float(logits[following] - np.log(np.exp(logits).sum()))
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)


def main() -> None:
    made, source, quantization = sys.argv[1:]
    try:
        print(check(Path(made), Path(source), quantization), flush=True)
    except (CheckFailed, InvalidGguf) as problem:
        sys.exit(str(problem))


if __name__ == "__main__":
    main()
