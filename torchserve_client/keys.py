"""The bearer keys for TorchServe's addresses: reads them from the key file and replaces expired ones.

`.venv/bin/python -m torchserve_client.keys` prints the inference key.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol, TypeVar, cast

from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.http import (
    REQUEST_TIMEOUT_SECONDS,
    RequestRefused,
    ServerUnreachable,
    fetch,
    torchserve_unreachable,
)
from torchserve_client.running_server import find_server, key_file

T = TypeVar("T")
Kind = Literal["inference", "management"]


class KeySource(Protocol):
    """Provides the key for a request: Keys for TorchServe, FixedKey for any other server."""

    def use(self, send: Callable[[str | None], T]) -> T: ...


@dataclass(frozen=True, slots=True)
class FixedKey:
    """A key that never changes; "" is none."""

    key: str = ""

    def use(self, send: Callable[[str | None], T]) -> T:
        return send(self.key or None)


NO_KEY = FixedKey()


class Keys:
    """The key of one of TorchServe's addresses. Reads the key file for every request.

    With the project's config.properties a key lasts until TorchServe stops. With a shorter token_expiration_min, the
    first program that needs an expired key replaces it. A key that is still valid is never replaced: it would become
    invalid at once for all programs (docs/torchserve-facts.md).
    """

    def __init__(self, config: ServerConfig, kind: Kind) -> None:
        self._config = config
        self._kind = kind

    def use(self, send: Callable[[str | None], T]) -> T:
        """Returns `send(key)`. Calls `send` again if TorchServe refuses the key and there is another one by then."""
        key = self.current()
        try:
            return send(key)
        except RequestRefused as refusal:
            if refusal.type != "InvalidKeyException" or (newer := self.current()) == key:
                raise
        return send(newer)

    def current(self) -> str | None:
        """The key now; None if this server needs no key. Replaces an expired key. Raises TorchServeError."""
        if not self._config.needs_token:
            return None
        expires = self.expires()
        if expires and expires <= datetime.now(UTC):
            url = f"{self._config.management_url}/token?type={self._kind}"
            fetch("GET", url, self._read("API")["key"], REQUEST_TIMEOUT_SECONDS)  # rewrites the key file
        return self._read(self._kind)["key"]

    def expires(self) -> datetime | None:
        """When the key expires; None if the key file does not say. Raises TorchServeError."""
        return parse_instant(self._read(self._kind).get("expiration time", ""))

    def _read(self, entry: str) -> dict[str, str]:
        """One entry of the key file. TorchServe overwrites the file in place, so an incomplete file is read again."""
        file = key_file(self._config)
        for attempt in range(10):
            try:
                return cast(dict[str, str], json.loads(file.read_text())[entry])
            except FileNotFoundError:
                break
            except OSError as error:
                raise TorchServeError(
                    f"{file} cannot be read ({error.strerror}): be the user who started it."
                ) from error
            except (ValueError, KeyError, TypeError):
                time.sleep(0.01 * attempt)
        if find_server(self._config) is None:
            raise ServerUnreachable(torchserve_unreachable(self._config.management_url))
        raise TorchServeError(f"{file} has no {entry} key: stop TorchServe, and start it in that folder.")


def parse_instant(text: str) -> datetime | None:
    """A time as Java prints it, such as 2026-01-01T00:00:00.123456789Z; None if the text is no such time."""
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(text).astimezone(UTC)
    return None


def main(arguments: list[str] | None = None) -> int:
    """Prints a key of the running server; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m torchserve_client.keys",
        description="Prints TorchServe's inference key, which a client sends as Authorization: Bearer KEY.",
    )
    parser.add_argument(
        "--management",
        action="store_true",
        help="print the management key instead; with it a program can run its own code on this machine",
    )
    kind: Kind = "management" if parser.parse_args(arguments).management else "inference"
    try:
        config = ServerConfig.load()
        if find_server(config) is None:  # the key file of a server that was killed is still there
            start = "press Start Server in the server app, or run `make chat`"
            raise ServerUnreachable(f"TorchServe is not running with {config.path}: {start}.")
        key = Keys(config, kind).current()
    except TorchServeError as error:
        print(error, file=sys.stderr)
        return 1
    if key is None:
        print(f"TorchServe needs no key: disable_token_authorization is true in {config.path}.", file=sys.stderr)
    else:
        print(key)
    return 0


if __name__ == "__main__":
    sys.exit(main())
