"""The machine: how many threads llama.cpp should get, where it puts the layers, and how large a KV cache may be.

Every difference between Apple and other machines is here. Knows llama.cpp's log and the operating system. Knows
nothing of llama.cpp's API.

Not covered: Macs whose GPU has separate memory. They get the smaller KV cache of a Mac with shared memory.
"""

import os
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from functools import cache

import psutil

RAM_SHARE = 0.4  # of the free main memory, for KV caches and saved sequences; weights and other workers need some
GPU_SHARE = 0.8  # of a GPU's memory without the weights; llama.cpp needs the rest for its computations
PRESSURE_SHARE = 1 / 2  # of both while macOS reports memory pressure: part of the free memory is in use then
NORMAL_PRESSURE = "1"  # kern.memorystatus_vm_pressure_level; 2 is a warning, 4 critical
PROGRAM_TIMEOUT_SECONDS = 5.0

# llama.cpp's log while it loads a model (src/llama.cpp, src/llama-model.cpp); its API does not say this.
_GPU = re.compile(r"using device (\S+) \((.*)\) \([^()]*\) - (\d+) MiB free")
_LAYER = re.compile(r"layer +(\d+) assigned to device (\w+)")


@dataclass(frozen=True, slots=True)
class Device:
    """A processor with `layers` of the model. free_bytes: its own free memory before loading; 0 for the CPU."""

    name: str
    description: str
    layers: int
    free_bytes: int

    @property
    def kind(self) -> str:
        """Metal, or llama.cpp's name of the backend. It names a device after it, with a number: CUDA0."""
        backend = self.name.rstrip("0123456789")
        return "Metal" if backend == "MTL" else backend

    @property
    def is_in_main_memory(self) -> bool:
        """Whether its part of the KV cache is in main memory. Metal, too, uses main memory, up to a limit."""
        return self.kind in ("CPU", "Metal")


class Placement:
    """Where llama.cpp has put a model's layers, from its log. The output counts as the last layer, as in the log."""

    def __init__(self) -> None:
        self._gpus: dict[str, tuple[str, int]] = {}
        self._layers: dict[int, str] = {}

    def add_log_line(self, line: str) -> None:
        """Takes a line of llama.cpp's log."""
        if found := _GPU.search(line):
            self._gpus[found[1]] = (found[2], int(found[3]) * 2**20)
        elif found := _LAYER.search(line):
            self._layers[int(found[1])] = found[2]

    @property
    def n_layers(self) -> int:
        return len(self._layers)

    @property
    def devices(self) -> list[Device]:
        """Devices that have layers. The device with the last layers comes first: llama.cpp fills GPUs from the end."""
        counts = Counter(self._layers[layer] for layer in sorted(self._layers, reverse=True))
        gpus = {name: self._gpus.get(name, ("", 0)) for name in counts}
        return [Device(name, gpus[name][0], count, gpus[name][1]) for name, count in counts.items()]

    def describe(self) -> list[dict[str, object]]:
        return [
            {"device": each.name, "kind": each.kind, "description": each.description, "layers": each.layers}
            for each in self.devices
        ]

    @property
    def main_memory_share(self) -> float:
        """The share of the layers that are in main memory; 1 if the log does not say."""
        in_main_memory = sum(device.layers for device in self.devices if device.is_in_main_memory)
        return in_main_memory / self.n_layers if self.n_layers else 1.0

    def cache_budget(self, weights_bytes: int, available_bytes: int, saved_bytes: int) -> float:
        """The largest KV cache in bytes. Each device has the cache of its layers, and each part must fit.

        available_bytes: free main memory. saved_bytes: the part of it for saved sequences.
        """
        output = max(self._layers, default=0)
        parts = Counter(device for layer, device in self._layers.items() if layer != output)
        devices = [device for device in self.devices if parts[device.name]]
        repeating = max(1, parts.total())
        budgets = []
        for device in devices:
            if device.free_bytes:
                left = device.free_bytes - weights_bytes * device.layers / self.n_layers
                budgets.append(max(0.0, left) * GPU_SHARE * repeating / parts[device.name])
        in_main_memory = sum(parts[device.name] for device in devices if device.is_in_main_memory)
        if in_main_memory or not budgets:
            left = max(0.0, available_bytes * RAM_SHARE - saved_bytes)
            budgets.append(left * repeating / (in_main_memory or repeating))
        return min(budgets) * (PRESSURE_SHARE if has_memory_pressure() else 1)


@cache
def physical_cores() -> int:
    """How many threads llama.cpp should get: one per core, without hyper-threads and without Apple's efficiency cores.

    The threads wait for each other, so the slowest core decides the speed.
    """
    if _is_mac() and (performance := _output_of("sysctl", "-n", "hw.perflevel0.physicalcpu")).isdigit():
        return int(performance)
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    return min(cores, len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else cores  # taskset, a cpuset


def has_memory_pressure() -> bool:
    """Whether macOS reports that memory is short. On other systems the available memory says it all."""
    return _is_mac() and _output_of("sysctl", "-n", "kern.memorystatus_vm_pressure_level") not in ("", NORMAL_PRESSURE)


def _is_mac() -> bool:
    return _output_of("uname", "-s") == "Darwin"


def _output_of(*command: str) -> str:
    """What a program of the system prints; "" if there is no such program, or if it fails."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_SECONDS, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
