"""The sidebar's choice of servers: TorchServe or another one by its base URL, its model, and a second one to compare.

A conversation stores the choice, and a link cannot set it. A key is in the memory of this tab only, and belongs to the
base URL that it was typed for: no other server gets it. That of a cluster is in the cluster's file, and belongs to the
address there; no browser gets it.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st

from apps.chat.openai_client import ModelList, OpenAIClient, full_base_url, problem_of_base_url, problem_of_key
from apps.chat.origin import SERVER_SETTINGS
from apps.chat.turns import ChatServer
from apps.shared.labels import as_label
from cluster.entry_file import ClusterEntry, read_entry
from torchserve_client.config import TorchServeError, config_file

SECOND = "second_"  # begins the names of the second server's widgets
LONGEST = 2_000  # characters of a stored text
_URL_HELP = (
    "Of a server that speaks OpenAI's API, such as 127.0.0.1:8000. Empty: TorchServe. "
    "Without `http://` or `https://`, an address with a port is http."
)
_SECOND_HELP = "Each question goes to both servers, and their answers stand side by side with their figures."


@dataclass(frozen=True, slots=True)
class ServerChoice:
    """server, second: the servers that get a question. problem: why nothing may be sent."""

    server: ChatServer
    second: ChatServer | None
    problem: str

    @property
    def servers(self) -> list[ChatServer]:
        return [self.server, *([self.second] if self.second else [])]


def chosen_servers(torchserve: ChatServer) -> ServerChoice:
    """The choice that the sidebar shows, also before it is drawn. A wrong base URL is a server without models."""
    server, problem = _server_of(torchserve, "")
    second: ChatServer | None = None
    if st.session_state.get("has_second"):
        second, second_problem = _server_of(torchserve, SECOND)
        problem = problem or second_problem
    return ServerChoice(server, second, problem)


def draw_server_choice() -> None:
    """What is wrong with the choice is explained below its fields."""
    with st.expander("Server"):
        _draw_fields("")
    with st.expander("Compare two servers"):
        if st.toggle("Ask a second server as well", key="has_second", help=_SECOND_HELP):
            _draw_fields(SECOND)


def draw_models(choice: ServerChoice, state: str) -> None:
    """The names of the models that get the next question; that of the first server is green while it is ready."""
    for server in choice.servers:
        where = "" if server.name == "TorchServe" else f" at {server.name}"
        label = as_label(f"{server.model or 'model not known yet'}{where}")
        is_ready = bool(server.model) and (server is not choice.server or state == "ready")
        st.badge(label, icon=":material/smart_toy:", color="green" if is_ready else "gray")


def server_to_store() -> dict[str, Any]:
    """The choice as a conversation stores it: without keys."""
    return {name: st.session_state.get(name) or default for name, default in SERVER_SETTINGS.items()}


def recall_server(settings: Mapping[str, Any]) -> None:
    """Puts a conversation's stored choice into the sidebar, before it is drawn; TorchServe if it has none."""
    for name, default in SERVER_SETTINGS.items():
        value = settings.get(name)
        is_possible = type(value) is type(default) and len(str(value)) <= LONGEST
        st.session_state[name] = value if is_possible else default


def _typed(prefix: str) -> tuple[str, str, str]:
    """One server's base URL, its key, and what is wrong with them."""
    base_url = full_base_url(st.session_state.get(f"{prefix}base_url") or "")
    key = (st.session_state.get(f"{prefix}api_key {base_url}") or "").strip()
    if not key and (cluster := _cluster()) and base_url == f"{cluster.url}/v1":
        key = cluster.key
    return base_url, key, (problem_of_base_url(base_url) or problem_of_key(key)) if base_url else ""


def _server_of(torchserve: ChatServer, prefix: str) -> tuple[ChatServer, str]:
    base_url, key, problem = _typed(prefix)
    if not base_url:
        return torchserve, ""
    if problem:
        return OpenAIClient(ModelList("", "")), problem
    return OpenAIClient(_models(base_url, key), st.session_state.get(f"{prefix}server_model") or ""), ""


def _draw_fields(prefix: str) -> None:
    key_of_model = f"{prefix}server_model"
    st.text_input(
        "Base URL",
        key=f"{prefix}base_url",
        placeholder="TorchServe",
        help=_URL_HELP,
        on_change=_forget,
        args=(key_of_model,),
    )
    if (cluster := _cluster()) and full_base_url(st.session_state[f"{prefix}base_url"]) != f"{cluster.url}/v1":
        st.button("Use the cluster", key=f"{prefix}cluster", on_click=_use, args=(prefix, cluster.url))
    base_url, key, problem = _typed(prefix)
    if base_url and not problem_of_base_url(base_url):
        about = "Only if the server wants one. It is not stored: after a reload, type it again."
        name = f"{prefix}api_key {base_url}"
        known = "that of the cluster" if key else None  # a typed key covers it
        st.text_input("API key", key=name, type="password", placeholder=known, help=about, persist_state="session")
    if problem:
        st.error(problem)
    elif base_url:
        _draw_model(list(_models(base_url, key).models), key_of_model)


def _draw_model(listed: list[str], key: str) -> None:
    """The chosen model: also one that the server lists no more, since another one must not answer in its place."""
    chosen = st.session_state.get(key) or ""
    options = listed if chosen in listed or not chosen else [chosen, *listed]
    if chosen:
        st.session_state[key] = chosen  # other options make another widget, which would begin with the first one
    if options:
        st.selectbox("Model", options, key=key)
    else:
        st.caption("The models appear here when the server answers.")


@st.cache_resource(max_entries=16)
def _models(base_url: str, key: str) -> ModelList:
    return ModelList(base_url, key)


def _cluster() -> ClusterEntry | None:
    """The cluster of this machine, if there is one. What is wrong with its file, the server app says."""
    with contextlib.suppress(TorchServeError):
        return read_entry(config_file().parent)
    return None


def _use(prefix: str, url: str) -> None:
    """Callback."""
    st.session_state[f"{prefix}base_url"] = url
    _forget(f"{prefix}server_model")


def _forget(key: str) -> None:
    """Callback: a new base URL has other models."""
    st.session_state.pop(key, None)
