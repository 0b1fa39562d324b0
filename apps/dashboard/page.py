"""The server app's page: start and stop TorchServe, register the model, see and change how it is served.

Knows nothing of HTTP and stores nothing about the server. Each drawing queries TorchServe, so the page is also right
after a reload, in a second tab, and after a change on the command line. The session stores what the person chose.
Actions run in threads (apps/dashboard/actions.py): closing the page stops nothing.

torchserve_server_app.py serves it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import streamlit as st

from apps.dashboard import serving_panel
from apps.dashboard.actions import Actions
from apps.dashboard.autoscaler_panel import show_autoscaler
from apps.dashboard.connect_panel import show_connect
from apps.dashboard.experiments_panel import shared_experiments, show_experiments
from apps.dashboard.facts import gather
from apps.dashboard.logs_panel import show_logs
from apps.dashboard.metrics_panel import shared_history, show_metrics
from apps.dashboard.nodes_panel import show_nodes
from apps.dashboard.state import Button, Facts, PageState, page_state
from apps.dashboard.status_panel import model_meta, show_action, show_details, show_state
from apps.dashboard.wording import counted
from apps.shared.app_links import running_address
from apps.shared.garbage_collector import freeze_imports
from apps.shared.page_style import draw_page_style
from autoscaler.control import is_on
from cluster.entry_file import entry_file
from experiments.restore import is_running
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.drain import RequestCounts
from torchserve_client.management import ManagementClient
from torchserve_client.metrics import scrape
from torchserve_client.status import ModelStatus

st.set_page_config(page_title="Llama 2 TorchServe Server", page_icon="🦙", layout="wide")
draw_page_style()

REFRESH_SECONDS = 2.0
ACTION_REFRESH_SECONDS = 1.0  # while an action runs

PANELS: dict[str, Callable[[ServerConfig], None] | None] = {
    "Status": None,
    "Nodes": show_nodes,  # only where there is a cluster
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
    actions.register(serving_panel.wanted_settings(), serving_panel.wanted_archive(config, is_on(config)))


def apply() -> None:
    actions.apply(serving_panel.wanted_settings(), serving_panel.wanted_archive(config, is_on(config)))


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


def show_sidebar(facts: Facts, state: PageState) -> None:
    is_autoscaled = facts.changes.has_autoscaler
    st.title("🦙💬 Llama 2 TorchServe Server", anchor=False)
    with st.container(horizontal=True, gap="small"):
        show_button("Start Server", "start", actions.start, state)
        show_button("Stop Server", "stop", request_stop, state)
    with st.container(horizontal=True, gap="small"):
        show_button("Register Llama2", "register", register, state)
        show_button("Unregister", "unregister", actions.unregister, state)
    if not facts.has_archive:
        show_button("Package the demo model", "package", actions.package, state)
    serving_panel.show_choice(config, facts.server.model, model_meta(config, facts.server.model), is_autoscaled)
    show_button("Apply", "apply", apply, state)
    if facts.change and not state.obstacles["apply"]:
        st.caption(facts.change)
    show_chat_link(state)


def show_button(label: str, key: Button, act: Callable[[], None], state: PageState) -> None:
    """The next sensible step is the primary button. A disabled button says why in its tooltip."""
    obstacle = state.obstacles[key]
    kind: Literal["primary", "secondary"] = "primary" if state.next_step == key else "secondary"
    st.button(label, key=key, on_click=act, disabled=bool(obstacle), help=obstacle or None, type=kind)


def show_chat_link(state: PageState) -> None:
    address = running_address(config.home, "chat")
    is_next = state.next_step == "chat"
    if address:
        kind: Literal["primary", "secondary"] = "primary" if is_next else "secondary"
        st.link_button("Open the chat", address, icon=":material/forum:", type=kind)
    elif is_next:
        st.caption("Start the chat with `streamlit run client_app.py`.")


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


def with_change(facts: Facts) -> Facts:
    """The facts, completed with what this session's person has chosen."""
    is_autoscaled = facts.changes.has_autoscaler
    return replace(facts, change=serving_panel.difference(config, facts.server.model, is_autoscaled))


def drawn_state(state: PageState, model: ModelStatus | None) -> tuple[object, ...]:
    """What the sidebar and the lists of versions and experiments depend on."""
    return (
        actions.latest_state,
        state.obstacles,
        state.next_step,
        is_running(config),
        model_meta(config, model),
        running_address(config.home, "chat"),
        shown_panels(),
    )


def shown_panels() -> list[str]:
    has_cluster = entry_file(config.home).exists()
    return [panel for panel in PANELS if panel != "Nodes" or has_cluster]


def show_live_status(drawn: object, is_detailed: bool) -> None:
    """Redraws the whole page when `drawn`, the state that the page was drawn for, is out of date."""
    facts = with_change(gather(config, actions, experiments, history))
    state, model = page_state(facts), facts.server.model
    if is_detailed:
        st.header("Server status:", anchor=False)
    show_state(facts, state, is_detailed)
    show_action(config, actions)
    if is_detailed:
        show_details(config, management, actions, facts, history.latest)
    if drawn_state(state, model) != drawn or serving_panel.has_server_changed(model):
        st.rerun()


try:
    config = ServerConfig.load()
except TorchServeError as error:
    st.error(str(error), icon=":material/error:")
    st.button("Read it again", key="reload")
    st.stop()
management = ManagementClient(config)
actions = shared_actions(str(config.path), config)
experiments = shared_experiments(str(config.path), config)
history = shared_history(str(config.path), config)
try:
    facts = gather(config, actions, experiments, history)
except TorchServeError as error:
    st.error(str(error), icon=":material/error:")
    st.button("Read it again", key="reload")
    st.stop()
model = facts.server.model
serving_panel.update_choice(config, model, facts.changes.has_autoscaler)
facts = with_change(facts)
state = page_state(facts)
drawn = drawn_state(state, model)

with st.sidebar:
    show_sidebar(facts, state)

st.title("TorchServe Status", anchor=False)
if st.session_state.get("stop_question"):
    ask_how_to_stop(st.session_state.stop_question)
every = ACTION_REFRESH_SECONDS if state.tone == "busy" else REFRESH_SECONDS
panels = shown_panels()
for panel, tab in zip(panels, st.tabs(panels, key="panel", bind="query-params"), strict=True):
    if tab.open:
        with tab:
            st.fragment(show_live_status, run_every=every, key="live")(drawn, panel == "Status")
            show = PANELS[panel]
            if show:
                show(config)
            freeze_imports(panel, has_model=model is not None)
