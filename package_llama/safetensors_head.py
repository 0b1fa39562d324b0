"""Reads the head of a safetensors file: the types of its weights. Raises PackagingError if the file is cut short.

Source: the format's description in safetensors' README.
"""

import json
import struct
from pathlib import Path

from package_llama.errors import PackagingError

MAX_HEAD_BYTES = 100_000_000  # safetensors' own limit


def read_types(path: Path) -> set[str]:
    """The types of the tensors that are a layer's weights. Other tensors may be masks or numbers of positions."""
    n_bytes = path.stat().st_size
    try:
        with path.open("rb") as file:
            (head_bytes,) = struct.unpack("<Q", file.read(8))
            if head_bytes > min(MAX_HEAD_BYTES, n_bytes - 8):
                raise ValueError(f"its head would have {head_bytes:,} bytes")
            head = json.loads(file.read(head_bytes))
        head.pop("__metadata__", None)
        end = 8 + head_bytes + max((tensor["data_offsets"][1] for tensor in head.values()), default=0)
        if n_bytes < end:
            raise ValueError(f"it has {n_bytes:,} bytes of {end:,}")
        return {str(tensor["dtype"]) for name, tensor in head.items() if "weight" in name.rpartition(".")[2]}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, struct.error) as error:
        raise PackagingError(f"{path} is damaged or incomplete ({error}): download it again.") from error
