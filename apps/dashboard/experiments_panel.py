"""The experiments on the server app's page: choose, watch, compare, take away.

The page only asks and draws: an experiment runs in a thread of the app (experiments/background.py), whichever page is
open, and what it has measured is in files. So a reload or a second tab shows the same.
"""

from __future__ import annotations

import streamlit as st

from apps.dashboard.experiment_results_panel import show_results
from experiments.background import Background
from experiments.prompts import PROMPT_SETS
from experiments.records import BATCHINGS, MAX_VALUES, PLAN_BOUNDS, SWEEPS, Plan, values_from
from experiments.restore import forget, is_running, left_behind
from experiments.run import Progress
from llama_cpp_worker.sampling_params import InvalidParameter
from torchserve_client.config import ServerConfig, TorchServeError

WATCH_SECONDS = 1  # while an experiment runs
LOOK_SECONDS = 5  # whether another page or program has started one

AS_IT_IS = "Nothing"
VARIED = {**SWEEPS, AS_IT_IS: AS_IT_IS}
VALUES = {"batch_size": "1, 4, 8", "max_batch_delay_ms": "0, 100, 500", "workers": "1, 2"}
LABELS = {
    "clients": "Clients",
    "requests": "Requests of each run",
    "max_tokens": "Answer length",
    **SWEEPS,
}


def show_experiments(config: ServerConfig) -> None:
    """The whole of it: the form or the progress, and what was measured."""
    background = _background(str(config.path), config)
    st.caption(
        "Simultaneous requests, measured while one setting varies. Meanwhile the chat is slower, and refused "
        "while the model is loaded again. The current settings are put back at the end, also after a failure or a "
        "cancel."
    )
    is_busy = background.is_running or is_running(config)
    _show_left_behind(config, background)
    _show_form(background, is_disabled=is_busy)
    watch = st.fragment(_watch, run_every=WATCH_SECONDS if is_busy else LOOK_SECONDS, key="experiment_watch")
    watch(config, background, is_busy)
    if background.problem and not is_busy:
        st.error(str(background.problem), icon=":material/error:")
    show_results(config)


@st.cache_resource
def _background(path: str, _config: ServerConfig) -> Background:
    """One for each server, for all pages."""
    return Background(_config)


def _show_left_behind(config: ServerConfig, background: Background) -> None:
    try:
        setup = left_behind(config)
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
        st.button("Put back", key="experiment_put_back", type="primary", on_click=background.put_back)
        st.button("Keep the current settings", key="experiment_forget", on_click=forget, args=(config,))


# What to do, and its progress.


def _show_form(background: Background, is_disabled: bool) -> None:
    left, right = st.columns(2)
    sweep = left.selectbox(
        "Vary",
        VARIED,
        key="experiment_sweep",
        persist_state="session",
        format_func=VARIED.__getitem__,
        disabled=is_disabled,
        help="The server's setting to try several values of. Everything else stays as it is now.",
    )
    values = ""
    if sweep == "batching":
        values = ", ".join(BATCHINGS)
        right.text_input("Values", values, key="experiment_values_batching", disabled=True, help="With one worker.")
    elif sweep != AS_IT_IS:
        values = right.text_input(
            "Values",
            VALUES[sweep],
            key=f"experiment_values_{sweep}",
            persist_state="session",
            disabled=is_disabled,
            help=f"Up to {MAX_VALUES}, with commas between them. For each of them the model is loaded again.",
        )
    left, right = st.columns(2)
    prompts = left.selectbox(
        "Prompts",
        PROMPT_SETS,
        key="experiment_prompts",
        persist_state="session",
        format_func=PROMPT_SETS.__getitem__,
        disabled=is_disabled,
    )
    clients = right.text_input(
        "Clients",
        "8",
        key="experiment_clients",
        persist_state="session",
        disabled=is_disabled,
        help="People who ask at once: each sends its next request when the last one is answered. "
        "Several numbers, like 1, 4, 8, are tried one after the other.",
    )
    left, right = st.columns(2)
    requests = left.number_input(
        LABELS["requests"],
        int(PLAN_BOUNDS["requests"].low),
        int(PLAN_BOUNDS["requests"].high),
        16,
        key="experiment_requests",
        persist_state="session",
        disabled=is_disabled,
        help="All clients' together.",
    )
    max_tokens = right.number_input(
        "Answer length, tokens",
        int(PLAN_BOUNDS["max_tokens"].low),
        int(PLAN_BOUNDS["max_tokens"].high),
        32,
        key="experiment_max_tokens",
        persist_state="session",
        disabled=is_disabled,
        help="Every answer has exactly that many, so that runs can be compared.",
    )
    plan = None
    try:
        plan = _plan("" if sweep == AS_IT_IS else sweep, values, clients, requests, prompts, max_tokens)
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


def _plan(sweep: str, values: str, clients: str, requests: int, prompts: str, max_tokens: int) -> Plan:
    plan = Plan(
        clients=tuple(int(number) for number in values_from("clients", clients)),
        requests=requests,
        prompts=prompts,
        max_tokens=max_tokens,
        sweep=sweep or None,
        values=values_from(sweep, values) if sweep else (),
    )
    plan.check()
    return plan


def _effort(plan: Plan) -> str:
    requests = plan.runs * plan.requests
    loads = f" The model is loaded up to {len(plan.values) + 1} times." if plan.sweep else ""
    runs = "1 run" if plan.runs == 1 else f"{plan.runs} runs"
    return f"{runs}, {requests:,} requests, {requests * plan.max_tokens:,} tokens to write.{loads}"


def _watch(config: ServerConfig, background: Background, was_busy: bool) -> None:
    if (background.is_running or is_running(config)) != was_busy:
        st.rerun()
    if not was_busy:
        return
    if not background.is_running:
        st.info("Another program runs an experiment with this server.", icon=":material/hourglass_top:")
        return
    progress = background.progress
    answered = progress.answered / progress.requests if progress and progress.requests else 0.0
    st.progress(answered, _described(progress, background.is_cancelled))
    st.button("Cancel", key="experiment_cancel", on_click=background.cancel, disabled=not background.can_cancel)


def _described(progress: Progress | None, is_cancelled: bool) -> str:
    parts = ["Cancelled"] if is_cancelled else []
    parts.append(progress.doing if progress else "Preparing")
    if progress and progress.requests and not is_cancelled:
        parts.append(f"{progress.answered:,} of {progress.requests:,} requests answered")
        if progress.seconds_left is not None:
            parts.append(f"about {_duration(progress.seconds_left)} left")
    return " · ".join(parts)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
