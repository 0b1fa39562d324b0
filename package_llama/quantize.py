"""A program of its own: rounds the weights of a GGUF file with llama.cpp, and tells how far it is on stderr.

python -m package_llama.quantize <source> <target> <type>
"""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

import llama_cpp

from package_llama.gguf_header import read_head
from package_llama.llama_log import ERROR, llama_log
from package_llama.weight_types import QUANTIZATIONS

BUFFER_BYTES = 2**28  # of tensor rows at once; llama.cpp's own choice is 8 GiB
DONE = "quantized"  # a line of stderr: this word and the part that is done


def quantize_gguf(source: Path, target: Path, quantization: str) -> None:
    """Writes `source` as `target`; raises RuntimeError when llama.cpp fails."""
    sizes = {name: tensor.n_elements for name, tensor in read_head(source).tensors.items()}
    total, done, errors = sum(sizes.values()), 0, ["llama.cpp gave no reason; is the disk full?"]

    def take(level: int, line: str) -> None:
        nonlocal done
        if level == ERROR:
            errors.append(line)
        elif found := re.match(r"\[ *\d+/ *\d+\] (\S+)", line):  # written when a tensor is begun
            print(f"{DONE} {done / total}", file=sys.stderr, flush=True)
            done += sizes.get(found[1], 0)

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = QUANTIZATIONS[quantization].file_type
    params.allow_requantize = True
    params.max_buf_size = BUFFER_BYTES
    with llama_log(take):
        status = llama_cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(params))
    if status != 0:
        raise RuntimeError(errors[-1])
    print(f"{DONE} 1", file=sys.stderr, flush=True)


if __name__ == "__main__":
    quantize_gguf(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
