"""The weights: a GGUF that llama.cpp has loaded, where its layers are, and how large a context window fits beside it.

Knows the file and the memory; nothing of tokens and contexts. llama.cpp's log passes through here to ours.

Not covered: adapters (LoRA), the placement on more than one GPU.
"""

import ctypes
import hashlib
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp
import psutil

from llama_cpp_worker.devices import Placement, has_memory_pressure

logger = logging.getLogger(__name__)

CELL_ALIGNMENT = 256  # llama.cpp rounds the cells of a sequence up to a multiple of this
# The settings' kv_cache_type: llama.cpp's number and the bytes of a value. A block of q8_0 has 32 values and a scale.
KV_CACHE_TYPES = {"f16": (llama_cpp.GGML_TYPE_F16, 2.0), "q8_0": (llama_cpp.GGML_TYPE_Q8_0, 34 / 32)}


class ModelLoadError(RuntimeError):
    """The GGUF could not be loaded, or its KV cache does not fit; the message says what to change."""


class Weights:
    """A GGUF in memory: `pointer` is llama.cpp's model, `placement` says where its layers are.

    `changed_at` (seconds since 1970) and the fingerprint describe the file at the time of loading.
    Raises ModelLoadError.
    """

    def __init__(self, path: str, n_gpu_layers: int = -1) -> None:
        if not Path(path).is_file():
            raise ModelLoadError(f"There is no model file at '{path}': run package_llama.sh, or correct model_path.")
        file = Path(path).stat()
        self.path, self.changed_at, self._file_bytes = path, file.st_mtime, file.st_size
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        self.pointer, self.placement = _load(path, params)
        if not self.pointer:
            raise ModelLoadError(f"llama.cpp cannot load '{path}': is it a whole GGUF file? Its log has the reason.")
        self.size_bytes: int = llama_cpp.llama_model_size(self.pointer)
        self.n_ctx_train: int = llama_cpp.llama_model_n_ctx_train(self.pointer)

    def describe(self) -> dict[str, object]:
        """The file, the model's kind, size and parameters, for people."""
        text = ctypes.create_string_buffer(256)
        llama_cpp.llama_model_desc(self.pointer, text, len(text))
        return {
            "file": Path(self.path).name,
            "description": text.value.decode(),
            "size_bytes": self.size_bytes,
            "parameters": llama_cpp.llama_model_n_params(self.pointer),
        }

    def fingerprint(self, n_ctx: int) -> str:
        """Equal for workers with an equal file (by name and size), n_ctx and llama.cpp.

        The window is not part of it: a worker that starts with less free memory gets a smaller one.
        """
        identity = f"{Path(self.path).name} {self._file_bytes} {n_ctx} {version('llama-cpp-python')}"
        return f"fp_{hashlib.sha256(identity.encode()).hexdigest()[:10]}"

    def cache_bytes_per_token(self, kv_cache_type: str) -> float:
        """K and V. Most models leave out the size of a head; Qwen 3 and Gemma have another one than the usual."""
        usual: int = llama_cpp.llama_model_n_embd(self.pointer) // llama_cpp.llama_model_n_head(self.pointer)
        architecture = metadata(self.pointer, "general.architecture")
        sizes = [metadata(self.pointer, f"{architecture}.attention.{name}_length") for name in ("key", "value")]
        per_head = sum(int(size) if size.isdigit() else usual for size in sizes)
        n_layers: int = llama_cpp.llama_model_n_layer(self.pointer)
        n_heads: int = llama_cpp.llama_model_n_head_kv(self.pointer)
        return per_head * n_heads * n_layers * KV_CACHE_TYPES[kv_cache_type][1]

    def fitting_window(
        self, n_ctx: int, n_slots: int, cache_bytes_per_token: float, n_saved_bytes: int, *, embeddings: bool
    ) -> int:
        """Tokens per sequence: `n_ctx` (0: the model's own), or fewer if the KV caches would not fit the memory.

        n_saved_bytes: memory to leave free. embeddings: one more cache. Raises ModelLoadError if nothing fits.
        """
        budget = self.placement.cache_budget(self.size_bytes, psutil.virtual_memory().available, n_saved_bytes)
        n_caches = n_slots + embeddings
        fitting = int(budget / (cache_bytes_per_token * n_caches)) // CELL_ALIGNMENT * CELL_ALIGNMENT
        if fitting == 0:
            raise ModelLoadError(
                f"The KV caches of {n_slots} sequences do not fit into the free memory "
                f"({budget / 2**20:,.0f} MiB may be used): choose a smaller batch size."
            )
        window = min(n_ctx or self.n_ctx_train, self.n_ctx_train)
        if fitting < window:
            hint = " macOS reports memory pressure: close other programs." if has_memory_pressure() else ""
            logger.warning("Context window shortened from %d to %d tokens: memory is short.%s", window, fitting, hint)
        return min(window, fitting)

    def close(self) -> None:
        """Frees the memory, after all contexts."""
        llama_cpp.llama_model_free(self.pointer)


def metadata(model: Any, key: str) -> str:
    """A value of the GGUF's metadata; "" if there is none. model: llama.cpp's pointer."""
    text = ctypes.create_string_buffer(128)
    llama_cpp.llama_model_meta_val_str(model, key.encode(), text, len(text))
    return text.value.decode(errors="replace")


# enum ggml_log_level in ggml.h; llama_cpp._logger has an older one
_LOG_LEVELS = {3: logging.WARNING, 4: logging.ERROR}


def _forward_log(level: int, text: bytes, _: object) -> None:
    """Forwards llama.cpp's warnings and errors to our log. By default llama.cpp prints all details to stderr."""
    if level in _LOG_LEVELS:
        logger.log(_LOG_LEVELS[level], "%s", text.decode(errors="replace").rstrip())


_FORWARD_LOG = llama_cpp.llama_log_callback(_forward_log)  # stays referenced: llama.cpp calls it at any time


def _load(path: str, params: llama_cpp.llama_model_params) -> tuple[llama_cpp.llama_model_p | None, Placement]:
    """The model (None if it cannot be loaded) and the placement of its layers, which only the log says."""
    placement = Placement()

    def on_log(level: int, text: bytes, _: object) -> None:
        placement.add_log_line(text.decode(errors="replace"))
        _forward_log(level, text, _)

    callback = llama_cpp.llama_log_callback(on_log)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    try:
        return llama_cpp.llama_model_load_from_file(path.encode(), params), placement
    finally:
        llama_cpp.llama_log_set(_FORWARD_LOG, ctypes.c_void_p(0))
