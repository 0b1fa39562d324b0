"""The live status on the server app's page: the line of state, the running action, the model and each worker.

The state is derived in apps/dashboard/state.py; this file draws it. The session stores only the last sample of the
processes, because the use of a processor is the difference between two samples.
"""

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import streamlit as st

from apps.dashboard.actions import Action, Actions, Outcome
from apps.dashboard.metrics_history import Latest
from apps.dashboard.model_description import describe_model
from apps.dashboard.state import Facts, PageState, Tone
from apps.dashboard.versions_panel import show_versions
from apps.dashboard.wording import counted, duration, megabytes
from torchserve_client.config import ServerConfig
from torchserve_client.logs import log_tail
from torchserve_client.management import ManagementClient
from torchserve_client.metrics import MetricsSnapshot, cpu_percent
from torchserve_client.model_description import ModelDescriptions
from torchserve_client.status import ModelStatus, WorkerStatus

SAMPLE_SECONDS = 0.5  # over a shorter time the use of a processor is noise
TAIL_LINES = 6
SKIP_DRAIN_LABELS: dict[str, str] = {
    "stop": "Stop now",
    "make_default": "Don't wait: leave the old version loaded",
    "end_version": "Don't wait: leave it loaded",
}
COLORS: dict[Tone, str] = {"ok": "green", "busy": "blue", "idle": "gray", "warning": "orange", "error": "red"}
ICONS: dict[Tone, str] = {
    "ok": ":material/check_circle:",
    "busy": ":material/hourglass_top:",
    "idle": ":material/stop_circle:",
    "warning": ":material/warning:",
    "error": ":material/error:",
}


def show_state(facts: Facts, state: PageState, is_detailed: bool) -> None:
    """The one line of state. It is always one box of the same height on the status panel, and a row on the others."""
    if not is_detailed:
        with st.container(horizontal=True, gap="small", vertical_alignment="center", key="badges"):
            st.badge(state.title, color=COLORS[state.tone], icon=ICONS[state.tone])  # type: ignore[arg-type]
            st.caption(state.sentence, width="content")
        return
    text = f"**{state.title}** · {state.sentence}"
    boxes = {"ok": st.success, "warning": st.warning, "error": st.error}
    boxes.get(state.tone, st.info)(text, icon=ICONS[state.tone])
    with st.container(horizontal=True, gap="xsmall", key="badges"):
        _show_load(facts)


def _show_load(facts: Facts) -> None:
    """Requests, speed and the age of the last token, if they are known."""
    counts, progress = facts.counts, facts.progress
    if counts is None or progress is None:
        st.badge("no metrics", color="gray")
        return
    st.badge(f"{counted(counts.waiting, 'request')} waiting", color="orange" if counts.waiting else "gray")
    st.badge(f"{counts.running} running", color="blue" if counts.running else "gray")
    st.badge(f"{facts.tokens_per_second:,.0f} tokens/s", color="gray")
    last = progress.last_token_at
    age = "no token seen yet" if last is None else f"last token {duration(facts.at - last)} ago"
    st.badge(age, color="orange" if facts.stall else "gray")


def show_action(config: ServerConfig, actions: Actions) -> None:
    """The running action with its progress, or how the last one ended."""
    latest = actions.latest  # read once: the action may end meanwhile
    if latest is None:
        return
    if latest.outcome is None:
        _show_running(config, latest)
    elif latest.outcome.is_success:
        ended = f"{datetime.fromtimestamp(latest.outcome.at):%H:%M:%S}"
        st.caption(f":green[:material/check_circle:] {ended} · {latest.outcome.sentence}")
    else:
        _show_failure(actions, latest.outcome)


def show_details(
    config: ServerConfig, management: ManagementClient, actions: Actions, facts: Facts, latest: Latest | None
) -> None:
    """The model, its workers and its versions."""
    model = facts.server.model
    st.header("Model Status", anchor=False)
    if model:
        _show_model(config, model, latest.snapshot if latest else None)
        show_versions(config, management, actions, model)
    else:
        st.caption("Nothing is registered.")
    st.button("Model Status", key="model_status", on_click=_toggle_json, help="All that TorchServe says about it.")
    if st.session_state.get("shows_json"):
        st.json(model.raw if model else {})


def _show_running(config: ServerConfig, action: Action) -> None:
    with st.container(border=True, key="action"):
        st.caption(f"{time.time() - action.begun:.0f} s · {action.progress or 'Beginning'}")
        if action.can_skip_drain:
            label = SKIP_DRAIN_LABELS.get(action.name, "Don't wait: cut them")
            st.button(label, key="skip_drain", on_click=action.skip_drain.set)
        if action.name == "start":
            st.code(log_tail(config, TAIL_LINES) or "…", language=None, height=170)


def _show_failure(actions: Actions, outcome: Outcome) -> None:
    st.error(outcome.sentence, icon=":material/error:")
    if outcome.log:
        with st.expander("The end of TorchServe's log", expanded=True):
            st.code(outcome.log, language=None, height=240)
    with st.container(horizontal=True):
        if outcome.needs_archive:
            st.button("Package the demo model", key="package", on_click=actions.package)
        st.button("Dismiss", key="dismiss", on_click=actions.dismiss)


def _ready_workers(model: ModelStatus) -> str:
    return f"{model.ready_workers} of {model.settings.workers} workers ready"


@st.cache_resource
def _descriptions(path: str, _config: ServerConfig) -> ModelDescriptions:
    """All pages of a server share it."""
    return ModelDescriptions(_config)


def model_meta(config: ServerConfig, model: ModelStatus | None) -> dict[str, Any] | None:
    """The model's description of itself; None if there is none yet."""
    description = _descriptions(str(config.path), config).of(model) if model else None
    return description.meta if description else None


def _show_model(config: ServerConfig, model: ModelStatus, snapshot: MetricsSnapshot | None) -> None:
    settings = model.settings
    with st.container(horizontal=True, gap="xsmall", key="settings"):
        st.badge(_ready_workers(model), color="green" if model.is_ready else "orange")
        st.badge(f"{model.batching} batching")
        st.badge(f"batch size {settings.batch_size}")
        st.badge(f"max batch delay {settings.max_batch_delay_ms} ms")
        st.badge(f"version {model.version}")
        st.badge(model.archive, color="gray")
    cpu = _cpu_percents(snapshot) if snapshot else {}
    if model.workers:
        st.table([_worker_row(worker, cpu.get(worker.pid)) for worker in model.workers], hide_index=True)
    st.caption(describe_model(model_meta(config, model)))
    if snapshot:
        _show_server_process(snapshot, cpu)


def _worker_row(worker: WorkerStatus, cpu: float | None) -> dict[str, str]:
    uptime = time.time() - worker.started.timestamp() if worker.started and worker.is_alive else None
    return {
        "Worker": worker.id,
        "Status": "PAUSED" if worker.is_paused else "READY" if worker.is_ready else worker.phase,
        "PID": str(worker.pid) if worker.is_alive else "",
        "Uptime": "" if uptime is None else duration(uptime),
        "Memory": megabytes(worker.memory_bytes) if worker.memory_bytes else "",
        "CPU": "" if cpu is None else f"{cpu:.0f} %",
    }


def _show_server_process(snapshot: MetricsSnapshot, cpu: Mapping[int, float]) -> None:
    server = next((process for process in snapshot.processes if not process.worker), None)
    if server:
        use = f", {cpu[server.pid]:.0f} % CPU" if server.pid in cpu else ""
        st.caption(
            f"TorchServe itself: process {server.pid}, up {duration(snapshot.at - server.started)}, "
            f"{megabytes(server.memory_bytes)}{use}. CPU is in percent of one core."
        )


def _cpu_percents(snapshot: MetricsSnapshot) -> dict[int, float]:
    """The use of each process since the last sample, by process id. SAMPLE_SECONDS must pass between two samples."""
    before: MetricsSnapshot | None = st.session_state.get("snapshot")
    if before is None or snapshot.at - before.at >= SAMPLE_SECONDS:
        st.session_state.snapshot = snapshot
        found = {each.pid: cpu_percent(before, snapshot, each) for each in snapshot.processes} if before else {}
        st.session_state.cpu_percents = {pid: percent for pid, percent in found.items() if percent is not None}
    percents: dict[int, float] = st.session_state.cpu_percents
    return percents


def _toggle_json() -> None:
    st.session_state.shows_json = not st.session_state.get("shows_json")
