"""What the chat says of its server: each state as a sentence with the next step, and the hint in the composer."""

import streamlit as st

from apps.chat.openai_client import OpenAIClient
from apps.chat.turns import ChatServer

STATES = {  # the sentence of the sidebar, and the hint in the chat input
    "down": ("TorchServe is not running. Press Start Server in the server app.", "TorchServe is not running"),
    "starting": ("TorchServe is starting. This page goes on by itself.", "TorchServe is starting"),
    "unhealthy": (
        "TorchServe runs, but it does not answer or refuses this app's key. Stop and start it in the server app.",
        "TorchServe does not answer",
    ),
    "no model": ("No model is registered. Press Register Llama2 in the server app.", "No model is registered"),
    "loading": ("The model is loading. This page goes on by itself.", "The model is loading"),
    "ready": ("Proceed to entering your prompt message!", "Your message"),
}
OTHER_STATES = STATES | {  # of a server that is not TorchServe
    "down": ("No server answers at this base URL. Check it under Server, or start that server.", "No server answers"),
    "refused": ("The server refuses the key. Type the right one under Server.", "The server refuses the key"),
    "not openai": (
        "The server at this base URL does not list models as OpenAI's API does. Check it under Server.",
        "The server does not speak OpenAI's API",
    ),
}


def states_of(server: ChatServer) -> dict[str, tuple[str, str]]:
    """The sentences for this server's states."""
    return OTHER_STATES if isinstance(server, OpenAIClient) else STATES


def draw_server_state(sentence: str, state: str) -> None:
    """The server's state as a sentence with the next step."""
    if state == "ready":
        st.success(sentence, icon="👉")
    elif state in ("starting", "loading"):
        st.info(sentence, icon=":material/hourglass_top:")
    else:
        st.warning(sentence, icon=":material/power_settings_new:")
