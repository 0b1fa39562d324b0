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
from torchserve_client.model_description import ModelDescription
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


def test_tokens_are_counted_by_the_worker_and_unknown_without_one(scripted: tuple[Server, ServerConfig]) -> None:
    server, config = scripted
    client = InferenceClient(config)
    assert client.count_tokens("one two three") == 3  # the scripted server counts words
    server.valid_key = "another-key"
    assert client.count_tokens("one two three") is None


def test_models_name_is_its_file_or_else_its_id(scripted: tuple[Server, ServerConfig]) -> None:
    client = InferenceClient(scripted[1])
    assert (client.name, client.model) == ("TorchServe", "")
    client.state()
    assert client.model == "llamacpp"
    assert ModelDescription("llamacpp", {"file": "Llama-2-7b.Q4_0.gguf"}).name == "Llama-2-7b.Q4_0"


@pytest.mark.parametrize("size", [0, -1, True, 2.5, 10**30, "4096", None])
def test_a_size_that_no_window_has_is_not_known(size: object) -> None:
    assert ModelDescription("m", {"context_window": size, "n_ctx": 512}).context_window == 512
    assert ModelDescription("m", {"n_ctx": size}).context_window is None


def test_description_is_queried_once_for_every_version(scripted: tuple[Server, ServerConfig]) -> None:
    server, config = scripted
    client = InferenceClient(config)

    assert [client.state(), client.state(), client.context_window] == ["ready", "ready", 4096]
    assert server.descriptions == 1
    server.context_window, server.chat_template = 2048, "raw"
    wait_until(lambda: client.state() == "ready" and client.context_window == 2048, what="the new version")
    assert (server.descriptions, client.has_chat_template) == (2, False)
