"""The differences between machines: threads, memory and where the layers are. Fake programs stand for an Apple machine.

The lines of llama.cpp's log are those of its source for each kind of GPU (src/llama.cpp, src/llama-model.cpp). For
this machine's processor they come from llama.cpp itself.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from apps.dashboard.model_description import describe_model, where_layers_are
from llama_cpp_worker.devices import Placement, has_memory_pressure, physical_cores
from llama_cpp_worker.model import Model
from llama_cpp_worker.weights import ModelLoadError
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


def test_an_apple_processor_uses_its_performance_cores(machine: Machine) -> None:
    machine("Darwin", hw__perflevel0__physicalcpu="4", hw__physicalcpu="8")
    assert physical_cores() == 4


def test_a_mac_with_an_intel_processor_uses_its_cores(machine: Machine) -> None:
    machine("Darwin", hw__physicalcpu="6")
    assert physical_cores() == (psutil.cpu_count(logical=False) or psutil.cpu_count())


def test_sysctl_is_used_on_macos_only(machine: Machine) -> None:
    machine("Linux", hw__perflevel0__physicalcpu="99")
    assert physical_cores() == (psutil.cpu_count(logical=False) or psutil.cpu_count())


def test_a_machine_without_these_programs_uses_its_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    physical_cores.cache_clear()
    assert physical_cores() == (psutil.cpu_count(logical=False) or psutil.cpu_count())
    assert not has_memory_pressure()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no process to cores")
def test_a_pinned_process_uses_only_its_cores() -> None:
    allowed = os.sched_getaffinity(0)
    physical_cores.cache_clear()
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert physical_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
        physical_cores.cache_clear()


# --- memory


@pytest.mark.parametrize(("level", "is_short"), [("1", False), ("2", True), ("4", True)])
def test_macos_reports_whether_memory_is_short(machine: Machine, level: str, is_short: bool) -> None:
    machine("Darwin", kern__memorystatus_vm_pressure_level=level)
    assert has_memory_pressure() is is_short


def test_a_cache_and_saved_sequences_get_two_fifths_of_the_free_memory() -> None:
    for placement in (placed(layers=["CPU"] * 33), Placement()):  # the second one: an empty log
        assert placement.cache_budget(WEIGHTS, 10 * GIB, 0) == pytest.approx(4 * GIB)
        assert placement.cache_budget(WEIGHTS, 10 * GIB, GIB) == pytest.approx(3 * GIB)
        assert placement.cache_budget(WEIGHTS, 10 * GIB, 5 * GIB) == 0


def test_a_cache_on_metal_fits_the_limit_of_metal_and_main_memory() -> None:
    metal = placed(METAL, layers=["MTL0"] * 33)
    left = 10922 * 2**20 - WEIGHTS
    assert metal.cache_budget(WEIGHTS, 10 * GIB, GIB) == pytest.approx(3 * GIB)
    assert metal.cache_budget(WEIGHTS, 900 * GIB, GIB) == pytest.approx(0.8 * left)


def test_memory_pressure_halves_the_cache(machine: Machine) -> None:
    machine("Darwin", kern__memorystatus_vm_pressure_level="2")
    assert placed(METAL, layers=["MTL0"] * 33).cache_budget(WEIGHTS, 10 * GIB, GIB) == pytest.approx(1.5 * GIB)


def test_a_cache_on_cuda_fits_the_gpu_only() -> None:
    left = 24000 * 2**20 - WEIGHTS
    assert placed(CUDA, layers=["CUDA0"] * 33).cache_budget(WEIGHTS, GIB, GIB) == pytest.approx(0.8 * left)


def test_a_cache_on_both_fits_each_with_its_part() -> None:
    placement = placed(CUDA, layers=["CPU"] * 24 + ["CUDA0"] * 9)  # 8 of the 32 that have a cache are on the GPU
    assert placement.cache_budget(WEIGHTS, 10 * GIB, GIB) == pytest.approx(3 * GIB * 32 / 24)
    left = 24000 * 2**20 - WEIGHTS * 9 / 33
    assert placement.cache_budget(WEIGHTS, 9000 * GIB, GIB) == pytest.approx(0.8 * left * 32 / 8)


def test_weights_that_fill_the_gpu_leave_no_cache() -> None:
    small = ("CUDA0", "small", 1024)
    assert placed(small, layers=["CUDA0"] * 33).cache_budget(WEIGHTS, 9 * GIB, 0) == 0


def test_the_share_in_main_memory_includes_metal() -> None:
    assert placed(METAL, layers=["MTL0"] * 33).main_memory_share == Placement().main_memory_share == 1
    assert placed(CUDA, layers=["CPU"] * 11 + ["CUDA0"] * 22).main_memory_share == pytest.approx(1 / 3)


def test_saved_sequences_take_their_memory_from_the_window(tmp_path: Path) -> None:
    path = str(write_tiny_llama(tmp_path / "tiny.gguf"))
    with pytest.raises(ModelLoadError, match="do not fit into the free memory"):
        Model(path, n_slots=1, n_saved_bytes=2**50)


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
        pytest.param(placed(layers=["Kompute0"] * 2), "2 of 2 layers on Kompute", id="unknown kind"),
        pytest.param(Placement(), "", id="no log"),
    ],
)
def test_the_page_shows_where_llama_cpp_put_the_layers(placement: Placement, sentence: str) -> None:
    assert shown(placement) == sentence


def test_the_log_of_llama_cpp_itself_has_the_place_of_each_layer(tmp_path: Path) -> None:
    model = Model(str(write_tiny_llama(tmp_path / "tiny.gguf")), n_slots=1, n_saved_bytes=1000)
    description: dict[str, Any] = model.describe()
    memory, size = description["memory_bytes"], model.state_size(0)
    model.close()
    assert memory["weights"] == description["size_bytes"]
    assert memory["kv_cache"] > size
    assert memory["saved_sequences"] == 1000
    assert (description["layers"], sum(device["layers"] for device in description["devices"])) == (2, 2)
    assert description["threads"] == physical_cores() <= (os.cpu_count() or 1)


def test_the_description_of_a_model_is_a_sentence_also_without_a_report() -> None:
    report = {"layers": 33, "devices": placed(METAL, layers=["MTL0"] * 33).describe(), "chat_template": "model"}
    assert describe_model(report) == "33 of 33 layers on Metal (Apple M1)."
    assert describe_model(report | {"chat_template": "raw"}).endswith("sent to it as Question: … Answer: …")
    assert describe_model(None) == "Waiting for the model to report where its layers are."
    assert describe_model({"gpu_offload": False}) == "The model does not report where its layers are."
