"""The bearer keys for TorchServe's addresses: reads them from the key file and renews them. Knows no request."""

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
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

RENEW_BEFORE = timedelta(seconds=30)

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

    Renews a key that expires soon. A renewal makes the old key invalid at once for all programs. So after a refusal
    the key file is read again first: another program may have renewed the key.
    """

    def __init__(self, config: ServerConfig, kind: Kind) -> None:
        self._config = config
        self._kind = kind

    def use(self, send: Callable[[str | None], T]) -> T:
        """Returns `send(key)`. Calls `send` again with a newer key if TorchServe refuses the first one."""
        key = self.current()
        try:
            return send(key)
        except RequestRefused as refusal:
            if key is None or refusal.type != "InvalidKeyException":
                raise
        newer = self._read(self._kind)["key"]
        return send(newer if newer != key else self._renew())

    def current(self) -> str | None:
        """The key now; None if this server needs no key. Renews a key that expires soon. Raises TorchServeError."""
        if not self._config.needs_token:
            return None
        entry = self._read(self._kind)
        expires = parse_instant(entry.get("expiration time", ""))
        if expires and expires - datetime.now(UTC) < RENEW_BEFORE:
            return self._renew()
        return entry["key"]

    def _renew(self) -> str:
        url = f"{self._config.management_url}/token?type={self._kind}"
        fetch("GET", url, self._read("API")["key"], REQUEST_TIMEOUT_SECONDS)
        return self._read(self._kind)["key"]

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
    """A time as Java prints it, to the second; None if the text is no such time."""
    with contextlib.suppress(ValueError):
        return datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    return None
