"""The autoscaler on the server app's page: on and off, its bounds, what it sees now, and what it decided and why.

What is shown comes from the autoscaler's own files, so it is the same in every tab and when the command line runs it.
"""

from __future__ import annotations

import time
from dataclasses import astuple, replace
from typing import Any

import streamlit as st

from autoscaler.control import (
    Entry,
    Report,
    owner,
    read_policy,
    read_report,
    switch_off,
    switch_on,
    write_policy,
)
from autoscaler.policy import POLICY_BOUNDS, Policy
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.management import ManagementClient
from torchserve_client.process import find_server

REFRESH_SECONDS = 2
LOG_HEIGHT = 300
BADGES = {
    "on": ":green-badge[on]",
    "off": ":gray-badge[off]",
    "up": ":blue-badge[:material/arrow_upward: {workers} workers]",
    "down": ":blue-badge[:material/arrow_downward: {workers} workers]",
    "held back": ":orange-badge[held back]",
    "failed": ":red-badge[failed]",
    "waiting": ":gray-badge[note]",
}


def show_autoscaler(config: ServerConfig) -> None:
    """Brought up to date every REFRESH_SECONDS; at most one request to TorchServe, and none while it is on."""
    _live_autoscaler(config)


@st.fragment(run_every=REFRESH_SECONDS, key="autoscaler")
def _live_autoscaler(config: ServerConfig) -> None:
    st.caption(
        "Adds a worker while requests wait too long, and takes one away when it has been calm. "
        "It is a program of its own: it goes on when this page is closed, and ends with TorchServe."
    )
    switch, state = st.empty(), st.empty()
    _fulfil_wish(config, state)
    try:
        pid, policy, report = owner(config), read_policy(config), read_report(config)
        obstacle, note = ("", "") if pid else _before_switching_on(config)
    except TorchServeError as error:
        state.error(str(error), icon=":material/error:")
        return
    _take_over("autoscaler_is_on", pid is not None)
    switch.toggle("Autoscaler", key="autoscaler_is_on", on_change=_wish, disabled=bool(obstacle))
    _show_state(state, pid, report, obstacle or note)
    _show_bounds(config, policy)
    st.markdown("**Decisions**")
    _show_log(report.log if report else ())


# Wishes: a callback only notes what was pressed; the run after it acts, where the page can show that it takes time.


def _wish() -> None:
    st.session_state.autoscaler_wish = st.session_state.autoscaler_is_on
    st.session_state.autoscaler_failure = None


def _fulfil_wish(config: ServerConfig, place: Any) -> None:
    wants_on = st.session_state.pop("autoscaler_wish", None)
    if wants_on is None:
        return
    try:
        with place.container(), st.spinner("Switching the autoscaler on …" if wants_on else "Switching it off …"):
            if wants_on:
                switch_on(config, read_policy(config))
            else:
                switch_off(config)
    except TorchServeError as error:
        st.session_state.autoscaler_failure = owner(config), str(error)


def _before_switching_on(config: ServerConfig) -> tuple[str, str]:
    """Why it cannot be switched on, "" if it can; and what switching it on will do to the model, "" for nothing."""
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


def _show_state(place: Any, pid: int | None, report: Report | None, before: str) -> None:
    failure = st.session_state.get("autoscaler_failure")
    if failure and failure[0] == pid:  # else something has changed since, in this tab or elsewhere
        place.error(failure[1], icon=":material/error:")
    elif pid:
        now = report.now if report and report.pid == pid else "Starting."
        place.success(now, icon=":material/play_circle:")
    elif report and report.log and report.log[-1].kind not in ("off", "failed"):
        place.warning(f"Its process was ended from outside: switch it on again. {before}", icon=":material/warning:")
    else:
        off = "The autoscaler is off: the number of workers stays as it is."
        place.info(f"{off} {before}", icon=":material/pause_circle:")


def _show_bounds(config: ServerConfig, policy: Policy) -> None:
    _take_over("autoscaler_workers", (policy.min_workers, policy.max_workers))
    _take_over("autoscaler_wait", policy.max_wait_seconds)
    _take_over("autoscaler_memory", policy.max_memory_percent)
    _take_over("autoscaler_calm", policy.calm_seconds)
    left, right = st.columns(2, gap="medium")
    with left:
        _slider(config, "Workers, from and to", "workers", "max_workers", 1, "%d")
        _slider(config, "Longest wait", "wait", "max_wait_seconds", 0.5, "%g s")
    with right:
        _slider(config, "Memory in use, at most", "memory", "max_memory_percent", 1, "%d %%")
        _slider(config, "Calm before a worker goes", "calm", "calm_seconds", 1.0, "%g s")


def _slider(config: ServerConfig, label: str, name: str, bound: str, step: Any, format: str) -> None:
    """Two handles where the session's value has two."""
    kind, low, high = astuple(POLICY_BOUNDS[bound])
    key = f"autoscaler_{name}"
    ends = kind(low), kind(high)
    st.slider(label, *ends, step=step, format=format, key=key, on_change=_change_bounds, args=(config,))


def _take_over(key: str, value: Any) -> None:
    """What another tab or the command line chose. Set only if different, or a slider would jump while it is moved."""
    if st.session_state.get(key) != value:
        st.session_state[key] = value


def _change_bounds(config: ServerConfig) -> None:
    low, high = st.session_state.autoscaler_workers
    write_policy(
        config,
        replace(
            read_policy(config),
            min_workers=low,
            max_workers=high,
            max_memory_percent=st.session_state.autoscaler_memory,
            max_wait_seconds=st.session_state.autoscaler_wait,
            calm_seconds=st.session_state.autoscaler_calm,
        ),
    )


def _show_log(log: tuple[Entry, ...]) -> None:
    with st.container(height=LOG_HEIGHT, gap="xsmall", key="autoscaler_log"):
        if not log:
            st.caption("None yet.")
        for entry in reversed(log):
            badge = BADGES[entry.kind].format(workers=entry.workers).replace(" 1 workers", " 1 worker")
            st.markdown(f":small[:gray[{_when(entry.at)}] {badge} {entry.text}]")


def _when(at: float) -> str:
    then = time.localtime(at)
    is_today = then[:3] == time.localtime()[:3]
    return time.strftime("%H:%M:%S" if is_today else "%d %b %H:%M", then)
