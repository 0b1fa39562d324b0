"""What the loaded model reports about itself, as a sentence. Knows nothing of Streamlit and sends no request."""

from typing import Any


def describe_model(meta: dict[str, Any] | None) -> str:
    """`meta` is from the answer of `/v1/models`; None if the model has not answered yet."""
    if meta is None:
        return "Waiting for the model to report where its layers are."
    layers = where_layers_are(meta) or "The model does not report where its layers are"
    if meta.get("chat_template") != "raw":
        return f"{layers}."
    return f"{layers}. It has no chat template: conversations are sent to it as Question: … Answer: …"


def where_layers_are(meta: dict[str, Any]) -> str:
    """As llama.cpp reported it at the load, such as "33 of 33 layers on Metal (Apple M1)"; "" if it is unknown."""
    devices, total = meta.get("devices") or [], meta.get("layers")
    parts = [f"{device['layers']} of {total} layers on {_device_name(device)}" for device in devices[:1]]
    parts += [f"{device['layers']} on {_device_name(device)}" for device in devices[1:]]
    return ", ".join(parts)


def _device_name(device: dict[str, Any]) -> str:
    return f"{device['kind']} ({device['description']})" if device["description"] else str(device["kind"])
