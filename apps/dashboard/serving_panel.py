"""The sidebar's choice of how the model is served: archive, workers, batch size and delay, each with its cost.

The choice follows the server until a person changes it. While the autoscaler is on, the number of workers and the
batching are its own: they follow the server always.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import streamlit as st

from apps.dashboard.serving_costs import Cost, batch_size_cost, delay_cost, workers_cost
from torchserve_client.archives import (
    CONTINUOUS_ARCHIVE,
    Archive,
    archive_for,
    dynamic_archive_name,
    list_archives,
    read_archive,
)
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.status import DEFAULT_SETTINGS, SERVING_BOUNDS, ModelStatus, ServingSettings
from torchserve_client.worker_memory import worker_memory


def wanted_settings() -> ServingSettings:
    """The values of the three sliders."""
    return ServingSettings(**{name: st.session_state[name] for name in SERVING_BOUNDS})


def wanted_archive(config: ServerConfig, is_autoscaled: bool) -> str:
    """The chosen archive, or its twin for dynamic batching if the number of workers or the autoscaler needs that."""
    chosen = st.session_state.get("archive") or CONTINUOUS_ARCHIVE
    workers = max(2, st.session_state.workers) if is_autoscaled else st.session_state.workers
    return archive_for(workers, chosen, config.model_store)


def has_server_changed(model: ModelStatus | None) -> bool:
    """Whether the server's settings differ from those of the last update_choice().

    Settings that TorchServe is loading do not count: if the load fails, the old settings come back.
    """
    return model is not None and model.is_ready and st.session_state.get("served") != (model.settings, model.archive)


def update_choice(config: ServerConfig, model: ModelStatus | None, is_autoscaled: bool) -> None:
    """Takes over the server's settings, unless a person has chosen others. Call it before the choice is drawn."""
    if model and is_autoscaled and "workers" in st.session_state:
        set_widget("workers", model.settings.workers)
    served = st.session_state.get("served")
    if "workers" not in st.session_state:
        _set_choice(config, model.settings if model else DEFAULT_SETTINGS, model.archive if model else None)
    elif model and model.is_ready and _choice(config, is_autoscaled) in (served, st.session_state.untouched):
        _set_choice(config, model.settings, model.archive)
    if model and model.is_ready:
        st.session_state.served = (model.settings, model.archive)


def _choice(config: ServerConfig, is_autoscaled: bool = False) -> tuple[ServingSettings, str]:
    return wanted_settings(), wanted_archive(config, is_autoscaled)


def _set_choice(config: ServerConfig, settings: ServingSettings, archive: str | None) -> None:
    for name, bounds in SERVING_BOUNDS.items():
        set_widget(name, int(min(max(getattr(settings, name), bounds.low), bounds.high)))
    for name in list_archives(config.model_store):
        if archive in (name, dynamic_archive_name(name)):
            set_widget("archive", name)
            break
    st.session_state.untouched = _choice(config)


def set_widget(key: str, value: object) -> None:
    """Does not set an equal value again: that would undo a move made while the page is being drawn."""
    if st.session_state.get(key) != value:
        st.session_state[key] = value


def show_choice(
    config: ServerConfig, model: ModelStatus | None, meta: dict[str, Any] | None, is_autoscaled: bool
) -> None:
    """Draws the archive and the sliders, each with its cost.

    meta: the model's description of itself, if it is known.
    """
    archive = _show_archive(config)
    wanted = wanted_settings()
    memory = worker_memory(model, archive.model_bytes if archive else None, meta)
    used = sum(worker.memory_bytes for worker in model.workers) if model else 0
    cost = workers_cost(wanted, memory, psutil.virtual_memory().available + used)
    if is_autoscaled:
        cost = replace(cost, help=f"The autoscaler sets the number of workers. {cost.help}")
    _slider("Num Workers", "workers", 1, cost, disabled=is_autoscaled)
    is_missing = archive and archive.is_continuous and wanted_archive(config, is_autoscaled) == archive.name
    if is_missing and archive and wanted.workers > 1:
        twin = dynamic_archive_name(archive.name)
        st.warning(f"{twin} is missing: two or more workers would freeze. Package the model again.")
    _slider("Batch Size", "batch_size", 1, batch_size_cost(wanted, memory))
    _slider("Max Batch Delay", "max_batch_delay_ms", 10, delay_cost(wanted), format="%d ms")


def _show_archive(config: ServerConfig) -> Archive | None:
    names = list_archives(config.model_store)
    if names and st.session_state.get("archive") not in names:  # none was chosen yet, or it has been deleted
        st.session_state.archive = CONTINUOUS_ARCHIVE if CONTINUOUS_ARCHIVE in names else names[0]
    chosen = st.selectbox("Archive", names, key="archive", placeholder="none yet", disabled=not names)
    if chosen is None:
        st.caption(f"No archive in {config.model_store} yet: package_llama.sh makes one.")
        return None
    archive = cached_archive(config.model_store / chosen)
    if isinstance(archive, str):
        st.caption(f":red[{archive}]")
        return None
    if archive.model_path:
        size = f", {archive.model_bytes / 1e6:,.0f} MB" if archive.model_bytes else ", which is missing"
        st.caption(f"Model: {archive.model_path.name}{size}, version {archive.version}")
    return archive


def cached_archive(path: Path) -> Archive | str:
    """What is in an archive, or why it cannot be read. The file is read again only after it has changed."""
    try:
        return _read_archive(path, path.stat().st_mtime)
    except OSError as error:
        return str(error)


@st.cache_data(show_spinner=False)
def _read_archive(path: Path, modified: float) -> Archive | str:
    try:
        return read_archive(path)
    except TorchServeError as error:
        return str(error)


def _slider(label: str, name: str, step: int, cost: Cost, format: str = "%d", disabled: bool = False) -> None:
    low, high = int(SERVING_BOUNDS[name].low), int(SERVING_BOUNDS[name].high)
    with st.container(gap=None):
        st.slider(label, low, high, step=step, key=name, format=format, help=cost.help, disabled=disabled)
        st.caption(cost.line)


def difference(config: ServerConfig, model: ModelStatus | None, is_autoscaled: bool) -> str:
    """What the button Apply would change, as a sentence; "" for nothing."""
    if model is None:
        return ""
    settings, archive = _choice(config, is_autoscaled)
    if settings != model.settings:
        return f"The sliders say {settings}: press Apply to serve like that."
    if archive != model.archive:
        return f"The model serves from {model.archive}: press Apply to serve from {archive}."
    return ""
