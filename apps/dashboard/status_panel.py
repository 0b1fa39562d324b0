"""The live state on the server app's page: TorchServe, the model, each worker, and the action under way.

Everything is asked from the server and the system whenever it is drawn; the session keeps only the sample before,
which a processor's use is measured against.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import streamlit as st

from apps.dashboard.actions import LABELS, Action, Actions, Outcome
from apps.dashboard.model_description import ModelFacts, describe_model
from apps.dashboard.versions_panel import show_versions
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.drain import RequestCounts
from torchserve_client.logs import worker_exceptions
from torchserve_client.management import ManagementClient, ModelStatus, ServerState
from torchserve_client.metrics import ProcessSample, Snapshot, cpu_percent, scrape
from torchserve_client.process import log_tail
from torchserve_client.status import WorkerStatus

SAMPLE_SECONDS = 0.5  # a processor's use over less is noise
TAIL_LINES = 6
HURRY: dict[str, str] = {
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


def show_state(config: ServerConfig, management: ManagementClient, actions: Actions, is_detailed: bool) -> ServerState:
    """Draws what there is now, all of it or (not `is_detailed`) in one line; returns what was drawn."""
    latest = actions.latest  # once: it may end in between
    outcome = latest.outcome if latest else None
    if latest and not outcome:
        _show_action(config, latest)
    elif outcome and not outcome.is_success:
        _show_failure(actions, outcome)
    view = management.state()
    if view.state == "up" and latest and not outcome and latest.name == "start":
        view = replace(view, state="starting")  # it answers, but not yet on every port
    snapshot = _read_snapshot(config) if view.state == "up" else None
    if not is_detailed:
        _show_badges(view, snapshot)
        return view
    st.subheader("Server status:", anchor=False)
    _show_badges(view, snapshot)
    _show_sentence(config, view)
    st.subheader("Model Status", anchor=False)
    if view.model:
        _show_model(view.model, snapshot, _facts(str(config.path), config).of(view.model))
        show_versions(config, management, actions, view.model)
    else:
        st.caption("Nothing is registered.")
    _show_json(view.model)
    return view


def _show_action(config: ServerConfig, action: Action) -> None:
    """The action under way, with its progress and, where it can wait for less, a button."""
    with st.container(border=True, key="action"):
        seconds = time.time() - action.begun
        st.markdown(f":material/progress_activity: **{LABELS[action.name]}**, {seconds:.0f} s")
        st.caption(action.stage or "Beginning")
        if action.lets_finish:
            st.button(HURRY.get(action.name, "Don't wait: cut them"), key="hurry", on_click=action.hurry.set)
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


@st.cache_resource
def _facts(path: str, _config: ServerConfig) -> ModelFacts:
    """One for each server, for all pages."""
    return ModelFacts(_config)


def _read_snapshot(config: ServerConfig) -> Snapshot | None:
    """None where the metrics cannot be read: the rest of the page says what is wrong with the server."""
    try:
        return scrape(config)
    except TorchServeError:
        return None


def _show_badges(view: ServerState, snapshot: Snapshot | None) -> None:
    model = view.model
    phase = model.phase if model else "not registered"
    with st.container(horizontal=True, gap="xsmall", key="badges"):
        st.badge(f"TorchServe: {view.state}", color=COLORS[view.state])  # type: ignore[arg-type]
        if view.state == "up":
            st.badge(f"Model: {phase}", color=COLORS[phase])  # type: ignore[arg-type]
        if model and snapshot:
            traffic = RequestCounts.of(model, snapshot)
            st.badge(f"{traffic.waiting} requests waiting", color="orange" if traffic.waiting else "gray")
            st.badge(f"{traffic.running} running", color="blue" if traffic.running else "gray")


def _show_sentence(config: ServerConfig, view: ServerState) -> None:
    """The state in words, with the next step; always one box, so that nothing below it moves."""
    model = view.model
    if view.state == "unhealthy":
        st.error(view.problem, icon=":material/error:")
    elif view.state == "down":
        problem = f" {view.problem}" if view.problem else ""
        sentence = f"TorchServe is not running. Press Start Server in the sidebar.{problem}"
        st.info(sentence, icon=":material/stop_circle:")
    elif view.state == "starting":
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


def _show_model(model: ModelStatus, snapshot: Snapshot | None, facts: dict[str, Any] | None) -> None:
    """`facts` is what the model says about itself, once it has."""
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
    st.caption(describe_model(facts))
    if snapshot:
        _show_server_process(snapshot, cpu)


def _worker_row(worker: WorkerStatus, cpu: float | None) -> dict[str, str]:
    uptime = time.time() - worker.started.timestamp() if worker.started and worker.is_alive else None
    return {
        "Worker": worker.id,
        "Status": "READY" if worker.is_ready else worker.phase,
        "PID": str(worker.pid) if worker.is_alive else "",
        "Uptime": "" if uptime is None else _duration(uptime),
        "Memory": f"{worker.memory_bytes / 2**20:,.0f} MB" if worker.memory_bytes else "",
        "CPU": "" if cpu is None else f"{cpu:.0f} %",
    }


def _show_server_process(snapshot: Snapshot, cpu: Mapping[int, float]) -> None:
    server: ProcessSample | None = next((each for each in snapshot.processes if not each.worker), None)
    if server:
        use = f", {cpu[server.pid]:.0f} % CPU" if server.pid in cpu else ""
        st.caption(
            f"TorchServe itself: process {server.pid}, up {_duration(snapshot.at - server.started)}, "
            f"{server.memory_bytes / 2**20:,.0f} MB{use}. CPU is in percent of one core."
        )


def _cpu_percents(snapshot: Snapshot) -> dict[int, float]:
    """What each process has used since the sample before, by process id."""
    before: Snapshot | None = st.session_state.get("snapshot")
    if before is None or snapshot.at - before.at >= SAMPLE_SECONDS:
        st.session_state.snapshot = snapshot
        found = {each.pid: cpu_percent(before, snapshot, each) for each in snapshot.processes} if before else {}
        st.session_state.cpu_percents = {pid: percent for pid, percent in found.items() if percent is not None}
    known: dict[int, float] = st.session_state.cpu_percents
    return known


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{max(0.0, seconds):.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _show_json(model: ModelStatus | None) -> None:
    st.button("Model Status", key="model_status", on_click=_toggle_json, help="All that TorchServe says about it.")
    if st.session_state.get("shows_json"):
        st.json(model.raw if model else {})


def _toggle_json() -> None:
    st.session_state.shows_json = not st.session_state.get("shows_json")
