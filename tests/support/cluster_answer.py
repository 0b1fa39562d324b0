"""What a cluster answers to `GET /cluster`."""

import json
from typing import Any


def node(name: str, state: str = "serving", **fields: Any) -> dict[str, Any]:
    """A node with three requests, and other `fields`."""
    load = {"requests": 3, "slots": 8, "waiting": 0, "tokens_per_second": 45.2}
    return {
        "name": name,
        "state": state,
        **load,
        "cached_share": 0.83,
        "memory_bytes": 963_000_000,
        "problem": "",
        **fields,
    }


def answer(*nodes: dict[str, Any], waiting: int = 0) -> str:
    return json.dumps({"nodes": nodes, "waiting": waiting})
