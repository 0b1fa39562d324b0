"""What the head of a GGUF file says: metadata and tensors. Format: docs/gguf.md of ggml. Reads no weights.

Not covered: big-endian files, versions before 2, the contents of metadata arrays.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from package_llama.weight_types import F16, F32

MAGIC = b"GGUF"
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9  # enum gguf_metadata_value_type, as the keys of SCALARS
BYTES_OF = {F32: 4, F16: 2}


class InvalidGguf(ValueError):
    """The file does not begin as a GGUF does."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """shape: the innermost dimension first. kind: enum ggml_type. offset: from the beginning of the weights."""

    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class GgufHead:
    """metadata: without arrays. weights_begin: a position in the file."""

    metadata: dict[str, object]
    tensors: dict[str, TensorInfo]
    weights_begin: int

    @property
    def f16_file_bytes(self) -> int:
        """Where a file of f16 and f32 tensors ends, padding included; KeyError for other types."""
        ends = [tensor.offset + tensor.n_elements * BYTES_OF[tensor.kind] for tensor in self.tensors.values()]
        return _aligned(self.weights_begin + max(ends), self._alignment)

    @property
    def _alignment(self) -> int:
        return _alignment_of(self.metadata)


def read_head(path: Path) -> GgufHead:
    """Raises BrokenGguf and OSError."""
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise InvalidGguf(f"{path} is not a GGUF file")
        try:
            _, n_tensors, n_fields = _unpack(file, "IQQ")
            metadata = dict(_read_field(file) for _ in range(n_fields))
            tensors = dict(_read_tensor(file) for _ in range(n_tensors))
        except (struct.error, KeyError, UnicodeDecodeError) as error:
            raise InvalidGguf(f"{path} has a broken head ({error})") from error
        kept = {name: value for name, value in metadata.items() if value is not None}
        return GgufHead(kept, tensors, _aligned(file.tell(), _alignment_of(kept)))


def _read_field(file: BinaryIO) -> tuple[str, object]:
    name = _read_string(file).decode()
    return name, _read_value(file, *_unpack(file, "I"))


def _read_value(file: BinaryIO, kind: int) -> object:
    """None for an array, which is skipped."""
    if kind == STRING:
        return _read_string(file).decode(errors="replace")
    if kind != ARRAY:
        return _unpack(file, SCALARS[kind])[0]
    inner, count = _unpack(file, "IQ")
    if inner in SCALARS:
        file.seek(count * struct.calcsize(SCALARS[inner]), os.SEEK_CUR)
    else:
        for _ in range(count):
            _read_value(file, inner)
    return None


def _read_tensor(file: BinaryIO) -> tuple[str, TensorInfo]:
    name = _read_string(file).decode()
    shape = _unpack(file, f"{_unpack(file, 'I')[0]}Q")
    return name, TensorInfo(shape, *_unpack(file, "IQ"))


def _read_string(file: BinaryIO) -> bytes:
    (length,) = _unpack(file, "Q")
    text = file.read(length)
    if len(text) < length:
        raise struct.error("it ends too early")
    return text


def _unpack(file: BinaryIO, layout: str) -> tuple:
    return struct.unpack(f"<{layout}", file.read(struct.calcsize(f"<{layout}")))


def _alignment_of(metadata: dict[str, object]) -> int:
    alignment = metadata.get("general.alignment", 32)
    return alignment if isinstance(alignment, int) else 32


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
