"""Which conversation a request belongs to, so that it goes to the node that has cached its prefix.

Knows the bodies of OpenAI's and Anthropic's requests. Knows no node.
"""

import hashlib
import json
from typing import Any

SESSION_HEADER = "x-session-id"


def session_key(header: str, body: bytes) -> str:
    """The header, else the body's `prompt_cache_key` (OpenAI's), else a hash of what a conversation begins with.

    "" if the body says nothing about a conversation, as in a GET. The key is a hash, so no router or log has a text.
    """
    if header:
        return _hash("header", header)
    try:
        request = json.loads(body)
        if not isinstance(request, dict):
            return ""
        key = request.get("prompt_cache_key")
        return _hash("key", key) if isinstance(key, str) and key else _hash("begin", _beginning(request))
    except (ValueError, RecursionError):
        return ""


def _beginning(request: dict[str, Any]) -> Any:
    """The system prompt and the first user message. All turns of a conversation begin with them."""
    messages = request.get("messages", request.get("input"))
    if not isinstance(messages, list):
        return messages or request.get("prompt")
    roles = [message.get("role") if isinstance(message, dict) else None for message in messages]
    n_first = roles.index("user") + 1 if "user" in roles else len(messages)
    return [request.get("system"), request.get("instructions"), messages[:n_first]]


def _hash(kind: str, value: Any) -> str:
    if value is None:
        return ""
    return hashlib.sha256(f"{kind}:{json.dumps(value)}".encode()).hexdigest()[:32]
