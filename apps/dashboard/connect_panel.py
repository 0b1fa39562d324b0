"""How other programs reach the model: the keys, masked, and a snippet for OpenAI's client, ready to paste.

The page shows a key only when asked to; the copy buttons have it either way.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import get_args

import streamlit as st

from apps.shared.copy_button import draw_copy_button
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.http import MODEL_NAME, MODEL_VERSION, Keys, Kind, parse_instant
from torchserve_client.management import ManagementClient
from torchserve_client.process import key_file

REFRESH_SECONDS = 10
PURPOSES: dict[Kind, str] = {
    "inference": "asks the model; this is the one for clients",
    "management": "registers, changes and ends the model; keep it to yourself",
}

SNIPPET = """from openai import OpenAI

client = OpenAI(
    base_url="{base_url}",
    api_key="{key}",
)
answer = client.chat.completions.create(
    model="llama-cpp",
    messages=[{{"role": "user", "content": "What is the closest star to Earth?"}}],
    max_tokens=60,
)
print(answer.choices[0].message.content)
"""


def show_connect(config: ServerConfig) -> None:
    """Address, keys and snippet; looks for newer keys by itself."""
    st.toggle("Show the keys", key="shows_keys")
    st.fragment(_show, run_every=REFRESH_SECONDS, key="connect")(config)


def _show(config: ServerConfig) -> None:
    try:
        keys = {kind: _key(config, kind) for kind in get_args(Kind)}
        model = ManagementClient(config).describe()
    except TorchServeError as error:
        st.info(str(error), icon=":material/key_off:")
        return
    if config.needs_token:
        for kind, key in keys.items():
            _show_key(config, kind, key)
    else:
        st.caption("TorchServe takes no keys: disable_token_authorization is true in config.properties.")
    _show_snippet(config, model.version if model else MODEL_VERSION, keys["inference"])


def _key(config: ServerConfig, kind: Kind) -> str:
    """Renewed if it is about to expire; a placeholder where the server takes none."""
    return Keys(config, kind).use(lambda key: key) or "none"


def _show_key(config: ServerConfig, kind: Kind, key: str) -> None:
    st.markdown(f"**{kind.capitalize()} key** · {PURPOSES[kind]}{_expiry(config, kind)}")
    with st.container(horizontal=True, vertical_alignment="center", key=f"{kind}_row"):
        st.code(_shown(key), language=None, width="content")
        draw_copy_button(key, key=f"copy_{kind}", label=f"Copy the {kind} key")


def _expiry(config: ServerConfig, kind: Kind) -> str:
    try:
        entry = json.loads(key_file(config).read_text())[kind]
    except (OSError, ValueError, KeyError):  # being written just now
        return ""
    expires = parse_instant(entry.get("expiration time", ""))
    if expires is None:
        return ""
    minutes = max(0.0, (expires - datetime.now(timezone.utc)).total_seconds() / 60)
    return f" · valid for {minutes:.0f} more minutes, then renewed"


def _show_snippet(config: ServerConfig, version: str, key: str) -> None:
    base_url = f"{config.inference_url}/predictions/{MODEL_NAME}/{version}/v1"
    st.markdown("**OpenAI's client** · `pip install openai`, then paste this")
    st.code(SNIPPET.format(base_url=base_url, key=_shown(key) if config.needs_token else key), language="python")
    whole = SNIPPET.format(base_url=base_url, key=key)
    draw_copy_button(whole, key="copy_snippet", label="Copy the snippet with the key")


def _shown(key: str) -> str:
    """The key, or as many dots where the page is not to show it."""
    if st.session_state.get("shows_keys"):
        return key
    return "•" * len(key)
