"""The machine under llama.cpp: how many threads it should get, where it has put the layers, how much room is left.

All that differs between an Apple machine and others is in here. Knows llama.cpp's log and the system, not its API.

Not covered: Macs whose GPU has memory of its own; they get the smaller cache of one that has not.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from functools import cache

import psutil

RAM_SHARE = 1 / 3  # of the free memory, for the KV cache: the weights and other workers need room, too
GPU_SHARE = 0.8  # of what the weights leave free on a GPU: llama.cpp computes there, too
PRESSURE_SHARE = 1 / 2  # of both while macOS reports memory pressure: what it counts as free is in use then
NORMAL_PRESSURE = "1"  # kern.memorystatus_vm_pressure_level; 2 is a warning, 4 critical
PROGRAM_SECONDS = 5.0

# llama.cpp names a device after its backend, with a number (ggml_backend_dev_name).
KINDS = {"MTL": "Metal", "CUDA": "CUDA", "ROCm": "ROCm", "Vulkan": "Vulkan", "SYCL": "SYCL"}
# Its log while it loads a model (src/llama.cpp, src/llama-model.cpp); its API does not tell.
_GPU = re.compile(r"using device (\S+) \((.*)\) \([^()]*\) - (\d+) MiB free")
_LAYER = re.compile(r"layer +(\d+) assigned to device (\w+)")


@dataclass(frozen=True, slots=True)
class Device:
    """A processor with `layers` of the model. free_bytes: its own memory before they came, 0 for the CPU."""

    name: str
    description: str
    layers: int
    free_bytes: int

    @property
    def kind(self) -> str:
        """Metal, CUDA or CPU; llama.cpp's own word for others."""
        backend = self.name.rstrip("0123456789")
        return KINDS.get(backend, backend)

    @property
    def is_in_main_memory(self) -> bool:
        """Metal has no memory of its own, only a limit to how much of the main memory it uses."""
        return self.kind in ("CPU", "Metal")


class Placement:
    """Where llama.cpp has put the layers of a model, from its log; like there, the output counts as the last layer."""

    def __init__(self) -> None:
        self._gpus: dict[str, tuple[str, int]] = {}
        self._layers: dict[int, str] = {}

    def read(self, line: str) -> None:
        """A line of the log that llama.cpp writes while it loads."""
        if found := _GPU.search(line):
            self._gpus[found[1]] = (found[2], int(found[3]) * 2**20)
        elif found := _LAYER.search(line):
            self._layers[int(found[1])] = found[2]

    @property
    def n_layers(self) -> int:
        return len(self._layers)

    @property
    def devices(self) -> list[Device]:
        """Those that have layers; the one with the last layers first, because llama.cpp fills GPUs from there."""
        counts = Counter(self._layers[layer] for layer in sorted(self._layers, reverse=True))
        return [Device(name, *self._described(name, count)) for name, count in counts.items()]

    def _described(self, name: str, count: int) -> tuple[str, int, int]:
        description, free_bytes = self._gpus.get(name, ("", 0))
        return description, count, free_bytes

    def describe(self) -> list[dict[str, object]]:
        return [
            {"device": each.name, "kind": each.kind, "description": each.description, "layers": each.layers}
            for each in self.devices
        ]

    def cache_room(self, weights_bytes: int, available_bytes: int) -> float:
        """Bytes that a KV cache may have: it lies where the layers lie, and every memory has to hold its part.

        available_bytes: free in main memory.
        """
        output = max(self._layers, default=0)
        parts = Counter(device for layer, device in self._layers.items() if layer != output)
        devices = [device for device in self.devices if parts[device.name]]
        repeating = max(1, parts.total())
        rooms = []
        for device in devices:
            if device.free_bytes:
                left = device.free_bytes - weights_bytes * device.layers / self.n_layers
                rooms.append(max(0.0, left) * GPU_SHARE * repeating / parts[device.name])
        in_main_memory = sum(parts[device.name] for device in devices if device.is_in_main_memory)
        if in_main_memory or not rooms:
            rooms.append(available_bytes * RAM_SHARE * repeating / (in_main_memory or repeating))
        return min(rooms) * (PRESSURE_SHARE if has_memory_pressure() else 1)


@cache
def physical_cores() -> int:
    """As many threads as llama.cpp should get: they wait for each other, so the slowest core sets the pace.

    Hyper-threads are not counted, and of an Apple processor's cores only the performance cores.
    """
    if _is_mac() and (cores := _answer_of("sysctl", "-n", "hw.perflevel0.physicalcpu")).isdigit():
        return int(cores)
    return psutil.cpu_count(logical=False) or psutil.cpu_count() or 1


def has_memory_pressure() -> bool:
    """Whether macOS says that memory is short. Elsewhere what the system calls available is the whole answer."""
    return _is_mac() and _answer_of("sysctl", "-n", "kern.memorystatus_vm_pressure_level") not in ("", NORMAL_PRESSURE)


def _is_mac() -> bool:
    return _answer_of("uname", "-s") == "Darwin"


def _answer_of(*command: str) -> str:
    """What a program of the system prints; "" where there is none, or where it does not know what is asked."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=PROGRAM_SECONDS, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
