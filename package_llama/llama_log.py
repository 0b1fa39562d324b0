"""What llama.cpp says while it works, in a program that is not the worker."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import llama_cpp

ERROR = 4  # enum ggml_log_level in ggml.h; llama_cpp._logger has an older one


@contextmanager
def llama_log(take: Callable[[int, str], None]) -> Iterator[None]:
    """Within it, `take` gets the level and text of each line that llama.cpp logs, and stderr none.

    Afterwards llama.cpp forgets it, since a call of something that Python has freed ends the process.
    """

    @llama_cpp.llama_log_callback
    def forward(level: int, text: bytes, _: object) -> None:
        take(level, text.decode(errors="replace").strip())

    llama_cpp.llama_log_set(forward, ctypes.c_void_p(0))
    try:
        yield
    finally:
        llama_cpp.llama_log_set(llama_cpp.llama_log_callback(), ctypes.c_void_p(0))  # null: its own
