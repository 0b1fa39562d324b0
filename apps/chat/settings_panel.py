"""The sidebar's settings: sampling parameters, presets, system prompt, prompt format, how many answers, which server.

They are in the URL but for the server and its key. A change waits for the next run: it never cuts an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from apps.chat.openai_client import check_base_url
from apps.chat.turns import Settings
from llama_cpp_worker.sampling_params import BOUNDS, SamplingParams

DEFAULTS = SamplingParams(max_tokens=256)
LARGEST_MAX_TOKENS = 2048  # the slider's end; the server takes more
LEAST = 0.01  # where the mission's sliders for temperature and top_p begin
MOST_ANSWERS = 8
PRESETS = {
    "Precise": {"temperature": 0.2, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repeat_penalty": 1.0},
    "Balanced": {"temperature": 0.8, "top_p": 0.95, "top_k": 40, "min_p": 0.05, "repeat_penalty": 1.0},
    "Creative": {"temperature": 1.3, "top_p": 0.98, "top_k": 100, "min_p": 0.02, "repeat_penalty": 1.1},
}
KEPT: dict[str, Any] = {"on_change": "ignore", "bind": "query-params"}

# What a conversation remembers: widget key, and what its value must be.
REMEMBERED: dict[str, type | tuple[type, ...]] = {
    "temperature": float,
    "top_p": float,
    "max_tokens": int,
    "top_k": int,
    "min_p": float,
    "repeat_penalty": float,
    "seed": (int, type(None)),
    "stop": str,
    "system_prompt": str,
    "prompt_format": str,
    "answers": int,
}


def draw_settings() -> Settings:
    st.subheader("Model parameters", anchor=False)
    sampling = {
        "temperature": _slider("temperature", "Low is sober, high is wild.", LEAST, BOUNDS["temperature"].high),
        "top_p": _slider("top_p", "Only the likeliest tokens that add up to this.", LEAST, BOUNDS["top_p"].high),
        "max_tokens": _slider("max_tokens", "The longest answer, in tokens.", 1, LARGEST_MAX_TOKENS, 1),
    }
    with st.container(horizontal=True, gap="xsmall"):
        for name, values in PRESETS.items():
            st.button(name, key=f"preset_{name.lower()}", on_click=recall, args=(values,), help=_described(values))
    with st.expander("More parameters"):
        sampling |= _more_parameters()
        system_prompt = _lines("system prompt", "system_prompt", "Not used with a raw prompt.", "what the model is")
    st.slider("simultaneous answers", 1, MOST_ANSWERS, 1, key="answers", help=_ANSWERS_HELP, **KEPT)
    captions = ["the model's chat template", "Question: … Answer:"]
    prompt_format = st.radio("Prompt format", ["chat", "raw"], captions=captions, key="prompt_format", **KEPT)
    return Settings(prompt_format == "raw", system_prompt, sampling, int(st.session_state.answers), remembered())


def draw_server_choice() -> tuple[str, str]:
    """The base URL of another server and its key; both empty for TorchServe. The key stays in this tab's session."""
    with st.expander("Server"):
        base_url = st.text_input(
            "base URL",
            key="base_url",
            placeholder="TorchServe",
            help="Of a server that speaks OpenAI's API, such as http://127.0.0.1:8000/v1. Empty: TorchServe.",
        ).strip()
        key = st.text_input("API key", key="api_key", type="password", help="Only for another server.").strip()
        problem = check_base_url(base_url) if base_url else ""
        if problem:
            st.error(problem)
            return "", ""
    return base_url, key


def remembered() -> dict[str, Any]:
    """The settings as a conversation keeps them."""
    return {name: st.session_state[name] for name in REMEMBERED if name in st.session_state}


def recall(settings: Mapping[str, Any]) -> None:
    """Puts kept settings into the sidebar, before it is drawn; what cannot be right is left as it is."""
    for name, value in settings.items():
        is_kind = name in REMEMBERED and isinstance(value, REMEMBERED[name]) and not isinstance(value, bool)
        if is_kind and _is_possible(name, value):
            st.session_state[name] = value


_ANSWERS_HELP = (
    "How often each question is asked at once: the answers stream side by side, and show what batching does."
)


def _is_possible(name: str, value: Any) -> bool:
    """Whether the widget can show the value: an imported file may say anything."""
    if name == "prompt_format":
        return value in ("chat", "raw")
    if name == "answers":
        return 1 <= value <= MOST_ANSWERS
    if name not in BOUNDS or value is None:
        return True
    low = LEAST if name in ("temperature", "top_p") else BOUNDS[name].low
    high = LARGEST_MAX_TOKENS if name == "max_tokens" else BOUNDS[name].high
    return low <= value <= high


def _more_parameters() -> dict[str, Any]:
    stop = _lines("stop", "stop", "Strings that end the answer; write a line break as `\\n`.", "one per line")
    return {
        "top_k": _number("top_k", "Only this many of the likeliest tokens; 0: all.", 1),
        "min_p": _slider("min_p", "Only tokens this likely beside the likeliest.", 0.0, BOUNDS["min_p"].high),
        "repeat_penalty": _number("repeat_penalty", "Above 1, recent tokens become less likely.", 0.05),
        "seed": _number("seed", "The same seed repeats an answer.", 1, "random"),
        "stop": [line.replace("\\n", "\n") for line in stop.splitlines() if line],
    }


def _slider(name: str, about: str, low: float, high: float, step: float = 0.01) -> Any:
    return st.slider(name, low, high, getattr(DEFAULTS, name), step, key=name, help=about, **KEPT)


def _number(name: str, about: str, step: float, hint: str | None = None) -> Any:
    low, high = (BOUNDS[name].kind(end) for end in (BOUNDS[name].low, BOUNDS[name].high))
    value = getattr(DEFAULTS, name)
    return st.number_input(name, low, high, value, step, key=name, help=about, placeholder=hint, **KEPT)


def _lines(label: str, key: str, about: str, hint: str) -> str:
    return st.text_area(label, key=key, help=about, placeholder=hint, height=68, **KEPT) or ""


def _described(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
