"""The sidebar's settings: sampling parameters, presets, system prompt, prompt format, number of answers.

The URL has the numbers among them, and nothing that changes which text is sent or where: a link must not set that, and
texts must not be seen in one. A change takes effect in the next script run, so that it aborts no run that streams an
answer.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import streamlit as st

from apps.chat.parallel_panel import MOST_ANSWERS
from apps.chat.saved_settings_panel import draw_saved_settings
from apps.chat.store import ChatStore
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
_DEFAULTS: dict[str, Any] = {name: getattr(DEFAULTS, name) for name in LIMITS if name != "answers"} | {
    "answers": 1,
    "stop": "",
    "json_schema": "",
    "system_prompt": "",
    "prompt_format": "chat",
}
STORED = tuple(_DEFAULTS)  # by a conversation; the widgets' keys
LONGEST_SCHEMA = 100_000  # characters


def current_settings() -> ChatSettings:
    """The settings that the sidebar shows, also before it is drawn; its defaults in a tab's first run.

    A combination that SamplingParams refuses is the settings' problem, which draw_settings() shows.
    """
    values = {name: st.session_state.get(name, default) for name, default in _DEFAULTS.items()}
    schema, prompt_format, answers = (values.pop(name) for name in ("json_schema", "prompt_format", "answers"))
    system_prompt = values.pop("system_prompt") or ""
    values["stop"] = [line.replace("\\n", "\n") for line in (values["stop"] or "").splitlines() if line]
    try:
        params, problem = SamplingParams(**values, response_format=response_format_of(schema or "")), ""
    except InvalidParameter as error:
        params, problem = DEFAULTS, str(error)
    return ChatSettings(params, prompt_format == "raw", system_prompt, answers, settings_to_store(), problem)


def draw_settings(store: ChatStore, clear_chat_history: Callable[[], None], problem: str) -> None:
    """problem: what is wrong with the current settings; it stands below its fields."""
    st.header("Model parameters", anchor=False)
    _slider("temperature", "Low is sober, high is wild.")
    _slider("top_p", "Only the likeliest tokens that add up to this.")
    _slider("max_tokens", "The longest answer, in tokens.", step=1)
    st.button("Clear Chat History", key="clear_chat_history", on_click=clear_chat_history)
    with st.container(gap=None):
        st.caption("Presets")
        with st.container(horizontal=True, gap="xsmall"):
            for name, values in PRESETS.items():
                st.button(name, key=f"preset_{name.lower()}", on_click=recall, args=(values,), help=_described(values))
    _lines("System prompt", "system_prompt", "Not used with a raw prompt.", "Who the model is and how it answers")
    draw_saved_settings(store, settings_to_store, recall)
    with st.expander("More parameters"):
        _draw_more_parameters()
        if problem:
            st.error(problem)
    st.slider("Simultaneous answers", 1, MOST_ANSWERS, 1, key="answers", help=_ANSWERS_HELP, **IN_URL)
    captions = ["the model's chat template", "only your text, which the model continues"]
    st.radio("Prompt format", PROMPT_FORMATS, captions=captions, key="prompt_format", **NEXT_RUN)


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


def response_format_of(schema: str) -> dict[str, Any] | None:
    """OpenAI's response_format for JSON of this schema, which a person has typed; None for an empty text.

    The server checks what the schema says. Raises InvalidParameter.
    """
    if not schema.strip():
        return None
    name = "JSON schema"
    if len(schema) > LONGEST_SCHEMA:
        raise InvalidParameter(name, f"has more than {LONGEST_SCHEMA:,} characters")
    try:
        parsed = json.loads(schema, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise InvalidParameter(name, "is nested too deeply") from error
    except json.JSONDecodeError as error:
        problem = f"is not JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        raise InvalidParameter(name, problem) from error
    except ValueError as error:  # a number with thousands of digits, or NaN
        raise InvalidParameter(name, "has a number that JSON does not have") from error
    if not isinstance(parsed, dict):
        raise InvalidParameter(name, 'must be an object, such as {"type": "object"}')
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": parsed}}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _draw_more_parameters() -> None:
    _number("top_k", "Only this many of the likeliest tokens; 0: all.", 1)
    _slider("min_p", "Only tokens this likely beside the likeliest.")
    _number("repeat_penalty", "Above 1, recent tokens become less likely.", 0.05)
    _number("seed", "The same seed repeats an answer.", 1, "random")
    _lines("stop", "stop", "Strings that end the answer; write a line break as `\\n`.", "one per line")
    about = "The answer is JSON that follows this schema. Empty: any text."
    _lines("JSON schema", "json_schema", about, '{"type": "object", …}')


def _slider(name: str, about: str, step: float = 0.01) -> None:
    low, high = _ends(name)
    st.slider(name, low, high, getattr(DEFAULTS, name), step, key=name, help=about, **IN_URL)


def _number(name: str, about: str, step: float, hint: str | None = None) -> None:
    low, high = _ends(name)
    value = getattr(DEFAULTS, name)
    st.number_input(name, low, high, value, step, key=name, help=about, placeholder=hint, **IN_URL)


def _ends(name: str) -> tuple[Any, Any]:
    limits = LIMITS[name]
    return limits.kind(limits.low), limits.kind(limits.high)


def _lines(label: str, key: str, about: str, hint: str) -> None:
    st.text_area(label, key=key, help=about, placeholder=hint, height=68, **NEXT_RUN)


def _described(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
