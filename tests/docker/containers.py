"""Runs the services of compose.yaml in an image of tests/docker/image.py, as far as Linux alone can do it.

A service gets its mounts, a read-only root, its own processes, no capability and no new privileges; services that share
a network share it here, too, and the host reaches it through an address, as through a published port.
Not covered: the engine's seccomp filter, its port forwarding, restart of a dependency, and the network of a service
that shares none, which is the host's here.
"""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from tests.docker.image import Stage

NETWORK = "llama2chat"
HOST_ADDRESS, ADDRESS = "10.231.77.1", "10.231.77.2"  # the two ends of the network; as far from others' as possible
NAMESPACES = ("--mount", "--pid", "--net")
TMPFS_OPTIONS = "nosuid,nodev,noexec"  # the engine's; those of the service come after them
# The first process of a container with "init: true": passes SIGTERM on, and reaps all that ends.
INIT = '"$@" & child=$!; trap "kill -TERM $child" TERM; wait $child; wait $child'
START_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Container:
    """A service that runs. first: its first process, as this machine numbers it. enter: begins a command in it."""

    process: subprocess.Popen[bytes]
    first: int
    enter: list[str]
    healthcheck: list[str]
    log: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Like `docker exec`."""
        return subprocess.run([*self.enter, *command], capture_output=True, text=True)

    def await_health(self) -> float:
        """The seconds until the health check succeeds."""
        began = time.monotonic()
        while (checked := self.run(*self.healthcheck)).returncode:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() - began < START_SECONDS, checked.stdout + self.log.read_text()
            time.sleep(1)
        return time.monotonic() - began

    def stop(self) -> int:
        """Like `docker stop`; returns the exit status."""
        os.kill(self.first, signal.SIGTERM)
        return self.process.wait(150)


@dataclass(frozen=True, slots=True)
class Compose:
    """A compose.yaml whose named volumes are folders in `volumes`, and an image."""

    file: Path
    image: Stage
    volumes: Path

    def start(
        self,
        name: str,
        beside: Container | None = None,
        binds: tuple[str, ...] = (),
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> Container:
        """Starts the service.

        beside: the container whose processes a service with "pid" sees. binds, environment: folders of
        the host and variables that it gets.
        """
        service = yaml.safe_load(self.file.read_text())["services"][name]
        starter = ["ip", "netns", "exec", NETWORK] if "ports" in service or "network_mode" in service else []
        own_processes = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        shared_processes = ["nsenter", f"--target={beside.first}", "--pid", "unshare", "--mount"] if beside else []
        starter += shared_processes if "pid" in service else own_processes
        inside = self._inside(environment)
        script = self._mounts(service, binds)
        script.append(shlex.join(["exec", *inside, "bash", "-c", INIT, "init", *service["command"]]))
        log = self.volumes / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*starter, "sh", "-c", "\n".join(script)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        child = _first_child(process)
        check = service["healthcheck"].get("test", []) if "healthcheck" in service else ["CMD", *self.image.healthcheck]
        return Container(process, child, ["nsenter", f"--target={child}", *NAMESPACES, *inside], check[1:], log)

    def _inside(self, environment: Mapping[str, str]) -> list[str]:
        """Begins a command of the image's user, without rights."""
        user = self.image.user.partition(":")[0]
        variables = [f"{name}={value}" for name, value in {**self.image.environment, **environment}.items()]
        dropped = ["--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        return [
            *("chroot", str(self.image.root), "env", "-i", f"--chdir={self.image.workdir}", *variables),
            *("setpriv", f"--reuid={user}", f"--regid={user}", *dropped),
        ]

    def _mounts(self, service: dict[str, Any], binds: tuple[str, ...]) -> list[str]:
        root = self.image.root
        lines = ["set -e", "mount --make-rprivate /", f"mount --bind {root} {root}", f"cd {root}"]
        lines += ["mount -t proc proc proc", "mount --rbind /dev dev"]
        lines += [f"mount --bind {folder} .{folder}" for folder in binds]
        target, _, options = service["tmpfs"].partition(":")
        lines.append(f"mount -t tmpfs -o {TMPFS_OPTIONS},{options} tmpfs .{target}")
        for volume in service["volumes"]:
            source, target, *mode = volume.split(":")
            lines.append(f"mount --bind {self._volume(source, target)} .{target}")
            lines += [f"mount -o remount,bind,ro .{target}"] if mode == ["ro"] else []
        return [*lines, f"mount -o remount,bind,ro {root}"] if service["read_only"] else lines

    def _volume(self, name: str, target: str) -> Path:
        """A new volume gets the content and the owner of the image's folder."""
        folder = self.volumes / name
        if not folder.exists():
            subprocess.run(["cp", "-a", f"{self.image.root}{target}", str(folder)], check=True)
        return folder


def _first_child(process: subprocess.Popen[bytes]) -> int:
    """The container's first process: the child of unshare, or of nsenter."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 10
    while not (found := children.read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(found[0])


@contextmanager
def network() -> Iterator[None]:
    """A network of its own, with one address for itself and one for the host."""
    commands = [
        f"ip netns add {NETWORK}",
        f"ip link add {NETWORK}0 type veth peer name eth0 netns {NETWORK}",
        f"ip addr add {HOST_ADDRESS}/30 dev {NETWORK}0",
        f"ip link set {NETWORK}0 up",
        f"ip -n {NETWORK} addr add {ADDRESS}/30 dev eth0",
        f"ip -n {NETWORK} link set eth0 up",
        f"ip -n {NETWORK} link set lo up",
    ]
    try:
        for command in commands:
            subprocess.run(command.split(), check=True)
        yield
    finally:
        subprocess.run(["ip", "netns", "del", NETWORK], check=False)
