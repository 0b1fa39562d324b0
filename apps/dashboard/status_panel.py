"""The live status on the server app's page: TorchServe, the model, each worker, and the running action.

Each drawing queries the server and the system again. The session stores only the last sample of the processes, because
the use of a processor is the difference between two samples.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import streamlit as st

from apps.dashboard.actions import LABELS, Action, Actions, Outcome
from apps.dashboard.model_description import describe_model
from apps.dashboard.versions_panel import show_versions
from apps.dashboard.wording import duration, megabytes
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.drain import RequestCounts
from torchserve_client.logs import log_tail, worker_exceptions
from torchserve_client.management import ManagementClient
from torchserve_client.metrics import MetricsSnapshot, cpu_percent, scrape
from torchserve_client.model_description import ModelDescriptions
from torchserve_client.status import ModelStatus, ServerState, WorkerStatus

SAMPLE_SECONDS = 0.5  # over a shorter time the use of a processor is noise
TAIL_LINES = 6
SKIP_DRAIN_LABELS: dict[str, str] = {
    "stop": "Stop now",
    "make_default": "Don't wait: leave the old version loaded",
    "end_version": "Don't wait: leave it loaded",
}

COLORS = {
    "down": "gray",
    "starting": "orange",
    "up": "green",
    "unhealthy": "red",
    "not registered": "gray",
    "loading": "orange",
    "ready": "green",
    "failed": "red",
    "restarting": "red",
}


def show_status(config: ServerConfig, management: ManagementClient, actions: Actions, is_detailed: bool) -> ServerState:
    """Draws the whole status, or one line unless `is_detailed`; returns the state that was drawn."""
    latest = actions.latest  # read once: the action may end meanwhile
    outcome = latest.outcome if latest else None
    is_running = latest is not None and outcome is None
    if latest and is_running:
        _show_action(config, latest)
    elif outcome and not outcome.is_success:
        _show_failure(actions, outcome)
    server = management.state()
    if server.state == "up" and latest and is_running and latest.name == "start":
        server = replace(server, state="starting")  # it answers, but not yet on every port
    snapshot = _scrape(config) if server.state == "up" else None
    if not is_detailed:
        _show_badges(server, snapshot)
        return server
    st.subheader("Server status:", anchor=False)
    _show_badges(server, snapshot)
    _show_sentence(config, server)
    st.subheader("Model Status", anchor=False)
    if server.model:
        _show_model(config, server.model, snapshot)
        show_versions(config, management, actions, server.model)
    else:
        st.caption("Nothing is registered.")
    st.button("Model Status", key="model_status", on_click=_toggle_json, help="All that TorchServe says about it.")
    if st.session_state.get("shows_json"):
        st.json(server.model.raw if server.model else {})
    return server


def _show_action(config: ServerConfig, action: Action) -> None:
    with st.container(border=True, key="action"):
        seconds = time.time() - action.begun
        st.markdown(f":material/progress_activity: **{LABELS[action.name]}**, {seconds:.0f} s")
        st.caption(action.progress or "Beginning")
        if action.can_skip_drain:
            label = SKIP_DRAIN_LABELS.get(action.name, "Don't wait: cut them")
            st.button(label, key="skip_drain", on_click=action.skip_drain.set)
        if action.name == "start":
            st.code(log_tail(config, TAIL_LINES) or "…", language=None, height=140)


def _show_failure(actions: Actions, outcome: Outcome) -> None:
    st.error(outcome.sentence, icon=":material/error:")
    if outcome.log:
        with st.expander("The end of TorchServe's log", expanded=True):
            st.code(outcome.log, language=None, height=240)
    with st.container(horizontal=True):
        if outcome.needs_archive:
            st.button("Package the demo model", key="package", on_click=actions.package)
        st.button("Dismiss", key="dismiss", on_click=actions.dismiss)


def _scrape(config: ServerConfig) -> MetricsSnapshot | None:
    """None if the metrics cannot be read: the rest of the page says what is wrong with the server."""
    try:
        return scrape(config)
    except TorchServeError:
        return None


def _show_badges(server: ServerState, snapshot: MetricsSnapshot | None) -> None:
    model = server.model
    phase = model.phase if model else "not registered"
    with st.container(horizontal=True, gap="xsmall", key="badges"):
        st.badge(f"TorchServe: {server.state}", color=COLORS[server.state])  # type: ignore[arg-type]
        if server.state == "up":
            st.badge(f"Model: {phase}", color=COLORS[phase])  # type: ignore[arg-type]
        if model and snapshot:
            counts = RequestCounts.of(model, snapshot)
            st.badge(f"{counts.waiting} requests waiting", color="orange" if counts.waiting else "gray")
            st.badge(f"{counts.running} running", color="blue" if counts.running else "gray")


def _show_sentence(config: ServerConfig, server: ServerState) -> None:
    """The state in words, with the next step. It is always one box, so that the page below does not move."""
    model = server.model
    if server.state == "unhealthy":
        st.error(server.problem, icon=":material/error:")
    elif server.state == "down":
        problem = f" {server.problem}" if server.problem else ""
        sentence = f"TorchServe is not running. Press Start Server in the sidebar.{problem}"
        st.info(sentence, icon=":material/stop_circle:")
    elif server.state == "starting":
        st.info("TorchServe is starting.", icon=":material/hourglass_top:")
    elif model is None:
        sentence = "TorchServe is running without a model. Press Register Llama2 in the sidebar."
        st.warning(sentence, icon=":material/play_circle:")
    elif model.is_ready:
        st.success("Registered model", icon=":material/check_circle:")
    elif model.phase == "failed":
        st.error(_why_no_worker(config), icon=":material/error:")
    else:
        sentence = f"Registered model, {_ready_workers(model)}. A worker is loading or restarting."
        st.warning(sentence, icon=":material/hourglass_top:")


def _why_no_worker(config: ServerConfig) -> str:
    causes = worker_exceptions(config)
    said = f" The last one said: {causes[-1]}." if causes else ""
    return f"Registered model, but no worker runs.{said} TorchServe starts a new one, with growing pauses."


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
        "Status": "READY" if worker.is_ready else worker.phase,
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
