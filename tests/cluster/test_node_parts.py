"""The parts of a node that need no Ray: its folder, its watcher, its archive, and a machine's command."""

import hashlib
import os
import subprocess
import sys
import tarfile
import threading
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from cluster.machine import ray_command
from cluster.torchserve_home import free_ports, node_home, prepare_home
from cluster.watch import OWNER_LOCK, watch
from tests.support.serving import make_home, running_server
from torchserve_client.config import PROJECT, TorchServeError
from torchserve_client.file_lock import file_lock
from torchserve_client.metrics import MetricsSnapshot, ProcessSample
from torchserve_client.running_server import find_server


def test_a_nodes_torchserve_listens_at_this_machine_only_and_at_ports_of_its_own(tmp_path: Path) -> None:
    configs = [prepare_home(node_home(str(tmp_path), name)) for name in ("node-1", "../node 2")]
    ports = [port for config in configs for _, _, port in config.ports]
    assert len(set(ports)) == len(ports) == 10
    assert {host for config in configs for _, host, _ in config.ports} == {"127.0.0.1"}
    assert [config.home.parent for config in configs] == [tmp_path, tmp_path]
    assert all(config.home.stat().st_mode & 0o77 == 0 and config.needs_token for config in configs)
    assert len(set(free_ports(50))) == 50


def test_a_torchserve_without_an_owner_is_ended_and_one_with_an_owner_stays(tmp_path: Path) -> None:
    config = make_home(tmp_path / "home")
    watcher = threading.Thread(target=watch, args=(config, 0.0))
    with running_server(config):
        assert prepare_home(config.home) == config, "a running server keeps its ports"
        with file_lock(config.home / OWNER_LOCK, 1.0):
            watcher.start()
            watcher.join(3.0)
            assert watcher.is_alive() and find_server(config)
        watcher.join(120.0)
        assert not watcher.is_alive() and find_server(config) is None


def test_an_archive_for_a_copied_model_differs_in_the_path_only(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: `make cluster-test` installs it")
    from cluster.model_archive import ModelArchive, with_model_path

    config = make_home(tmp_path / "home")
    made = BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, text in (("model-config.yaml", "handler: {model_path: /old.gguf, n_ctx: 5}\n"), ("a.py", "pass\n")):
            entry = tarfile.TarInfo(f"llamacpp/{name}")
            entry.size = len(text)
            archive.addfile(entry, BytesIO(text.encode()))
    changed = with_model_path(made.getvalue(), Path("/new.gguf"))
    with tarfile.open(fileobj=BytesIO(changed)) as archive:
        parts = {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]
    assert yaml.safe_load(parts["llamacpp/model-config.yaml"]) == {"handler": {"model_path": "/new.gguf", "n_ctx": 5}}
    assert parts["llamacpp/a.py"] == b"pass\n"

    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    packed = ModelArchive(made.getvalue(), model, 4, "", model.stat().st_mtime_ns)
    assert packed.install(config) and not packed.install(config), "the second time it is there"
    assert (config.model_store / "llamacpp.tar.gz").read_bytes() == made.getvalue()


class FakeRay:
    """Its actors are objects of this process."""

    def remote(self, **_: object) -> Any:
        return lambda kind: SimpleNamespace(remote=lambda *args: RemoteObject(kind(*args)))

    def get(self, value: Any, timeout: float) -> Any:
        return value


class RemoteObject:
    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._actor, name))


def test_a_model_that_the_node_lacks_is_copied_in_pieces_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: `make cluster-test` installs it")
    from cluster import model_archive

    monkeypatch.setattr(model_archive, "ray", FakeRay())
    monkeypatch.setattr(model_archive, "PIECE_BYTES", 3)
    source, content = tmp_path / "model.gguf", b"GGUF and weights"
    source.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    archive = model_archive.ModelArchive(b"", source, len(content), sha256, 0, "10.0.0.1")
    copy = archive._copy(tmp_path / "models")
    assert copy.read_bytes() == content and [copy] == list((tmp_path / "models").iterdir())

    source.write_bytes(b"GGUF and other weights"[: len(content)])
    assert archive._copy(tmp_path / "models") == copy, "the copy is used again"
    assert not archive._is_here(), "another model of the same size and path is no copy"
    with pytest.raises(TorchServeError, match=r"model\.gguf changed while it was copied: deploy again"):
        archive._copy(tmp_path / "others")
    assert list((tmp_path / "others").iterdir()) == []


def test_a_machine_starts_ray_as_the_head_or_joins_one() -> None:
    head, other = ray_command(None, None, "one"), ray_command("10.0.0.1:6379", "10.0.0.2", "two")
    assert "--head" in head and "--address" not in head and head[head.index("--node-name") + 1] == "one"
    assert "--head" not in other and other[other.index("--address") + 1] == "10.0.0.1:6379"
    assert other[other.index("--node-ip-address") + 1] == "10.0.0.2"


def test_a_machine_without_the_heads_token_says_what_to_copy(tmp_path: Path) -> None:
    config = make_home(tmp_path / "home")
    command = [sys.executable, "-m", "cluster.machine", "--address", "127.0.0.1:1"]
    environment = os.environ | {"TS_CONFIG_FILE": str(config.path)}
    outcome = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert outcome.returncode == 1
    assert outcome.stderr.startswith(f"Copy the head's ray_token to {config.home}/.cluster/ray_token first")


def test_a_machine_that_is_stopped_first_stops_its_ray(tmp_path: Path) -> None:
    """A killed `ray start --block` could not drain its node."""
    ray = tmp_path / "ray.py"
    ray.write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('ray has stopped', flush=True)))\n"
        "print('ray runs', flush=True)\n"
        "time.sleep(60)\n"
    )
    program = (
        "import pathlib, sys\n"
        "from cluster import machine\n"
        "machine.ray_program = lambda: pathlib.Path(sys.executable)\n"
        f"machine.ray_command = lambda *_: [sys.executable, {str(ray)!r}]\n"
        "sys.exit(machine.main())\n"
    )
    config = make_home(tmp_path / "home")
    environment = os.environ | {"TS_CONFIG_FILE": str(config.path)}
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True
    ) as machine:
        assert machine.stdout
        assert machine.stdout.readline() == "ray runs\n"
        machine.terminate()
        assert machine.stdout.read() == "ray has stopped\n"
        assert machine.wait() == 0


def test_figures_of_a_torchserve_that_has_stopped_answering_are_not_those_of_now() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: `make cluster-test` installs it")
    from cluster.node_facts import NodeFacts

    snapshots = [MetricsSnapshot(at, {}, (ProcessSample("9000", 7, 0.0, 0.0, 5_000),)) for at in (100.0, 102.0)]
    facts = NodeFacts.of("node-1", 8, 11, snapshots, 104.0)
    assert (facts.slots, facts.waiting, facts.memory_bytes, facts.problem) == (8, 3, 5_000, "")
    facts = NodeFacts.of("node-1", 8, 11, snapshots, 117.0)
    assert (facts.slots, facts.memory_bytes) == (0, 0)
    assert facts.problem == "Its TorchServe has not answered for 15 s."
