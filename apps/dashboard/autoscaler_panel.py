"""The autoscaler on the server app's page: its switch, its limits, its state, and its decisions with their reasons.

The page reads the autoscaler's files. So all tabs show the same, also when the command line has started it.
"""

import time
from dataclasses import astuple, replace
from typing import Any

import streamlit as st

from apps.dashboard.serving_panel import set_widget
from apps.dashboard.wording import counted
from autoscaler.control import autoscaler_pid, switch_off, switch_on
from autoscaler.policy import POLICY_BOUNDS, Policy
from autoscaler.state_files import AutoscalerReport, LogEntry, read_policy, read_report, write_policy
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.management import ManagementClient
from torchserve_client.running_server import find_server

REFRESH_SECONDS = 2
LOG_HEIGHT = 300  # pixels
BADGES = {
    "on": ":green-badge[on]",
    "off": ":gray-badge[off]",
    "up": ":blue-badge[:material/arrow_upward: {workers}]",
    "down": ":blue-badge[:material/arrow_downward: {workers}]",
    "blocked": ":orange-badge[blocked]",
    "failed": ":red-badge[failed]",
    "waiting": ":gray-badge[note]",
}


@st.fragment(run_every=REFRESH_SECONDS, key="autoscaler")
def show_autoscaler(config: ServerConfig) -> None:
    """Refreshes itself. Each refresh sends at most one request to TorchServe, and none while the autoscaler is on."""
    st.caption(
        "Adds a worker while requests wait too long, and removes one after a calm time. "
        "It is a separate program: it continues when this page is closed, and ends with TorchServe."
    )
    switch, state = st.empty(), st.empty()
    _run_pending_switch(config, state)
    try:
        pid, policy, report = autoscaler_pid(config), read_policy(config), read_report(config)
        obstacle, note = ("", "") if pid else _before_switching_on(config)
    except TorchServeError as error:
        state.error(str(error), icon=":material/error:")
        return
    set_widget("autoscaler_is_on", pid is not None)
    switch.toggle("Autoscaler", key="autoscaler_is_on", on_change=_note_switch, disabled=bool(obstacle))
    _show_sentence(state, pid, report, obstacle or note)
    _show_limits(config, policy)
    st.markdown("**Decisions**")
    _show_log(report.log if report else ())


def _note_switch() -> None:
    """Only records the pending switch: a callback cannot show that the switch takes time, the next run can."""
    st.session_state.autoscaler_pending = st.session_state.autoscaler_is_on
    st.session_state.autoscaler_failure = None


def _run_pending_switch(config: ServerConfig, place: Any) -> None:
    wants_on = st.session_state.pop("autoscaler_pending", None)
    if wants_on is None:
        return
    try:
        with place.container(), st.spinner("Switching the autoscaler on …" if wants_on else "Switching it off …"):
            if wants_on:
                switch_on(config, read_policy(config))
            else:
                switch_off(config)
    except TorchServeError as error:
        st.session_state.autoscaler_failure = autoscaler_pid(config), str(error)


def _before_switching_on(config: ServerConfig) -> tuple[str, str]:
    """Why the autoscaler cannot be switched on, and what switching it on changes; "" if there is nothing to say."""
    if find_server(config) is None:
        return "It can be switched on when TorchServe is running.", ""
    model = ManagementClient(config).describe()
    if model is None:
        return "It can be switched on when the model is registered.", ""
    if model.batching == "dynamic":
        return "", ""
    return "", (
        "Only dynamic batching can have several workers, so switching it on registers the model again: requests in "
        "progress may finish first, and new ones are refused while it loads."
    )


def _show_sentence(place: Any, pid: int | None, report: AutoscalerReport | None, before: str) -> None:
    failure = st.session_state.get("autoscaler_failure")
    if failure and failure[0] == pid:  # with another process id, the failure is out of date
        place.error(failure[1], icon=":material/error:")
    elif pid:
        now = report.activity if report and report.pid == pid else "Starting."
        place.success(now, icon=":material/play_circle:")
    elif report and report.log and report.log[-1].kind not in ("off", "failed"):
        place.warning(f"Its process was ended from outside: switch it on again. {before}", icon=":material/warning:")
    else:
        off = "The autoscaler is off: the number of workers stays as it is."
        place.info(f"{off} {before}", icon=":material/pause_circle:")


def _show_limits(config: ServerConfig, policy: Policy) -> None:
    set_widget("autoscaler_workers", (policy.min_workers, policy.max_workers))
    set_widget("autoscaler_wait", policy.max_wait_seconds)
    set_widget("autoscaler_memory", policy.max_memory_percent)
    set_widget("autoscaler_calm", policy.calm_seconds)
    left, right = st.columns(2, gap="medium")
    with left:
        _slider(config, "Workers, from and to", "workers", "max_workers", 1, "%d")
        _slider(config, "Longest wait", "wait", "max_wait_seconds", 0.5, "%g s")
    with right:
        _slider(config, "Memory in use, at most", "memory", "max_memory_percent", 1, "%d %%")
        _slider(config, "Calm before a worker goes", "calm", "calm_seconds", 1.0, "%g s")


def _slider(config: ServerConfig, label: str, name: str, bound: str, step: Any, format: str) -> None:
    """Has two handles if its value in the session is a pair."""
    kind, low, high = astuple(POLICY_BOUNDS[bound])
    key = f"autoscaler_{name}"
    st.slider(label, kind(low), kind(high), step=step, format=format, key=key, on_change=_save_limits, args=(config,))


def _save_limits(config: ServerConfig) -> None:
    low, high = st.session_state.autoscaler_workers
    limits = replace(
        read_policy(config),
        min_workers=low,
        max_workers=high,
        max_memory_percent=st.session_state.autoscaler_memory,
        max_wait_seconds=st.session_state.autoscaler_wait,
        calm_seconds=st.session_state.autoscaler_calm,
    )
    write_policy(config, limits)


def _show_log(log: tuple[LogEntry, ...]) -> None:
    with st.container(height=LOG_HEIGHT, gap="xsmall", key="autoscaler_log"):
        if not log:
            st.caption("None yet.")
        for entry in reversed(log):
            badge = BADGES[entry.kind].format(workers=counted(entry.workers, "worker"))
            st.markdown(f":small[:gray[{_local_time(entry.at)}] {badge} {entry.text}]")


def _local_time(at: float) -> str:
    """`at` is in seconds since the epoch. The date is left out today."""
    then = time.localtime(at)
    is_today = then[:3] == time.localtime()[:3]
    return time.strftime("%H:%M:%S" if is_today else "%d %b %H:%M", then)
