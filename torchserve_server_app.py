"""The server app: start and stop TorchServe, register the model, see and change how it is served.

Knows nothing of HTTP and stores nothing about the server. Each drawing queries TorchServe, so the page is also right
after a reload, in a second tab, and after a change on the command line. The session stores what the person chose.
Actions run in threads (apps/dashboard/actions.py): closing the page stops nothing.

Run it with `streamlit run torchserve_server_app.py`.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import streamlit as st

from apps.dashboard import serving_panel
from apps.dashboard.actions import Actions, Outcome
from apps.dashboard.autoscaler_panel import show_autoscaler
from apps.dashboard.connect_panel import show_connect
from apps.dashboard.experiments_panel import show_experiments
from apps.dashboard.logs_panel import show_logs
from apps.dashboard.metrics_panel import show_metrics
from apps.dashboard.status_panel import model_meta, show_status
from apps.dashboard.wording import counted
from apps.shared.garbage_collector import freeze_imports
from experiments.restore import is_running
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.drain import RequestCounts
from torchserve_client.management import ManagementClient
from torchserve_client.metrics import scrape
from torchserve_client.status import ModelStatus

st.set_page_config(page_title="Llama 2 TorchServe Server", page_icon="🦙", layout="wide")

REFRESH_SECONDS = 2.0
ACTION_REFRESH_SECONDS = 1.0  # while an action runs

PANELS: dict[str, Callable[[ServerConfig], None] | None] = {
    "Status": None,
    "Metrics": show_metrics,
    "Experiments": show_experiments,
    "Autoscaler": show_autoscaler,
    "Logs": show_logs,
    "Connect": show_connect,
}
STOP_CHOICES = {"Let them finish": True, "Stop now": False, "Keep running": None}  # whether to drain first


@st.cache_resource
def shared_actions(path: str, _config: ServerConfig) -> Actions:
    """All pages of a server share it."""
    return Actions(_config)


def register() -> None:
    actions.register(serving_panel.wanted_settings(), serving_panel.wanted_archive(config))


def apply() -> None:
    actions.apply(serving_panel.wanted_settings(), serving_panel.wanted_archive(config))


def request_stop() -> None:
    """Stops at once if no request is waiting or running. Otherwise the page asks the person."""
    requests = requests_in_progress()
    if requests:
        st.session_state.stop_question = requests
    else:
        actions.stop(drain_first=False)


def requests_in_progress() -> int:
    """0 if the server cannot be queried, because it cannot be drained then either."""
    try:
        model = management.describe()
        return RequestCounts.of(model, scrape(config)).requests if model else 0
    except TorchServeError:
        return 0


def close_stop_question() -> None:
    st.session_state.stop_question = 0


def show_sidebar(model: ModelStatus | None, meta: dict[str, Any] | None, has_experiment: bool) -> None:
    is_busy = actions.current is not None
    is_locked = is_busy or has_experiment
    st.title("🦙💬 Llama 2 TorchServe Server", anchor=False)
    with st.container(horizontal=True, gap="small"):
        st.button("Start Server", key="start", on_click=actions.start, disabled=is_busy)
        st.button("Stop Server", key="stop", on_click=request_stop, disabled=is_busy)
    with st.container(horizontal=True, gap="small"):
        st.button("Register Llama2", key="register", on_click=register, disabled=is_locked)
        st.button("Unregister", key="unregister", on_click=actions.unregister, disabled=is_locked or model is None)
    serving_panel.show_choice(config, model, meta)
    change = serving_panel.difference(config, model)
    st.button("Apply", key="apply", on_click=apply, disabled=is_locked, type="primary" if change else "secondary")
    if has_experiment:
        st.caption("An experiment is running: it changes the settings and puts them back at its end.")
    elif change:
        st.caption(change)
    latest = actions.latest
    if latest and latest.outcome:
        show_outcome(latest.outcome)


def show_outcome(outcome: Outcome) -> None:
    """Shows the time as well, because the server may have changed since then."""
    if outcome.is_success:
        st.success(outcome.sentence, icon=":material/check_circle:")
    else:
        st.error("That failed: see the page.", icon=":material/error:")
    st.caption(f"Ended at {datetime.fromtimestamp(outcome.at):%H:%M:%S}.")


@st.dialog("Stop Server", on_dismiss=close_stop_question)
def ask_how_to_stop(requests: int) -> None:
    st.write(f"{counted(requests, 'request')} {'is' if requests == 1 else 'are'} in progress or waiting.")
    with st.container(horizontal=True):
        for label, drain_first in STOP_CHOICES.items():
            if st.button(label, key=label, type="primary" if drain_first else "secondary"):
                close_stop_question()
                if drain_first is not None:
                    actions.stop(drain_first)
                st.rerun()


def show_live_status(drawn: object, is_detailed: bool) -> None:
    """Redraws the whole page when `drawn`, the state that the page was drawn for, is out of date."""
    server = show_status(config, management, actions, is_detailed)
    state = (actions.latest_state, is_running(config), model_meta(config, server.model))
    if state != drawn or serving_panel.has_server_changed(server.model):
        st.rerun()


try:
    config = ServerConfig.load()
except TorchServeError as error:
    st.error(str(error), icon=":material/error:")
    st.button("Read it again", key="reload")
    st.stop()
management = ManagementClient(config)
actions = shared_actions(str(config.path), config)
has_experiment = is_running(config)
model = management.state().model
meta = model_meta(config, model)
drawn = (actions.latest_state, has_experiment, meta)
serving_panel.update_choice(config, model)

with st.sidebar:
    show_sidebar(model, meta, has_experiment)

st.title("TorchServe Status", anchor=False)
if st.session_state.get("stop_question"):
    ask_how_to_stop(st.session_state.stop_question)
every = ACTION_REFRESH_SECONDS if actions.current else REFRESH_SECONDS
for panel, tab in zip(PANELS, st.tabs(list(PANELS), key="panel", bind="query-params"), strict=True):
    if tab.open:
        with tab:
            st.fragment(show_live_status, run_every=every, key="live")(drawn, panel == "Status")
            show = PANELS[panel]
            if show:
                show(config)
            freeze_imports(panel, has_model=model is not None)
