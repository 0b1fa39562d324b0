"""Reads the head of a GGUF file with the package gguf: its type, and the type, shape and position of each tensor.

Not covered: big-endian files; the values of metadata arrays.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, GGUFValueType


class InvalidGguf(ValueError):
    """The file is not a complete GGUF file. The message names it."""


def read_head(path: Path) -> GGUFReader:
    """Raises InvalidGguf, also if the file ends before its last tensor does. Raises OSError."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InvalidGguf(f"{path} is not a GGUF file")
    try:
        with np.errstate(over="raise"):
            return _HeadReader(path)
    except (ValueError, LookupError, ArithmeticError, struct.error) as error:
        raise InvalidGguf(f"{path} is damaged or incomplete ({error})") from error


class _HeadReader(GGUFReader):
    """Skips the values of arrays. GGUFReader takes 10 s and 0.6 GB for those of Llama 3's vocabulary."""

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[npt.NDArray[Any]], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind, count = struct.unpack_from("<IQ", self.data.data, orig_offs)
        end, content = orig_offs + 12, self.data.data
        if kind == GGUFValueType.STRING:
            for _ in range(count):
                end += 8 + struct.unpack_from("<Q", content, end)[0]
        else:
            end += count * np.dtype(self.gguf_scalar_to_np[GGUFValueType(kind)]).itemsize
        return end - orig_offs, [], [], [GGUFValueType.ARRAY]
