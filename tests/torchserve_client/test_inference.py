"""What the inference client sends. Its state on a real TorchServe is tested in test_management.py."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_cpp_worker.sampling_params import SamplingParams
from tests.support.scripted_server import Server, running_scripted_server
from tests.support.serving import wait_until
from torchserve_client.config import ServerConfig
from torchserve_client.inference import InferenceClient
from torchserve_client.streaming import CompletionStream

PARAMS = SamplingParams(max_tokens=5, seed=1, stop=("END",))


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[tuple[Server, ServerConfig]]:
    with running_scripted_server(tmp_path) as pair:
        yield pair


@pytest.mark.parametrize(
    ("send", "path", "question"),
    [
        pytest.param(
            lambda client: client.chat([{"role": "user", "content": "q"}], PARAMS),
            "chat/completions",
            {"messages": [{"role": "user", "content": "q"}]},
            id="chat",
        ),
        pytest.param(lambda client: client.complete("q", PARAMS), "completions", {"prompt": "q"}, id="complete"),
    ],
)
def test_request_has_prompt_parameters_and_wants_usage_and_progress(
    scripted: tuple[Server, ServerConfig],
    send: Callable[[InferenceClient], CompletionStream],
    path: str,
    question: dict[str, Any],
) -> None:
    server, config = scripted

    text = "".join(event.text for event in send(InferenceClient(config)))

    reports = {"stream_options": {"include_usage": True}, "return_progress": True, "timings_per_token": True}
    assert server.questions == [(path, {**question, **PARAMS.to_request(), "stream": True, **reports})]
    assert text == "It is Proxima Centauri."


def test_description_is_queried_once_for_every_version(scripted: tuple[Server, ServerConfig]) -> None:
    server, config = scripted
    client = InferenceClient(config)

    assert [client.state(), client.state(), client.context_window] == ["ready", "ready", 4096]
    assert server.descriptions == 1
    server.context_window, server.chat_template = 2048, "raw"
    wait_until(lambda: client.state() == "ready" and client.context_window == 2048, what="the new version")
    assert (server.descriptions, client.has_chat_template) == (2, False)
