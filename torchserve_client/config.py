"""Reads TorchServe's config.properties: the server's addresses and folders. Does not know whether it runs.

Not covered: https addresses, unix sockets as addresses.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

PROJECT = Path(__file__).resolve().parent.parent


class TorchServeError(Exception):
    """A failure as one sentence, which names the thing, the problem and the next step."""


def config_file(path: str | os.PathLike[str] | None = None) -> Path:
    """`path`, else $TS_CONFIG_FILE, else the config.properties of the project. Its folder is the home of all files."""
    return Path(path or os.environ.get("TS_CONFIG_FILE") or PROJECT / "config.properties").resolve()


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The values of config.properties that the apps use.

    path: the file. Its folder, `home`, contains the model store, logs/ and key_file.json.
    """

    path: Path
    inference_url: str
    management_url: str
    metrics_url: str
    model_store: Path
    ports: tuple[tuple[str, str, int], ...]  # purpose, host, port
    needs_token: bool

    @property
    def home(self) -> Path:
        return self.path.parent

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> Self:
        """Reads `path`, else $TS_CONFIG_FILE, else the config.properties of the project."""
        file = config_file(path)
        properties = _read_properties(file)
        inference, management, metrics = (
            _address(file, properties, f"{name}_address", port)
            for name, port in (("inference", 8080), ("management", 8081), ("metrics", 8082))
        )
        grpc_inference, grpc_management = (
            (
                _local(properties.get(f"grpc_{name}_address", "127.0.0.1")),
                _port(file, properties, f"grpc_{name}_port", port),
            )
            for name, port in (("inference", 7070), ("management", 7071))
        )
        return cls(
            path=file,
            inference_url="http://{}:{}".format(*inference),
            management_url="http://{}:{}".format(*management),
            metrics_url="http://{}:{}".format(*metrics),
            model_store=file.parent / properties.get("model_store", "model_store"),
            ports=(
                ("inference", *inference),
                ("management", *management),
                ("metrics", *metrics),
                ("gRPC inference", *grpc_inference),
                ("gRPC management", *grpc_management),
            ),
            needs_token=properties.get("disable_token_authorization", "false").lower() != "true",
        )


def _read_properties(file: Path) -> dict[str, str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TorchServeError(
            f"{file} cannot be read ({error}): restore it, or set TS_CONFIG_FILE to the file to use."
        ) from error
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.lstrip().startswith(("#", "!")))
    return {name.strip(): value.strip() for name, value in pairs}


def _address(file: Path, properties: dict[str, str], name: str, default_port: int) -> tuple[str, int]:
    value = properties.get(name, f"http://127.0.0.1:{default_port}")
    match = re.fullmatch(r"http://([^:/]+):(\d{1,5})/?", value)
    if not match:
        raise TorchServeError(f"{name} in {file} is {value!r}: write it like http://127.0.0.1:{default_port}.")
    return _local(match[1]), int(match[2])


def _port(file: Path, properties: dict[str, str], name: str, default: int) -> int:
    value = properties.get(name, str(default))
    if not value.isdecimal() or not 0 < int(value) < 65536:
        raise TorchServeError(f"{name} in {file} is {value!r}: write a port number like {default}.")
    return int(value)


def _local(host: str) -> str:
    return "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104  # nothing is bound to it here
