"""Receives the lines that llama.cpp logs. Not for the worker of TorchServe."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import llama_cpp

ERROR = 4  # enum ggml_log_level in ggml.h; the numbers in llama_cpp._logger are older


@contextmanager
def llama_log(on_line: Callable[[int, str], None]) -> Iterator[None]:
    """Inside the block, llama.cpp's log goes to `on_line(level, text)` and not to stderr.

    The end of the block removes the callback: llama.cpp crashes if it calls a function that Python has freed.
    """

    def forward(level: int, text: bytes, _: object) -> None:
        on_line(level, text.decode(errors="replace").strip())

    callback = llama_cpp.llama_log_callback(forward)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        yield
    finally:
        llama_cpp.llama_log_set(llama_cpp.llama_log_callback(), ctypes.c_void_p(0))  # null: llama.cpp's own log
