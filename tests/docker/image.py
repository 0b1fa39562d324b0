"""Carries out a Dockerfile's instructions in folders, as root and without a container engine.

Each stage begins with a copy of one base folder, whatever FROM names. Not covered: layers, ADD, SHELL, ENTRYPOINT, and
patterns of .dockerignore other than those of this project: "*", "!name" and "**/name".
"""

import json
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from dockerfile_parse import DockerfileParser

MOUNTS = ("proc", "dev", "sys")
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
COMPLETE = "complete"  # this file is written when all stages are


@dataclass(slots=True)
class Stage:
    """A stage of the Dockerfile, as the folder `root`. user: "uid:gid". arguments: those of ARG."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    arguments: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "0:0"
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Build:
    """The build of context/Dockerfile in `folder`, a folder for each stage. A complete one is used as it is.

    build_arguments: replace ARG's defaults. extra_environment, binds: for every RUN, what this machine's network needs.
    """

    context: Path
    base: Path
    folder: Path
    build_arguments: Mapping[str, str]
    extra_environment: Mapping[str, str]
    binds: tuple[str, ...]
    stages: dict[str, Stage] = field(default_factory=dict)

    def run(self) -> Stage:
        """The last stage. Prints each instruction and its seconds. Raises CalledProcessError if a RUN fails."""
        with (self.context / "Dockerfile").open("rb") as file:
            instructions = DockerfileParser(fileobj=file).structure
        is_complete = (self.folder / COMPLETE).exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        stage = None
        for each in instructions:
            instruction, value, began = each["instruction"], " ".join(each["value"].split()), time.monotonic()
            if instruction == "FROM":
                stage = self._begin(value)
            elif instruction != "COMMENT":
                assert stage is not None, "FROM comes first"
                if instruction not in ("RUN", "COPY") or not is_complete:
                    self._carry_out(stage, instruction, value)
            if time.monotonic() - began > 0.05:
                print(f"{time.monotonic() - began:6.1f} s  {instruction} {value[:90]}", flush=True)
        assert stage is not None
        (self.folder / COMPLETE).touch()
        return stage

    def _begin(self, value: str) -> Stage:
        name = value.partition(" AS ")[2] or "final"
        root = self.folder / name
        if not root.exists():
            subprocess.run(["cp", "-a", "--reflink=auto", str(self.base), str(root)], check=True)
            shutil.copy("/etc/resolv.conf", root / "etc" / "resolv.conf")
        self.stages[name] = Stage(root)
        return self.stages[name]

    def _carry_out(self, stage: Stage, instruction: str, value: str) -> None:
        if instruction == "RUN":
            self._run(stage, value)
        elif instruction == "COPY":
            self._copy(stage, value)
        elif instruction == "ENV":
            for pair in shlex.split(value):
                name, _, text = pair.partition("=")
                stage.environment[name] = Template(text).safe_substitute(stage.environment)
        elif instruction == "ARG":
            name, _, default = value.partition("=")
            stage.arguments[name] = self.build_arguments.get(name, default)
        elif instruction == "WORKDIR":
            stage.workdir = value
            (stage.root / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif instruction == "USER":
            stage.user = f"{value}:{value}"
        elif instruction == "CMD":
            stage.command = json.loads(value)
        elif instruction == "HEALTHCHECK":
            stage.healthcheck = json.loads(value.partition(" CMD ")[2])
        else:
            assert instruction == "EXPOSE", f"{instruction} is not covered"

    def _run(self, stage: Stage, command: str) -> None:
        environment = {**stage.environment, **stage.arguments, **self.extra_environment}
        with mounted(stage.root, self.binds):
            subprocess.run(
                ["chroot", f"--userspec={stage.user}", stage.root, "/bin/sh", "-c", f"cd {stage.workdir} && {command}"],
                env=environment,
                check=True,
            )

    def _copy(self, stage: Stage, value: str) -> None:
        *sources, target = [word for word in value.split() if not word.startswith("--")]
        to = Path(f"{stage.root}{Path(stage.workdir) / target}")
        if value.startswith("--from="):
            root = self.stages[value.split()[0].removeprefix("--from=")].root
            subprocess.run(["cp", "-a", "--reflink=auto", f"{root}{sources[0]}", to], check=True)
            return
        for source in sources:
            for path in self._sent() if source == "." else [self.context / source]:
                name = path.relative_to(self.context)
                (to / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, to / name)

    def _sent(self) -> Iterator[Path]:
        """The files of the context that .dockerignore does not exclude."""
        lines = (self.context / ".dockerignore").read_text().splitlines()
        excluded = {line.removeprefix("**/") for line in lines if line.startswith("**/")}
        for line in lines:
            for found in self.context.glob(line[1:]) if line.startswith("!") else ():
                for path in [found] if found.is_file() else found.rglob("*"):
                    if path.is_file() and not excluded & set(path.relative_to(self.context).parts):
                        yield path


@contextmanager
def mounted(root: Path, binds: tuple[str, ...] = ()) -> Iterator[None]:
    """The system's /proc, /dev and /sys, and the folders of `binds`, are in `root` as long as the context lasts."""
    names = [f"/{name}" for name in MOUNTS] + list(binds)
    done: list[str] = []
    try:
        for name in names:
            target = f"{root}{name}"
            Path(target).mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "--bind", name, target], check=True)
            done.append(target)
        yield
    finally:
        for target in reversed(done):
            subprocess.run(["umount", "--lazy", target], check=True)
