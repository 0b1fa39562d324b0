"""Reads the head of a GGUF file with the package gguf: its metadata, and type, shape and position of each tensor.

A damaged head costs neither much time nor much memory, whatever its numbers say: see the limits.

Not covered: big-endian files; the values of metadata arrays.
"""

import re
import struct
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, GGUFValueType, ReaderField, ReaderTensor

MAX_TENSORS, MAX_FIELDS, MAX_ARRAY_ITEMS = 2**17, 2**14, 2**24  # the largest models have 5,000, 100 and 600,000
MAX_VALUE_BYTES = 2**28  # of a text; a whole tokenizer.json has 30 MB
VERSIONS = (2, 3)  # gguf.cpp refuses version 1; version 2 differs from 3 in nothing that little-endian files have
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")  # llama_split_path in llama.cpp
DOWNLOAD = "download it again"
# How other files begin, and what to do with such a file.
OTHER_KINDS = {
    rb"version https://git-lfs": ("is a Git LFS pointer", "run 'git lfs pull' in its folder"),
    rb"\s*(\xef\xbb\xbf)?\s*<(!|html|\?xml|head)": (
        "is a web page",
        "download the file itself ('resolve' in its address)",
    ),
    rb"(?s).{8}\{\s*\"": ("is a safetensors file", "give the snapshot folder that it belongs to"),
    rb"PK\x03\x04": ("is a zip or PyTorch file", "give the snapshot folder that it belongs to, or unpack it"),
    rb"(tjgg|fmgg|lmgg|algg)": ("is in llama.cpp's format of before August 2023", "download the model as GGUF"),
}


class InvalidGguf(ValueError):
    """The file is not a complete GGUF file. The message names it and the problem; `advice` is the next step."""

    def __init__(self, problem: str, advice: str = "give a whole .gguf file or a snapshot folder") -> None:
        super().__init__(problem)
        self.advice = advice


def read_head(path: Path) -> GGUFReader:
    """Raises InvalidGguf, also if the file ends before its last tensor does. Raises OSError."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise InvalidGguf(f"{path} is empty", DOWNLOAD)
    if start[:4] != b"GGUF":
        for pattern, (kind, advice) in OTHER_KINDS.items():
            if re.match(pattern, start, re.IGNORECASE):
                raise InvalidGguf(f"{path} {kind}, not a GGUF file", advice)
        raise InvalidGguf(f"{path} is not a GGUF file")
    if len(start) >= 8:
        _check_version(path, *struct.unpack_from("<I", start, 4))
    try:
        with np.errstate(over="raise"):
            return _HeadReader(path)
    except (ValueError, LookupError, ArithmeticError, struct.error) as error:
        raise InvalidGguf(f"{path} is damaged or incomplete ({error})", DOWNLOAD) from error


def value(head: GGUFReader, key: str) -> object:
    """A value of the metadata; None for an array, for a text that is not UTF-8, and if there is none."""
    field = head.get_field(key)
    if field is None or field.types[0] == GGUFValueType.ARRAY:
        return None
    content = bytes(field.parts[field.data[0]])
    try:
        return content.decode() if field.types[0] == GGUFValueType.STRING else field.contents()
    except UnicodeDecodeError:
        return None


def part_paths(path: Path, head: GGUFReader) -> list[Path]:
    """The parts of a model that is split into several files, of which `path` is the first; else `path` alone.

    Raises InvalidGguf if `path` is another part, or if a part is missing or has not the name that llama.cpp expects.
    """
    count, number = value(head, "split.count"), value(head, "split.no")
    if not isinstance(count, int) or count < 2:
        return [path]
    named = PART.search(path.name)
    if not named or int(named[2]) != count or not isinstance(number, int) or int(named[1]) != number + 1:
        raise InvalidGguf(
            f"{path} is a part of {count}, and its name does not end in -00001-of-{count:05}.gguf",
            "give the parts their names back; parts that were joined with cat have to be downloaded again",
        )
    paths = [path.with_name(f"{path.name[: named.start()]}-{each + 1:05}-of-{count:05}.gguf") for each in range(count)]
    if missing := [each.name for each in paths if not each.is_file()]:
        names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise InvalidGguf(f"{path} is a part of {count}, and {names} cannot be found beside it", "download all parts")
    if number != 0:
        raise InvalidGguf(f"{path} is part {number + 1} of {count}", f"give the first one, {paths[0].name}")
    return paths


def read_tensors(path: Path) -> list[ReaderTensor]:
    """The tensors of the file and of its other parts. Raises InvalidGguf and OSError."""
    head = read_head(path)
    return head.tensors + [tensor for part in part_paths(path, head)[1:] for tensor in read_head(part).tensors]


def _check_version(path: Path, version: int) -> None:
    if version & 0xFFFF == 0:
        raise InvalidGguf(f"{path} is a big-endian GGUF file", "download the model for usual (little-endian) machines")
    if version not in VERSIONS:
        raise InvalidGguf(f"{path} is of GGUF version {version}, and llama.cpp reads 2 and 3", "give another file")


class _HeadReader(GGUFReader):
    """GGUFReader with limits. Skips arrays' values: GGUFReader takes 10 s and 0.6 GB for Llama 3's vocabulary."""

    _max_bytes = MAX_VALUE_BYTES

    def _get(
        self,
        offset: int,
        dtype: npt.DTypeLike,
        count: int = 1,
        override_order: Literal["I", "S", "<"] | None = None,
    ) -> npt.NDArray[Any]:
        n_bytes = np.dtype(dtype).itemsize * int(count)
        if n_bytes > self._max_bytes or offset + n_bytes > len(self.data):
            raise ValueError(f"it has {len(self.data):,} bytes, and its head names at least {offset + n_bytes:,}")
        return super()._get(offset, dtype, count, override_order)

    def _build_fields(self, offs: int, count: int) -> int:
        if count > MAX_FIELDS:
            raise ValueError(f"its head names {count:,} fields")
        return super()._build_fields(offs, count)

    def _build_tensor_info(self, offs: int, count: int) -> tuple[int, list[ReaderField]]:
        if count > MAX_TENSORS:
            raise ValueError(f"its head names {count:,} tensors")
        return super()._build_tensor_info(offs, count)

    def _build_tensors(self, start_offs: int, fields: list[ReaderField]) -> None:
        self._max_bytes = len(self.data)
        super()._build_tensors(start_offs, fields)

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[npt.NDArray[Any]], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind, count = struct.unpack_from("<IQ", self.data.data, orig_offs)
        if count > MAX_ARRAY_ITEMS:
            raise ValueError(f"its head names {count:,} items of a list")
        end, content = orig_offs + 12, self.data.data
        if kind == GGUFValueType.STRING:
            for _ in range(count):
                end += 8 + struct.unpack_from("<Q", content, end)[0]
        else:
            end += count * np.dtype(self.gguf_scalar_to_np[GGUFValueType(kind)]).itemsize
        return end - orig_offs, [], [], [GGUFValueType.ARRAY]
