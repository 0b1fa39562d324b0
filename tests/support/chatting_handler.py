"""A handler that answers chats without a model, one millisecond for each token, for tests of everything around it.

It refuses to load with a batch size from the number in the file `refuse_batch_size` on, which is beside
config.properties. It fails every chat while there is a file `fail_chats`.
"""

from pathlib import Path

from tests.support.serving import write_echo_archives
from torchserve_client.config import ServerConfig


def write_chatting_archives(config: ServerConfig) -> Path:
    """Writes both archives. Returns the file that makes loading fail."""
    return write_echo_archives(config, _HANDLER)


def fail_file(config: ServerConfig) -> Path:
    return config.home / "fail_chats"


_HANDLER = """
import json
import time
from pathlib import Path

REFUSE = Path("REFUSE_FILE")


class ChattingHandler:
    def initialize(self, context):
        batch_size = context.system_properties["batch_size"]
        if REFUSE.exists() and batch_size >= int(REFUSE.read_text()):
            raise ValueError(f"batch size {batch_size} does not fit in memory")

    def handle(self, requests, context):
        bodies = [request.get("body") or {} for request in requests]
        time.sleep(max(body.get("max_tokens", 0) for body in bodies) / 1000)
        return [self.answer(body, context, i) for i, body in enumerate(bodies)]

    def answer(self, body, context, i):
        headers = context.get_all_request_header(i)
        if (headers.get("url_path") or headers.get("X-Api-Path", "")).endswith("models"):
            context.set_response_content_type(i, "application/json")
            return json.dumps({"object": "list", "data": [{"id": "chatting"}]})
        if REFUSE.with_name("fail_chats").exists():
            context.set_response_status(500, "Failed", i)
            return "no answer today"
        n = body["max_tokens"]
        timings = {"queue_ms": 0.0, "prompt_ms": 0.4 * n, "predicted_ms": 0.6 * n}
        events = [
            {"choices": [{"delta": {"content": "word " * n}}]},
            {"choices": [{"delta": {}, "finish_reason": "length"}], "timings": timings},
            {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": n}},
        ]
        context.set_response_content_type(i, "text/event-stream")
        return "".join(f"data: {json.dumps(event)}\\n\\n" for event in events) + "data: [DONE]\\n\\n"
"""
