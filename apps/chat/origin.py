"""Which servers a conversation's questions go to, and which one an answer is from. Knows nothing of HTTP and pages."""

from collections.abc import Mapping
from typing import Any, Protocol

# The settings of a conversation that say where its questions go, and their defaults: an import must not set them.
SERVER_SETTINGS: dict[str, str | bool] = {
    "base_url": "",
    "server_model": "",
    "has_second": False,
    "second_base_url": "",
    "second_server_model": "",
}


class NamedServer(Protocol):
    """What people call a server, and its model; the model is empty until it is known."""

    @property
    def name(self) -> str: ...
    @property
    def model(self) -> str: ...


def origin_of(server: NamedServer) -> dict[str, str]:
    """The figures of an answer that this server generates."""
    return {"server": server.name, "model": server.model}


def is_from(figures: Mapping[str, Any], server: NamedServer) -> bool:
    """Whether an answer with these figures is from this server and model. A name that is not known fits any."""
    here = origin_of(server)
    return all(figures.get(name) in (None, "", here[name]) or not here[name] for name in here)


def origin_label(figures: Mapping[str, Any]) -> str:
    """The model and the server for people, as far as they are recorded."""
    return " at ".join(str(figures[name]) for name in ("model", "server") if figures.get(name))
