"""The sidebar's choice of how the model is served: archive, workers, batch size and delay, each with what it costs.

The sliders follow the server as long as nobody has moved them away from what it serves with.
"""

from __future__ import annotations

from pathlib import Path

import psutil
import streamlit as st

from apps.dashboard.serving_costs import batch_size_cost, delay_cost, worker_memory, workers_cost
from torchserve_client.archives import (
    CONTINUOUS_ARCHIVE,
    Archive,
    archive_for,
    dynamic_archive_name,
    list_archives,
    read_archive,
)
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.management import DEFAULT_SETTINGS, SERVING_BOUNDS, ModelStatus, ServingSettings


def wanted_settings() -> ServingSettings:
    """What the sliders say."""
    return ServingSettings(**{name: st.session_state[name] for name in SERVING_BOUNDS})


def wanted_archive(config: ServerConfig) -> str:
    """The chosen archive, or its twin where so many workers need that."""
    chosen = st.session_state.get("archive") or CONTINUOUS_ARCHIVE
    return archive_for(st.session_state.workers, chosen, config.model_store)


def is_other_than_seen(model: ModelStatus | None) -> bool:
    """Whether the server serves with other settings than when the sliders were last compared with it.

    What it is only trying to load does not count: if that fails, the old settings come back.
    """
    return model is not None and model.is_ready and st.session_state.get("seen") != (model.settings, model.archive)


def follow(config: ServerConfig, model: ModelStatus | None) -> None:
    """Sets the choice, before it is drawn, to what the server serves with, unless somebody has chosen otherwise."""
    seen = st.session_state.get("seen")
    if "workers" not in st.session_state:
        _set_sliders(config, model.settings if model else DEFAULT_SETTINGS, model.archive if model else None)
    elif model and model.is_ready and (wanted_settings(), wanted_archive(config)) in (seen, st.session_state.untouched):
        _set_sliders(config, model.settings, model.archive)
    if model and model.is_ready:
        st.session_state.seen = (model.settings, model.archive)


def _set_sliders(config: ServerConfig, settings: ServingSettings, archive: str | None) -> None:
    for name, bounds in SERVING_BOUNDS.items():
        _set(name, int(min(max(getattr(settings, name), bounds.low), bounds.high)))
    chosen = next(
        (name for name in list_archives(config.model_store) if archive in (name, dynamic_archive_name(name))), None
    )
    if chosen:
        _set("archive", chosen)
    st.session_state.untouched = (wanted_settings(), wanted_archive(config))


def _set(name: str, value: int | str) -> None:
    """Only if different: else a move that was made while the page was being drawn would be lost."""
    if st.session_state.get(name) != value:
        st.session_state[name] = value


def show_choice(config: ServerConfig, model: ModelStatus | None) -> None:
    """Archive and sliders, each with a sentence about its price."""
    archive = _show_archive(config)
    wanted = wanted_settings()
    memory = worker_memory(model, archive.model_bytes if archive else None)
    _slider("Num Workers", "workers", 1)
    st.caption(workers_cost(wanted, memory, psutil.virtual_memory().available))
    if archive and archive.is_continuous and wanted.workers > 1 and wanted_archive(config) == archive.name:
        st.warning(
            f"{dynamic_archive_name(archive.name)} is missing: two or more workers would freeze. Package the model again."
        )
    _slider("Batch Size", "batch_size", 1)
    st.caption(batch_size_cost(wanted, memory))
    _slider("Max Batch Delay", "max_batch_delay_ms", 10)
    st.caption(delay_cost(wanted))


def _show_archive(config: ServerConfig) -> Archive | None:
    names = list_archives(config.model_store)
    if names and st.session_state.get("archive") not in names:  # the first one has come, or the chosen one has gone
        st.session_state.archive = CONTINUOUS_ARCHIVE if CONTINUOUS_ARCHIVE in names else names[0]
    chosen = st.selectbox("Archive", names, key="archive", placeholder="none yet", disabled=not names)
    if chosen is None:
        st.caption(f"No archive in {config.model_store} yet: package_llama.sh makes one.")
        return None
    path = config.model_store / chosen
    try:
        archive = _read_archive(path, path.stat().st_mtime)
    except (TorchServeError, OSError) as error:
        st.caption(f":red[{error}]")
        return None
    if archive.model_path:
        size = f", {archive.model_bytes / 1e6:,.0f} MB" if archive.model_bytes else ", which is missing"
        st.caption(f"Model: {archive.model_path.name}{size}, version {archive.version}")
    return archive


@st.cache_data(show_spinner=False)
def _read_archive(path: Path, changed: float) -> Archive:
    """Read again when the file has changed."""
    return read_archive(path)


def _slider(label: str, name: str, step: int) -> None:
    bounds = SERVING_BOUNDS[name]
    st.slider(label, int(bounds.low), int(bounds.high), step=step, key=name)


def difference(config: ServerConfig, model: ModelStatus | None) -> str:
    """What pressing Apply would change, as a sentence; "" for nothing."""
    if model is None:
        return ""
    if wanted_settings() != model.settings:
        return f"The sliders say {wanted_settings()}: press Apply to serve like that."
    if wanted_archive(config) != model.archive:
        return f"The model serves from {model.archive}: press Apply to serve from {wanted_archive(config)}."
    return ""
