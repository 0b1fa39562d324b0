"""The sidebar's settings: sampling parameters, presets, system prompt, prompt format, number of answers, server.

The URL has them too, except texts that must not come from a link or be seen in one: the system prompt, the server and
its key. A change takes effect in the next script run, so that it does not abort a run that streams an answer.
"""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from apps.chat.openai_client import problem_of_base_url, problem_of_key
from apps.chat.parallel_panel import MOST_ANSWERS
from apps.chat.turns import ChatSettings
from llama_cpp_worker.sampling_params import BOUNDS, Bounds, InvalidParameter, SamplingParams

DEFAULTS = SamplingParams(max_tokens=256)
LARGEST_MAX_TOKENS = 2048  # the slider's end; the server accepts more
SMALLEST = 0.01  # the start of the sliders for temperature and top_p
PRESETS = {
    "Precise": {"temperature": 0.2, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repeat_penalty": 1.0},
    "Balanced": {"temperature": 0.8, "top_p": 0.95, "top_k": 40, "min_p": 0.05, "repeat_penalty": 1.0},
    "Creative": {"temperature": 1.3, "top_p": 0.98, "top_k": 100, "min_p": 0.02, "repeat_penalty": 1.1},
}
NEXT_RUN: dict[str, Any] = {"on_change": "ignore"}
IN_URL: dict[str, Any] = {**NEXT_RUN, "bind": "query-params"}

LIMITS = {name: BOUNDS[name] for name in ("top_k", "min_p", "repeat_penalty")} | {
    "temperature": Bounds(float, SMALLEST, BOUNDS["temperature"].high),
    "top_p": Bounds(float, SMALLEST, BOUNDS["top_p"].high),
    "max_tokens": Bounds(int, 1, LARGEST_MAX_TOKENS),
    "seed": Bounds(int, 0, 2**53 - 1),  # a number input of a browser has no more digits
    "answers": Bounds(int, 1, MOST_ANSWERS),
}
PROMPT_FORMATS = ("chat", "raw")
STORED = (*LIMITS, "stop", "system_prompt", "prompt_format")  # by a conversation; the keys of the widgets


def draw_settings() -> ChatSettings:
    """Reads all settings. A combination that SamplingParams refuses is explained below its fields."""
    st.subheader("Model parameters", anchor=False)
    sampling = {
        "temperature": _slider("temperature", "Low is sober, high is wild."),
        "top_p": _slider("top_p", "Only the likeliest tokens that add up to this."),
        "max_tokens": _slider("max_tokens", "The longest answer, in tokens.", step=1),
    }
    with st.container(horizontal=True, gap="xsmall"):
        for name, values in PRESETS.items():
            st.button(name, key=f"preset_{name.lower()}", on_click=recall, args=(values,), help=_described(values))
    with st.expander("More parameters"):
        params, problem = _checked(sampling | _more_parameters())
        about = "Not used with a raw prompt."
        system_prompt = _lines("system prompt", "system_prompt", about, "what the model is", NEXT_RUN)
    answers = st.slider("simultaneous answers", 1, MOST_ANSWERS, 1, key="answers", help=_ANSWERS_HELP, **IN_URL)
    captions = ["the model's chat template", "Question: … Answer:"]
    prompt_format = st.radio("Prompt format", PROMPT_FORMATS, captions=captions, key="prompt_format", **IN_URL)
    return ChatSettings(params, prompt_format == "raw", system_prompt, answers, settings_to_store(), problem)


def draw_server_choice() -> tuple[str, str]:
    """The base URL of another server and its key; both empty for TorchServe. The key is only in this tab's session."""
    with st.expander("Server"):
        base_url = st.text_input(
            "base URL",
            key="base_url",
            placeholder="TorchServe",
            help="Of a server that speaks OpenAI's API, such as http://127.0.0.1:8000/v1. Empty: TorchServe.",
        ).strip()
        key = st.text_input("API key", key="api_key", type="password", help="Only for another server.").strip()
        if base_url and (problem := problem_of_base_url(base_url) or problem_of_key(key)):
            st.error(problem)
            return "", ""
    return base_url, key


def settings_to_store() -> dict[str, Any]:
    """The settings as a conversation stores them."""
    return {name: st.session_state[name] for name in STORED if name in st.session_state}


def recall(settings: Mapping[str, Any]) -> None:
    """Puts stored settings into the sidebar, before it is drawn; values that the widgets cannot show are ignored."""
    for name, value in settings.items():
        if name in STORED and _is_possible(name, value):
            st.session_state[name] = value


_ANSWERS_HELP = "How many answers each question gets at once: they stream side by side, and show what batching does."


def _is_possible(name: str, value: Any) -> bool:
    """Whether the widget can show the value: an imported file may contain any value."""
    if name == "prompt_format":
        return value in PROMPT_FORMATS
    if name not in LIMITS:
        return isinstance(value, str)
    low, high = _ends(name)
    is_number = type(value) is type(low) and low <= value <= high
    return is_number or (name == "seed" and value is None)


def _checked(sampling: Mapping[str, Any]) -> tuple[SamplingParams, str]:
    """The parameters and "", or the defaults and the problem, which is shown here."""
    try:
        return SamplingParams(**sampling), ""
    except InvalidParameter as error:
        st.error(str(error))
        return DEFAULTS, str(error)


def _more_parameters() -> dict[str, Any]:
    stop = _lines("stop", "stop", "Strings that end the answer; write a line break as `\\n`.", "one per line", IN_URL)
    return {
        "top_k": _number("top_k", "Only this many of the likeliest tokens; 0: all.", 1),
        "min_p": _slider("min_p", "Only tokens this likely beside the likeliest."),
        "repeat_penalty": _number("repeat_penalty", "Above 1, recent tokens become less likely.", 0.05),
        "seed": _number("seed", "The same seed repeats an answer.", 1, "random"),
        "stop": [line.replace("\\n", "\n") for line in stop.splitlines() if line],
    }


def _slider(name: str, about: str, step: float = 0.01) -> Any:
    low, high = _ends(name)
    return st.slider(name, low, high, getattr(DEFAULTS, name), step, key=name, help=about, **IN_URL)


def _number(name: str, about: str, step: float, hint: str | None = None) -> Any:
    low, high = _ends(name)
    value = getattr(DEFAULTS, name)
    return st.number_input(name, low, high, value, step, key=name, help=about, placeholder=hint, **IN_URL)


def _ends(name: str) -> tuple[Any, Any]:
    limits = LIMITS[name]
    return limits.kind(limits.low), limits.kind(limits.high)


def _lines(label: str, key: str, about: str, hint: str, binding: Mapping[str, Any]) -> str:
    return st.text_area(label, key=key, help=about, placeholder=hint, height=68, **binding) or ""


def _described(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
