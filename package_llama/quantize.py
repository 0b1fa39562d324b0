"""Quantizes a GGUF file with llama.cpp, as a separate program. Prints its progress on stderr.

python -m package_llama.quantize <source> <target> <type>
"""

import ctypes
import re
import sys
from pathlib import Path

import llama_cpp

from package_llama.llama_log import ERROR, llama_log
from package_llama.weight_types import QUANTIZATIONS

BUFFER_BYTES = 2**28  # for the tensor rows that are quantized together; llama.cpp's default is 8 GiB


def quantize_gguf(source: Path, target: Path, quantization: str) -> None:
    """Writes `source` as `target`. Raises RuntimeError if llama.cpp fails."""
    errors = ["llama.cpp gave no reason; is the disk full?"]

    def on_line(level: int, line: str) -> None:
        if level == ERROR:
            errors.append(line)
        elif found := re.match(r"\[ *(\d+)/ *(\d+)\] ", line):  # llama.cpp logs this before each tensor
            percent = 100 * (int(found[1]) - 1) // int(found[2])
            print(f"quantized {percent}%", file=sys.stderr, flush=True)

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = QUANTIZATIONS[quantization].file_type
    params.allow_requantize = True
    params.max_buf_size = BUFFER_BYTES
    with llama_log(on_line):
        status = llama_cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(params))
    if status != 0:
        raise RuntimeError(errors[-1])
    print("quantized 100%", file=sys.stderr, flush=True)


if __name__ == "__main__":
    quantize_gguf(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
