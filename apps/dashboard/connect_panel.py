"""How other programs reach the model: the inference key, a command that prints it, and a snippet for OpenAI's client.

The browser gets the key only after "Show key", and for a minute. The management key is never on the page: clients do
not need it, and with it a program can run its own code on this machine.
"""

import shlex
import time
from datetime import UTC, datetime

import streamlit as st

from apps.dashboard.wording import duration
from apps.shared.copy_button import draw_copy_button
from torchserve_client.config import PROJECT, ServerConfig, TorchServeError
from torchserve_client.http import MODEL_NAME, MODEL_VERSION
from torchserve_client.keys import Keys
from torchserve_client.management import ManagementClient

REFRESH_SECONDS = 10
SHOWN_SECONDS = 60.0  # then the page has to be asked again
YEAR_SECONDS = 365 * 24 * 3600.0

SNIPPET = """from openai import OpenAI

client = OpenAI(
    base_url="{base_url}",
    api_key="{key}",
)
answer = client.chat.completions.create(
    model="{model}",
    messages=[{{"role": "user", "content": "What is the closest star to Earth?"}}],
    max_tokens=60,
)
print(answer.choices[0].message.content)
"""
ERRORS = {
    ("400", "InvalidKeyException"): "The key is missing, wrong or expired",
    ("404", "ModelNotFoundException"): "The model is not registered",
    ("503", "ServiceUnavailableException"): "No worker is ready, or the queue is full",
}
ERRORS_NOTE = (
    'Their body is `{"code", "type", "message"}`, without OpenAI\'s `error`. For clients that need OpenAI\'s errors, '
    "`make front` starts a front at `http://127.0.0.1:8000/v1`: it answers a wrong key with 401 and an `error` object."
)


def show_connect(config: ServerConfig) -> None:
    """Draws the key and the snippets, and refreshes them: a restarted TorchServe has another key."""
    st.fragment(_show, run_every=REFRESH_SECONDS, key="connect")(config)


def _show(config: ServerConfig) -> None:
    try:
        keys = Keys(config, "inference")
        key = keys.current() or "none"
        expires = keys.expires() if config.needs_token else None
        model = ManagementClient(config).describe()
    except TorchServeError as error:
        st.info(str(error), icon=":material/key_off:")
        return
    if config.needs_token:
        st.markdown(f"**Inference key** · clients send it with each request{_validity(expires)}")
        with st.container(horizontal=True, vertical_alignment="center", key="key_row"):
            st.code(_masked(key), language=None, width="content")
            if _is_shown():
                draw_copy_button(key, key="copy_key", label="Copy the inference key")
            else:
                st.button("Show key", key="show_key", on_click=_show_key, help="For a minute, with buttons that copy")
        st.markdown("**In a terminal** · in the project's folder, this prints the key")
        st.code(key_command(config, "torchserve_client.keys"), language="bash", wrap_lines=True)
    else:
        st.caption("TorchServe needs no key: disable_token_authorization is true in config.properties.")
    version = model.version if model else MODEL_VERSION
    base_url = f"{config.inference_url}/predictions/{MODEL_NAME}/{version}/v1"
    show_first = "press Show key and " if config.needs_token and not _is_shown() else ""
    st.markdown(f"**OpenAI's client** · `pip install openai`, then {show_first}paste this")
    shown_key = _masked(key) if config.needs_token else key
    snippet = SNIPPET.format(base_url=base_url, key=shown_key, model=MODEL_NAME)
    st.code(snippet, language="python", wrap_lines=True)
    snippet = SNIPPET.format(base_url=base_url, key=key, model=MODEL_NAME)
    if _is_shown():
        draw_copy_button(snippet, key="copy_snippet", label="Copy the snippet with the key")
    elif not config.needs_token:
        draw_copy_button(snippet, key="copy_open_snippet", label="Copy the snippet")
    st.markdown("**Errors of TorchServe itself** · before the model's code sees a request")
    rows = [{"Status": status, "When": when, "Type": kind} for (status, kind), when in ERRORS.items()]
    st.table(rows, hide_index=True)
    st.caption(ERRORS_NOTE)


def key_command(config: ServerConfig, module: str) -> str:
    """Runs `module`, which prints a key. Names the configuration if it is not the project's own."""
    command = f".venv/bin/python -m {module}"
    if config.path == PROJECT / "config.properties":
        return command
    return f"TS_CONFIG_FILE={shlex.quote(str(config.path))} {command}"


def _validity(expires: datetime | None) -> str:
    if expires is None:
        return ""
    seconds = (expires - datetime.now(UTC)).total_seconds()
    if seconds > YEAR_SECONDS:
        return " · valid until TorchServe stops"
    return f" · valid for {duration(seconds)}, then a new one replaces it"


def _masked(key: str) -> str:
    """The key, or a dot for each of its characters while the page does not show it."""
    return key if _is_shown() else "•" * len(key)


def _show_key() -> None:
    """Callback."""
    st.session_state.key_shown_until = time.monotonic() + SHOWN_SECONDS


def _is_shown() -> bool:
    return time.monotonic() < float(st.session_state.get("key_shown_until", 0.0))
