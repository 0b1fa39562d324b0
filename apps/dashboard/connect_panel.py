"""How other programs reach the model: the inference key and a snippet for OpenAI's client.

The page shows the key only on request; the copy buttons always contain it. The management key is never on the page:
clients do not need it, and with it a program can run its own code on this machine.
"""

import json
from datetime import UTC, datetime

import streamlit as st

from apps.shared.copy_button import draw_copy_button
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.http import MODEL_NAME, MODEL_VERSION
from torchserve_client.keys import Keys, parse_instant
from torchserve_client.management import ManagementClient
from torchserve_client.running_server import key_file

REFRESH_SECONDS = 10

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


def show_connect(config: ServerConfig) -> None:
    """Draws the key and the snippet, and refreshes both, because the key expires."""
    if config.needs_token:
        st.toggle("Show the key", key="shows_key")
    st.fragment(_show, run_every=REFRESH_SECONDS, key="connect")(config)


def _show(config: ServerConfig) -> None:
    try:
        key = Keys(config, "inference").current() or "none"
        model = ManagementClient(config).describe()
    except TorchServeError as error:
        st.info(str(error), icon=":material/key_off:")
        return
    if config.needs_token:
        st.markdown(f"**Inference key** · clients send it with each request{_expiry(config)}")
        with st.container(horizontal=True, vertical_alignment="center", key="key_row"):
            st.code(_masked(key), language=None, width="content")
            draw_copy_button(key, key="copy_key", label="Copy the inference key")
    else:
        st.caption("TorchServe needs no key: disable_token_authorization is true in config.properties.")
    version = model.version if model else MODEL_VERSION
    base_url = f"{config.inference_url}/predictions/{MODEL_NAME}/{version}/v1"
    st.markdown("**OpenAI's client** · `pip install openai`, then paste this")
    shown_key = _masked(key) if config.needs_token else key
    st.code(SNIPPET.format(base_url=base_url, key=shown_key, model=MODEL_NAME), language="python")
    snippet = SNIPPET.format(base_url=base_url, key=key, model=MODEL_NAME)
    draw_copy_button(snippet, key="copy_snippet", label="Copy the snippet with the key")


def _expiry(config: ServerConfig) -> str:
    try:
        entry = json.loads(key_file(config).read_text())["inference"]
    except (OSError, ValueError, KeyError):  # TorchServe writes the file in place, so it may be incomplete
        return ""
    expires = parse_instant(entry.get("expiration time", ""))
    if expires is None:
        return ""
    minutes = max(0.0, (expires - datetime.now(UTC)).total_seconds() / 60)
    return f" · valid for {minutes:.0f} more minutes, then renewed"


def _masked(key: str) -> str:
    """The key, or a dot for each of its characters while the page does not show it."""
    return key if st.session_state.get("shows_key") else "•" * len(key)
