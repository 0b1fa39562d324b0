"""What differs from machine to machine: threads, memory and where the layers are; an Apple one is played by programs.

The lines of llama.cpp's log are those that its source has for each kind of GPU (src/llama.cpp, src/llama-model.cpp);
on this machine's processor they come from llama.cpp itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from apps.dashboard.model_description import describe_model, where_layers_are
from llama_cpp_worker.devices import Placement, has_memory_pressure, physical_cores
from llama_cpp_worker.model import Model
from tests.support.tiny_llama import write_tiny_llama

GIB = 2**30
METAL = ("MTL0", "Apple M1", 10922)
CUDA = ("CUDA0", "NVIDIA GeForce RTX 3090 (laptop)", 24000)
WEIGHTS = 4 * GIB

Machine = Callable[..., None]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Puts `uname` and `sysctl` on a private PATH: what they print by their last argument; they fail for others."""

    def play(uname: str, **sysctl: str) -> None:
        script = f"#!/bin/sh\n[ \"$1\" = -s ] && echo {uname} && exit 0\necho 'uname: illegal option' >&2\nexit 1\n"
        cases = "".join(f"{name.replace('__', '.')}) echo {value} ;;\n" for name, value in sysctl.items())
        answers = f'#!/bin/sh\ncase "$2" in\n{cases}*) echo "sysctl: unknown oid \'$2\'" >&2; exit 1 ;;\nesac\n'
        for name, text in (("uname", script), ("sysctl", answers)):
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        physical_cores.cache_clear()

    yield play
    physical_cores.cache_clear()


def placed(*gpus: tuple[str, str, int], layers: list[str]) -> Placement:
    """What llama.cpp logs when it puts each of `layers` on the device named."""
    placement = Placement()
    for name, description, free_mebibytes in gpus:
        placement.add_log_line(
            f"llama_prepare_model_devices: using device {name} ({description}) (unknown id) - {free_mebibytes} MiB free"
        )
    for number, device in enumerate(layers):
        placement.add_log_line(f"load_tensors: layer {number:3} assigned to device {device}, is_swa = 0")
    placement.add_log_line("load_tensors: offloaded 33/33 layers to GPU")
    return placement


def shown(placement: Placement) -> str:
    return where_layers_are({"layers": placement.n_layers, "devices": placement.describe()})


# --- threads


def test_an_apple_processor_gets_its_performance_cores(machine: Machine) -> None:
    machine("Darwin", hw__perflevel0__physicalcpu="4", hw__physicalcpu="8")
    assert physical_cores() == 4


def test_a_mac_with_an_intel_processor_gets_its_cores(machine: Machine) -> None:
    machine("Darwin", hw__physicalcpu="6")
    assert physical_cores() == (psutil.cpu_count(logical=False) or psutil.cpu_count())


def test_elsewhere_sysctl_is_not_asked(machine: Machine) -> None:
    machine("Linux", hw__perflevel0__physicalcpu="99")
    assert physical_cores() == (psutil.cpu_count(logical=False) or psutil.cpu_count())


def test_a_machine_without_these_programs_gets_its_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    physical_cores.cache_clear()
    assert physical_cores() == (psutil.cpu_count(logical=False) or psutil.cpu_count())
    assert not has_memory_pressure()


# --- memory


@pytest.mark.parametrize(("level", "is_short"), [("1", False), ("2", True), ("4", True)])
def test_macos_says_whether_memory_is_short(machine: Machine, level: str, is_short: bool) -> None:
    machine("Darwin", kern__memorystatus_vm_pressure_level=level)
    assert has_memory_pressure() is is_short


def test_a_cache_in_main_memory_takes_a_third_of_what_is_free() -> None:
    assert placed(layers=["CPU"] * 33).cache_budget(WEIGHTS, 9 * GIB) == pytest.approx(3 * GIB)
    assert Placement().cache_budget(WEIGHTS, 9 * GIB) == pytest.approx(3 * GIB)  # a log that says nothing


def test_a_cache_on_metal_has_to_fit_metals_limit_and_main_memory() -> None:
    metal = placed(METAL, layers=["MTL0"] * 33)
    left = 10922 * 2**20 - WEIGHTS
    assert metal.cache_budget(WEIGHTS, 9 * GIB) == pytest.approx(3 * GIB)
    assert metal.cache_budget(WEIGHTS, 900 * GIB) == pytest.approx(0.8 * left)


def test_memory_pressure_halves_the_cache(machine: Machine) -> None:
    machine("Darwin", kern__memorystatus_vm_pressure_level="2")
    assert placed(METAL, layers=["MTL0"] * 33).cache_budget(WEIGHTS, 9 * GIB) == pytest.approx(1.5 * GIB)


def test_a_cache_on_cuda_has_to_fit_the_gpu_alone() -> None:
    left = 24000 * 2**20 - WEIGHTS
    assert placed(CUDA, layers=["CUDA0"] * 33).cache_budget(WEIGHTS, GIB) == pytest.approx(0.8 * left)


def test_a_cache_on_both_has_to_fit_each_with_its_part() -> None:
    placement = placed(CUDA, layers=["CPU"] * 24 + ["CUDA0"] * 9)  # 8 of the 32 that have a cache are on the GPU
    assert placement.cache_budget(WEIGHTS, 9 * GIB) == pytest.approx(3 * GIB * 32 / 24)
    left = 24000 * 2**20 - WEIGHTS * 9 / 33
    assert placement.cache_budget(WEIGHTS, 9000 * GIB) == pytest.approx(0.8 * left * 32 / 8)


def test_weights_that_fill_the_gpu_leave_no_cache() -> None:
    small = ("CUDA0", "small", 1024)
    assert placed(small, layers=["CUDA0"] * 33).cache_budget(WEIGHTS, 9 * GIB) == 0


# --- where the layers are


@pytest.mark.parametrize(
    ("placement", "sentence"),
    [
        pytest.param(placed(METAL, layers=["MTL0"] * 33), "33 of 33 layers on Metal (Apple M1)", id="Metal"),
        pytest.param(placed(layers=["CPU"] * 33), "33 of 33 layers on CPU", id="CPU"),
        pytest.param(
            placed(CUDA, layers=["CPU"] * 13 + ["CUDA0"] * 20),
            "20 of 33 layers on CUDA (NVIDIA GeForce RTX 3090 (laptop)), 13 on CPU",
            id="CUDA and CPU",
        ),
        pytest.param(
            placed(CUDA, ("CUDA1", "NVIDIA T4", 15000), layers=["CUDA0"] * 17 + ["CUDA1"] * 16),
            "16 of 33 layers on CUDA (NVIDIA T4), 17 on CUDA (NVIDIA GeForce RTX 3090 (laptop))",
            id="two GPUs",
        ),
        pytest.param(placed(layers=["Kompute0"] * 2), "2 of 2 layers on Kompute", id="a kind we do not know"),
        pytest.param(Placement(), "", id="not told"),
    ],
)
def test_the_layers_are_shown_where_llama_cpp_put_them(placement: Placement, sentence: str) -> None:
    assert shown(placement) == sentence


def test_llama_cpp_itself_tells_where_each_layer_is(tmp_path: Path) -> None:
    model = Model(str(write_tiny_llama(tmp_path / "tiny.gguf")), n_slots=1)
    told = model.describe()
    model.close()
    assert (told["layers"], sum(device["layers"] for device in told["devices"])) == (2, 2)  # type: ignore[attr-defined]
    assert told["threads"] == physical_cores() <= (os.cpu_count() or 1)


def test_what_the_model_says_is_a_sentence_and_so_is_that_it_has_not_spoken_yet() -> None:
    told = {"layers": 33, "devices": placed(METAL, layers=["MTL0"] * 33).describe(), "chat_template": "model"}
    assert describe_model(told) == "33 of 33 layers on Metal (Apple M1)."
    assert describe_model(told | {"chat_template": "raw"}).endswith("sent to it as Question: … Answer: …")
    assert describe_model(None) == "Waiting for the model to report where its layers are."
    assert describe_model({"gpu_offload": False}) == "The model does not report where its layers are."
