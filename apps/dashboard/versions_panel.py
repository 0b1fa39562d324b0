"""The versions of the model: which one is the default, which others are in the model store, and switching to one.

To roll back, a person makes an older version the default again. Its archive stays in the model store.
"""

from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from apps.dashboard.actions import Actions
from apps.dashboard.serving_panel import cached_archive
from experiments.restore import is_running
from torchserve_client.archives import Archive, list_archives
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.management import ManagementClient
from torchserve_client.status import ModelStatus


def show_versions(config: ServerConfig, management: ManagementClient, actions: Actions, model: ModelStatus) -> None:
    """Draws nothing if the model store has no other version."""
    others = [each for each in _newest_first(config.model_store) if each.version != model.version]
    if not others:
        return
    st.header("Versions", anchor=False)
    is_busy = actions.current is not None
    # TorchServe answers this request only after it has loaded the version that an action may be loading.
    loaded = [] if is_busy else _loaded_versions(management)
    is_locked = is_busy or is_running(config)
    _row(model.version, model.archive, "default", "green")
    for each in others:
        is_loaded = each.version in loaded
        state, color = ("still loaded", "orange") if is_loaded else ("in the model store", "gray")
        with _row(each.version, each.name, state, color):
            if is_loaded:
                key, args = f"end_{each.name}", (each.version,)
                st.button("End", key=key, on_click=actions.end_version, args=args, disabled=is_locked)
            else:
                key, args = f"default_{each.name}", (each.name,)
                st.button("Make default", key=key, on_click=actions.make_default, args=args, disabled=is_locked)
    st.caption(
        "Make default loads a version with the settings of the current default, and beside it if the memory is "
        "enough. When the version is ready, it gets the new requests, and the other one ends with its last answer. "
        "To roll back, make the older version the default."
    )


def _row(version: str, archive: str, state: str, color: str) -> DeltaGenerator:
    row = st.container(horizontal=True, vertical_alignment="center", gap="small", key=f"row_{version}")
    row.markdown(f"**{version}**", width=48)
    row.container(width=140).badge(state, color=color)  # type: ignore[arg-type]
    row.caption(archive, width=200)
    return row


def _loaded_versions(management: ManagementClient) -> list[str]:
    """Empty if the server does not answer: another part of the page shows why."""
    try:
        return [each.version for each in management.registered()]
    except TorchServeError:
        return []


def _newest_first(store: Path) -> list[Archive]:
    """One archive for each version. The sidebar shows what is wrong with an archive that cannot be read."""
    found: dict[str, Archive] = {}
    for name in list_archives(store):
        archive = cached_archive(store / name)
        if isinstance(archive, Archive):
            found.setdefault(archive.version, archive)
    return sorted(found.values(), key=lambda each: _numbers(each.version), reverse=True)


def _numbers(version: str) -> list[int]:
    """A sort key that puts 1.10 after 1.9."""
    return [int(part) for part in version.split(".") if part.isdigit()]
