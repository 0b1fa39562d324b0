"""The control room: start and stop TorchServe, register the model, see and change how it is served.

Knows nothing of HTTP, and remembers nothing of the server: what the page shows was asked from TorchServe at that
moment, so it is also right after a reload, in a second tab and when somebody used the command line. The session keeps
the sliders, the action that was asked for, and how the last one ended. Closing the page stops nothing.

Run it with `streamlit run torchserve_server_app.py`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

import streamlit as st

import torchserve_process
from torchserve_management import (
    DEFAULT_SETTINGS,
    SERVING_BOUNDS,
    ManagementClient,
    ModelStatus,
    ServingSettings,
)
from torchserve_process import ServerConfig, StartFailed, TorchServeError

st.set_page_config(page_title="Llama 2 TorchServe Server", page_icon="🦙")

REFRESH_SECONDS = 2
LOG_LINES = 40


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the last action ended; `log` is TorchServe's, where it explains a failure."""

    is_success: bool
    sentence: str
    log: str = ""


def wish(action: str) -> None:
    st.session_state.wish = action
    st.session_state.outcome = None


def start_server() -> str:
    return torchserve_process.start(config)


def stop_server() -> str:
    torchserve_process.stop(config)
    return "TorchServe has stopped; nothing of it is running any more."


def register_model() -> str:
    status = management.describe()
    if status:
        return f"Registered model: it already serves with {status.settings}. Press Apply to change that."
    management.register(wanted_settings())
    return "Registered model"


def apply_settings() -> str:
    management.apply(wanted_settings())
    return f"The model serves with {wanted_settings()}."


ACTIONS: dict[str, tuple[str, Callable[[], str]]] = {
    "start": ("Starting TorchServe", start_server),
    "stop": ("Stopping TorchServe and its workers", stop_server),
    "register": ("Loading the model; a large one takes a minute", register_model),
    "apply": ("Loading the model with the new settings", apply_settings),
}


def perform(action: str) -> Outcome:
    label, act = ACTIONS[action]
    try:
        with st.spinner(f"{label} …", show_time=True):
            return Outcome(True, act())
    except TorchServeError as error:
        log = torchserve_process.log_tail(config, LOG_LINES) if isinstance(error, StartFailed) else ""
        return Outcome(False, str(error), log)


def wanted_settings() -> ServingSettings:
    return ServingSettings(**{name: st.session_state[name] for name in SERVING_BOUNDS})


def set_sliders_once() -> None:
    """A new page shows what the model serves with."""
    if "workers" in st.session_state:
        return
    settings = DEFAULT_SETTINGS
    try:
        status = management.describe()
        settings = status.settings if status else settings
    except TorchServeError:
        pass  # not running, or the status below says what is wrong
    for name, bounds in SERVING_BOUNDS.items():
        st.session_state[name] = int(min(max(getattr(settings, name), bounds.low), bounds.high))


def slider(label: str, name: str, step: int, help: str) -> None:
    bounds = SERVING_BOUNDS[name]
    st.slider(label, int(bounds.low), int(bounds.high), step=step, key=name, help=help)


def show_failure(outcome: Outcome) -> None:
    st.error(outcome.sentence, icon=":material/error:")
    if outcome.log:
        with st.expander("The end of TorchServe's log", expanded=True):
            st.code(outcome.log, language=None, height=240)


@st.fragment(run_every=REFRESH_SECONDS, key="status")
def live_status() -> None:
    st.header("Server status:", anchor=False)
    try:
        state = management.state()
        status = management.describe() if state == "up" else None
    except TorchServeError as error:
        st.error(str(error), icon=":material/error:")
        return
    if "wish" not in st.session_state:  # else the action is about to change what could be said here
        show_server(state, status)
    st.header("Model Status", anchor=False)
    if status:
        show_model(status)
    else:
        st.caption("Nothing is registered.")
    st.button(
        "Model Status", key="model_status", on_click=toggle_json, help="All that TorchServe says about the model."
    )
    if st.session_state.get("shows_json"):
        st.json(status.raw if status else {})
    spare_the_garbage_collector(shows_table=status is not None)


@st.cache_resource
def spare_the_garbage_collector(shows_table: bool) -> None:
    """Takes what is imported by now out of garbage collection; once without and once with st.table's imports.

    Streamlit 1.67 collects all garbage after every run, also of a fragment: four fifths of what an idle page costs
    (measured: 3.2 % of a core with, 0.7 % without).
    """
    gc.collect()
    gc.freeze()


def toggle_json() -> None:
    st.session_state.shows_json = not st.session_state.get("shows_json")


def show_server(state: str, status: ModelStatus | None) -> None:
    if state == "down":
        st.info("TorchServe is not running. Press Start Server in the sidebar.", icon=":material/stop_circle:")
    elif state == "starting":
        st.info("TorchServe is starting.", icon=":material/hourglass_top:")
    elif status is None:
        st.warning(
            "TorchServe is running without a model. Press Register Llama2 in the sidebar.",
            icon=":material/play_circle:",
        )
    elif status.is_ready:
        st.success("Registered model", icon=":material/check_circle:")
    else:
        ready = f"{status.ready_workers} of {status.settings.workers} workers ready"
        st.warning(f"Registered model, {ready}. A worker is loading or restarting.", icon=":material/hourglass_top:")


def show_model(status: ModelStatus) -> None:
    settings = status.settings
    with st.container(horizontal=True, gap="xsmall"):
        ready = f"{status.ready_workers} of {settings.workers} workers ready"
        st.badge(ready, color="green" if status.is_ready else "orange")
        st.badge(f"{status.batching} batching")
        st.badge(f"batch size {settings.batch_size}")
        st.badge(f"max batch delay {settings.max_batch_delay_ms} ms")
        st.badge(f"{status.pending_requests} requests waiting", color="gray")
    if status.workers:
        rows = [
            {
                "Worker": worker.id,
                "Status": "READY" if worker.is_ready else "not ready",
                "PID": str(worker.pid),
                "Memory": f"{worker.memory_bytes / 2**20:,.0f} MB" if worker.memory_bytes else "",
                "Started": f"{worker.started.astimezone():%H:%M:%S}" if worker.started else "",
            }
            for worker in status.workers
        ]
        st.table(rows, hide_index=True)
    if wanted_settings() != settings:
        st.caption(f"The sliders say {wanted_settings()}: press Apply to serve like that.")


try:
    config = ServerConfig.load()
except TorchServeError as error:
    st.error(str(error), icon=":material/error:")
    st.stop()
management = ManagementClient(config)
set_sliders_once()

with st.sidebar:
    st.title("🦙💬 Llama 2 TorchServe Server", anchor=False)
    st.button("Start Server", key="start", on_click=wish, args=("start",))
    st.button("Stop Server", key="stop", on_click=wish, args=("stop",))
    st.button("Register Llama2", key="register", on_click=wish, args=("register",))
    slider("Num Workers", "workers", 1, "Processes that answer, each with a model of its own in memory.")
    if st.session_state.workers == 1:
        st.caption("One worker batches continuously: a new request joins at the next token.")
    else:
        st.caption(
            "Two or more workers use dynamic batching, because TorchServe's continuous batching freezes with them: "
            "a new request waits until its worker's batch has ended."
        )
    slider(
        "Batch Size", "batch_size", 1, "Requests that one worker answers together; each needs memory for its context."
    )
    slider(
        "Max Batch Delay",
        "max_batch_delay_ms",
        10,
        "Milliseconds that a request which finds its worker idle waits for company. A lone request is that much later.",
    )
    st.button("Apply", key="apply", on_click=wish, args=("apply",), help="Serve with what the sliders say.")
    sidebar_report = st.empty()

st.title("TorchServe Status", anchor=False)
report = st.empty()
live_status()

action = st.session_state.pop("wish", None)
if action:
    with report:
        st.session_state.outcome = perform(action)
    st.rerun()
outcome = st.session_state.get("outcome")
if outcome and outcome.is_success:
    sidebar_report.success(outcome.sentence, icon=":material/check_circle:")
elif outcome:
    sidebar_report.error("That failed: see the page.", icon=":material/error:")
    with report.container():
        show_failure(outcome)
