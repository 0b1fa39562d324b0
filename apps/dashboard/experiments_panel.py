"""The experiments on the server app's page: the form, the progress, and what was measured.

An experiment runs in a thread of the app (experiments/background.py) and its measurements are in files. So it continues
when the page is closed, and a reload or a second tab shows the same.
"""

from typing import Any

import streamlit as st

from apps.dashboard.experiment_results_panel import show_results
from apps.dashboard.wording import counted, duration
from experiments.background import BackgroundExperiments
from experiments.plan import BATCHINGS, MAX_VALUES, PLAN_BOUNDS, SWEEPS, Plan
from experiments.prompts import PROMPT_SETS
from experiments.restore import discard_restore_note, is_running, unrestored_setup
from experiments.run import ExperimentProgress
from llama_cpp_worker.sampling_params import InvalidParameter
from torchserve_client.config import ServerConfig, TorchServeError

PROGRESS_REFRESH_SECONDS = 1
IDLE_REFRESH_SECONDS = 5  # another page or program may start an experiment

NO_SWEEP = "Nothing"
SWEEP_CHOICES = {**SWEEPS, NO_SWEEP: NO_SWEEP}
DEFAULT_VALUES = {"batch_size": "1, 4, 8", "max_batch_delay_ms": "0, 100, 500", "workers": "1, 2"}
LABELS = {
    "clients": "Clients",
    "requests": "Requests of each run",
    "max_tokens": "Answer length",
    **SWEEPS,
}


def show_experiments(config: ServerConfig) -> None:
    """Draws the form, the progress of a running experiment, and the measurements."""
    background = shared_experiments(str(config.path), config)
    st.caption(
        "Simultaneous requests, measured while one setting varies. Meanwhile the chat is slower, and refused "
        "while the model is loaded again. The current settings are put back at the end, also after a failure or a "
        "cancel."
    )
    is_busy = background.is_running or is_running(config)
    _show_unrestored(config, background)
    _show_form(background, is_disabled=is_busy)
    every = PROGRESS_REFRESH_SECONDS if is_busy else IDLE_REFRESH_SECONDS
    st.fragment(_show_progress, run_every=every, key="experiment_watch")(config, background, is_busy)
    if background.problem and not is_busy:
        st.error(str(background.problem), icon=":material/error:")
    show_results(config)


@st.cache_resource
def shared_experiments(path: str, _config: ServerConfig) -> BackgroundExperiments:
    """All pages of a server share it."""
    return BackgroundExperiments(_config)


def _show_unrestored(config: ServerConfig, background: BackgroundExperiments) -> None:
    try:
        setup = unrestored_setup(config)
    except TorchServeError as error:
        st.error(str(error), icon=":material/error:")
        return
    if setup is None:
        return
    st.warning(
        f"An experiment ended without putting the server's settings back. Before it, the model served with {setup}.",
        icon=":material/history:",
    )
    with st.container(horizontal=True):
        st.button("Put back", key="experiment_put_back", type="primary", on_click=background.restore_setup)
        st.button("Keep the current settings", key="experiment_forget", on_click=discard_restore_note, args=(config,))


def _show_form(background: BackgroundExperiments, is_disabled: bool) -> None:
    options: dict[str, Any] = {"persist_state": "session", "disabled": is_disabled}
    left, right = st.columns(2)
    sweep = left.selectbox(
        "Vary",
        SWEEP_CHOICES,
        key="experiment_sweep",
        format_func=SWEEP_CHOICES.__getitem__,
        help="The server's setting to try several values of. Everything else stays as it is now.",
        **options,
    )
    values = ""
    if sweep == "batching":
        values = ", ".join(BATCHINGS)
        right.text_input("Values", values, key="experiment_values_batching", disabled=True, help="With one worker.")
    elif sweep != NO_SWEEP:
        values = right.text_input(
            "Values",
            DEFAULT_VALUES[sweep],
            key=f"experiment_values_{sweep}",
            help=f"Up to {MAX_VALUES}, with commas between them. For each of them the model is loaded again.",
            **options,
        )
    left, right = st.columns(2)
    prompts = left.selectbox(
        "Prompts", PROMPT_SETS, key="experiment_prompts", format_func=PROMPT_SETS.__getitem__, **options
    )
    clients = right.text_input(
        "Clients",
        "8",
        key="experiment_clients",
        help="People who send requests at once: each sends the next request when the last one is answered. "
        "Several numbers, like 1, 4, 8, are tried one after the other.",
        **options,
    )
    left, right = st.columns(2)
    requests = left.number_input(
        LABELS["requests"], *_bounds("requests"), 16, key="experiment_requests", help="Of all clients.", **options
    )
    max_tokens = right.number_input(
        "Answer length, tokens",
        *_bounds("max_tokens"),
        32,
        key="experiment_max_tokens",
        help="Every answer has exactly this length, so that runs can be compared.",
        **options,
    )
    plan = None
    try:
        plan = Plan.from_texts(clients, requests, prompts, max_tokens, "" if sweep == NO_SWEEP else sweep, values)
        st.caption(_effort(plan))
    except InvalidParameter as error:
        st.error(f"{LABELS.get(error.name, error.name)}: {error.problem}.", icon=":material/error:")
    st.button(
        "Start experiment",
        key="experiment_start",
        type="primary",
        disabled=is_disabled or plan is None,
        on_click=background.start,
        args=(plan,),
    )


def _bounds(name: str) -> tuple[int, int]:
    return int(PLAN_BOUNDS[name].low), int(PLAN_BOUNDS[name].high)


def _effort(plan: Plan) -> str:
    requests = plan.runs * plan.requests
    loads = f" The model is loaded up to {len(plan.values) + 1} times." if plan.sweep else ""
    tokens = requests * plan.max_tokens
    return f"{counted(plan.runs, 'run')}, {counted(requests, 'request')}, {tokens:,} tokens to generate.{loads}"


def _show_progress(config: ServerConfig, background: BackgroundExperiments, was_busy: bool) -> None:
    """Redraws the whole page when an experiment has started or ended."""
    if (background.is_running or is_running(config)) != was_busy:
        st.rerun()
    if not was_busy:
        return
    if not background.is_running:
        st.info("Another program runs an experiment with this server.", icon=":material/hourglass_top:")
        return
    progress = background.progress
    answered = progress.answered / progress.requests if progress and progress.requests else 0.0
    st.progress(answered, _progress_text(progress, background.is_cancelled))
    st.button("Cancel", key="experiment_cancel", on_click=background.cancel, disabled=not background.can_cancel)


def _progress_text(progress: ExperimentProgress | None, is_cancelled: bool) -> str:
    parts = ["Cancelled"] if is_cancelled else []
    parts.append(progress.activity if progress else "Preparing")
    if progress and progress.requests and not is_cancelled:
        parts.append(f"{progress.answered:,} of {progress.requests:,} requests answered")
        if progress.seconds_left is not None:
            parts.append(f"about {duration(progress.seconds_left)} left")
    return " · ".join(parts)
