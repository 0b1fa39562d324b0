"""The versions of the model: which one answers, what else the model store has, and making another one the default.

Rolling back is making an older one the default: its archive stays in the model store.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from apps.dashboard.actions import Actions
from experiments.restore import is_running
from torchserve_client.archives import Archive, list_archives, read_archive
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.management import ManagementClient, ModelStatus


def show_versions(config: ServerConfig, management: ManagementClient, actions: Actions, model: ModelStatus) -> None:
    """Nothing where the model store has no other version."""
    others = [each for each in _archives(config.model_store) if each.version != model.version]
    if not others:
        return
    st.subheader("Versions", anchor=False)
    is_busy = actions.current is not None
    # While a version is being loaded TorchServe answers this only when that has ended.
    loaded = [] if is_busy else [each.version for each in _registered(management)]
    is_fixed = is_busy or is_running(config)
    _row(model.version, model.archive, "default", "green")
    for each in others:
        state, color = ("still loaded", "orange") if each.version in loaded else ("in the model store", "gray")
        with _row(each.version, each.name, state, color):
            if each.version in loaded:
                key, args = f"end_{each.name}", (each.version,)
                st.button("End", key=key, on_click=actions.end_version, args=args, disabled=is_fixed)
            else:
                key, args = f"default_{each.name}", (each.name,)
                st.button("Make default", key=key, on_click=actions.make_default, args=args, disabled=is_fixed)
    st.caption(
        "Make default loads a version with the settings of the one that answers, and beside it where memory allows "
        "that; when it is ready it gets the new requests, and the other one ends with its last answer. To roll back, "
        "make the older version the default."
    )


def _row(version: str, archive: str, state: str, color: str) -> DeltaGenerator:
    row = st.container(horizontal=True, vertical_alignment="center", gap="small", key=f"row_{version}")
    row.markdown(f"**{version}**", width=48)
    row.container(width=140).badge(state, color=color)  # type: ignore[arg-type]
    row.caption(archive, width=200)
    return row


def _registered(management: ManagementClient) -> tuple[ModelStatus, ...]:
    """Empty where the server does not answer just now: the rest of the page says so."""
    try:
        return management.registered()
    except TorchServeError:
        return ()


def _archives(store: Path) -> list[Archive]:
    """One for each version, the newest first. The sidebar says what is wrong with those that cannot be read."""
    found: dict[str, Archive] = {}
    for name in list_archives(store):
        try:
            archive = _read(store / name, (store / name).stat().st_mtime)
        except FileNotFoundError:  # removed just now
            continue
        if archive:
            found.setdefault(archive.version, archive)
    return sorted(found.values(), key=lambda each: _number(each.version), reverse=True)


@st.cache_data(show_spinner=False)
def _read(path: Path, changed: float) -> Archive | None:
    """Read again when the file has changed."""
    try:
        return read_archive(path)
    except TorchServeError:
        return None


def _number(version: str) -> list[int]:
    """1.10 comes after 1.9."""
    return [int(part) for part in version.split(".") if part.isdigit()]
