"""Asks llama.cpp whether it can run a GGUF file, as a separate program: llama.cpp ends the process on some files.

    python -m package_llama.probe_gguf <file>

llama.cpp reads the head and the vocabulary, and plans the computation. It reads no weights, so this takes the same time
for 70B as for a tiny model. The program prints nothing about a good file, and a reason on stderr about another one.

Not covered: weights that are damaged inside a file of the right size.
"""

import re
import resource
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import llama_cpp

from llama_cpp_worker.tokenizer import Tokenizer
from llama_cpp_worker.weights import Weights
from package_llama.llama_log import ERROR, llama_log

MAX_CPU_SECONDS, MAX_BYTES = 120, 16 * 2**30  # a usual model: 1 s, 0.5 GB
LOG_PREFIX = re.compile(r"^\w+: (error loading model( \w+)?: )*")
QUESTION = [{"role": "user", "content": "Hello, how are you?\n"}]
N_CTX = 256


class Unusable(Exception):
    """The message is the problem, as a part of a sentence."""


def probe(path: Path) -> None:
    """Raises Unusable if llama.cpp cannot load the file, or if the file is no model that answers."""
    errors: list[str] = []

    def on_line(level: int, line: str) -> None:
        if level == ERROR:
            errors.append(LOG_PREFIX.sub("", line))

    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    params.no_alloc = True  # as llama_params_fit does, which only measures
    params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE  # llama.cpp aborts if it should map and not allocate
    with llama_log(on_line):
        model = llama_cpp.llama_model_load_from_file(bytes(path), params)
        if not model:
            raise Unusable((errors or ["llama.cpp gave no reason"])[0])
        if llama_cpp.llama_model_has_encoder(model) or llama_cpp.llama_model_is_recurrent(model):
            raise Unusable("it has an encoder or is recurrent, and the worker runs only plain decoders")
        _check_tokenizer(model, path)
        context_params = llama_cpp.llama_context_default_params()
        n_ctx = min(N_CTX, llama_cpp.llama_model_n_ctx_train(model))
        context_params.n_ctx = context_params.n_batch = context_params.n_ubatch = n_ctx
        if not llama_cpp.llama_init_from_model(model, context_params):
            raise Unusable((errors or ["llama.cpp cannot make a context for it"])[0])


def _check_tokenizer(model: llama_cpp.llama_model_p, path: Path) -> None:
    """Makes the worker's tokenizer and renders a question: a damaged vocabulary or chat template fails here."""
    weights = cast(Weights, SimpleNamespace(pointer=model, path=str(path)))  # it uses nothing else of the weights
    try:
        tokens = Tokenizer(weights, N_CTX).tokenize_chat(QUESTION)
    except (ValueError, RuntimeError) as error:
        problem = str(error).removeprefix(f"'{path}': ").rstrip(".")
        raise Unusable(f"its vocabulary or chat template cannot be used: {problem}") from error
    if not tokens:
        raise Unusable("its vocabulary cannot write a text")


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_SECONDS, MAX_CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_BYTES, MAX_BYTES))
    try:
        probe(Path(sys.argv[1]))
    except Unusable as problem:
        sys.exit(str(problem))


if __name__ == "__main__":
    main()
