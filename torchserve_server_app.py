"""The control room: start and stop TorchServe, register the model, see and change how it is served.

Knows nothing of HTTP, and remembers nothing of the server: what the page shows was asked from TorchServe at that
moment, so it is also right after a reload, in a second tab and when somebody used the command line. The session keeps
what the person chose. Actions run beside the pages (apps/dashboard/actions.py): closing a page stops nothing.

Run it with `streamlit run torchserve_server_app.py`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from datetime import datetime

import streamlit as st

from apps.dashboard.actions import Actions, Outcome
from apps.dashboard.autoscaler_panel import show_autoscaler
from apps.dashboard.connect_panel import show_connect
from apps.dashboard.experiments_panel import show_experiments
from apps.dashboard.logs_panel import show_logs
from apps.dashboard.metrics_panel import show_metrics
from apps.dashboard.serving_panel import (
    difference,
    follow,
    is_other_than_seen,
    show_choice,
    wanted_archive,
    wanted_settings,
)
from apps.dashboard.status_panel import show_state
from experiments.restore import is_running
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.drain import RequestCounts
from torchserve_client.management import ManagementClient, ModelStatus
from torchserve_client.metrics import scrape

st.set_page_config(page_title="Llama 2 TorchServe Server", page_icon="🦙", layout="wide")

REFRESH_SECONDS = 2.0
ACTION_SECONDS = 1.0  # while an action is under way

PANELS: dict[str, Callable[[ServerConfig], None] | None] = {
    "Status": None,
    "Metrics": show_metrics,
    "Experiments": show_experiments,
    "Autoscaler": show_autoscaler,
    "Logs": show_logs,
    "Connect": show_connect,
}


@st.cache_resource
def shared_actions(path: str, _config: ServerConfig) -> Actions:
    """One for each server, for all pages."""
    return Actions(_config)


def live(drawn: object, is_detailed: bool) -> None:
    """Keeps the state true; `drawn` is what the rest of the page was drawn for: it is drawn again when that changes."""
    view = show_state(config, management, actions, is_detailed)
    if (actions.latest_state, is_running(config)) != drawn or is_other_than_seen(view.model):
        st.rerun()


@st.cache_resource
def spare_the_garbage_collector(panel: str, has_model: bool) -> None:
    """Takes what is imported by now out of garbage collection; once for each page that may have imported more.

    Streamlit 1.67 collects all garbage after every run, also of a fragment: four fifths of what an idle page costs
    (measured: 3.2 % of a core with, 0.7 % without).
    """
    gc.collect()
    gc.freeze()


def wish_to_stop() -> None:
    """Stops at once where nobody waits for an answer; else the page asks."""
    requests = requests_in_progress()
    if requests:
        st.session_state.stop_question = requests
    else:
        actions.stop(lets_finish=False)


def requests_in_progress() -> int:
    """0 where the server cannot be asked: then there is nothing that could be let finish."""
    try:
        model = management.describe()
        return RequestCounts.of(model, scrape(config)).requests if model else 0
    except TorchServeError:
        return 0


def forget_question() -> None:
    st.session_state.stop_question = 0


@st.dialog("Stop Server", on_dismiss=forget_question)
def ask_how_to_stop(requests: int) -> None:
    st.write(f"{'1 request is' if requests == 1 else f'{requests} requests are'} in progress or waiting.")
    with st.container(horizontal=True):
        if st.button("Let them finish", key="stop_later", type="primary"):
            forget_question()
            actions.stop(lets_finish=True)
            st.rerun()
        if st.button("Stop now", key="stop_now"):
            forget_question()
            actions.stop(lets_finish=False)
            st.rerun()
        if st.button("Keep running", key="stop_not"):
            forget_question()
            st.rerun()


def register() -> None:
    actions.register(wanted_settings(), wanted_archive(config))


def apply() -> None:
    actions.apply(wanted_settings(), wanted_archive(config))


def show_outcome(outcome: Outcome) -> None:
    """How the last action ended, and when: the server may have changed since."""
    if outcome.is_success:
        st.success(outcome.sentence, icon=":material/check_circle:")
    else:
        st.error("That failed: see the page.", icon=":material/error:")
    st.caption(f"Ended at {datetime.fromtimestamp(outcome.at):%H:%M:%S}.")


def show_sidebar(model: ModelStatus | None, has_experiment: bool) -> None:
    is_busy = actions.current is not None
    is_fixed = is_busy or has_experiment
    st.title("🦙💬 Llama 2 TorchServe Server", anchor=False)
    with st.container(horizontal=True, gap="small"):
        st.button("Start Server", key="start", on_click=actions.start, disabled=is_busy)
        st.button("Stop Server", key="stop", on_click=wish_to_stop, disabled=is_busy)
    with st.container(horizontal=True, gap="small"):
        st.button("Register Llama2", key="register", on_click=register, disabled=is_fixed)
        st.button("Unregister", key="unregister", on_click=actions.unregister, disabled=is_fixed or model is None)
    show_choice(config, model)
    change = difference(config, model)
    st.button("Apply", key="apply", on_click=apply, disabled=is_fixed, type="primary" if change else "secondary")
    if has_experiment:
        st.caption("An experiment is running: it changes the settings and puts them back at its end.")
    elif change:
        st.caption(change)
    latest = actions.latest
    if latest and latest.outcome:
        show_outcome(latest.outcome)


try:
    config = ServerConfig.load()
except TorchServeError as error:
    st.error(str(error), icon=":material/error:")
    st.button("Read it again", key="reload")
    st.stop()
management = ManagementClient(config)
actions = shared_actions(str(config.path), config)
has_experiment = is_running(config)
drawn = (actions.latest_state, has_experiment)
model = management.state().model
follow(config, model)

with st.sidebar:
    show_sidebar(model, has_experiment)

st.title("TorchServe Status", anchor=False)
if st.session_state.get("stop_question"):
    ask_how_to_stop(st.session_state.stop_question)
every = ACTION_SECONDS if actions.current else REFRESH_SECONDS
for panel, tab in zip(PANELS, st.tabs(list(PANELS), key="panel", bind="query-params"), strict=True):
    if tab.open:
        with tab:
            st.fragment(live, run_every=every, key="live")(drawn, panel == "Status")
            show = PANELS[panel]
            if show:
                show(config)
            spare_the_garbage_collector(panel, has_model=model is not None)
