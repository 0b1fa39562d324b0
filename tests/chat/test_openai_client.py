"""Another server: the requests it gets, and the meaning of its responses."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from apps.chat.openai_client import OpenAIClient, problem_of_base_url, problem_of_key
from llama_cpp_worker.sampling_params import SamplingParams
from tests.support.serving import free_ports
from torchserve_client.config import TorchServeError
from torchserve_client.http import RequestRefused, ServerUnreachable
from torchserve_client.streaming import StreamEvent

QUESTION = [{"role": "user", "content": "q"}]


class OtherServer(ThreadingHTTPServer):
    """Answers as llama-server does; `requests` are the bodies, `keys` the Authorization headers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 200
        self.error: dict[str, Any] = {}
        self.models: object = {"data": [{"id": "their-model", "meta": {"n_ctx": 2048}}]}
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []


class _Handler(BaseHTTPRequestHandler):
    server: OtherServer

    def do_GET(self) -> None:
        self._answer(json.dumps(self.server.models))

    def do_POST(self) -> None:
        self.server.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer('data: {"choices":[{"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')

    def _answer(self, body: str) -> None:
        self.server.keys.append(self.headers["Authorization"])
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write((json.dumps({"error": self.server.error}) if self.server.error else body).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[OtherServer]:
    with OtherServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client(server: OtherServer) -> OpenAIClient:
    return OpenAIClient(f"http://127.0.0.1:{server.server_port}/v1/", "their-key")


def test_question_has_the_key_and_the_first_model_and_its_answer_streams(
    server: OtherServer, client: OpenAIClient
) -> None:
    assert list(client.chat(QUESTION, SamplingParams(max_tokens=5))) == [StreamEvent("hi", "stop")]
    assert set(server.keys) == {"Bearer their-key"}
    assert server.requests == [
        {
            "messages": QUESTION,
            "model": "their-model",
            "temperature": 0.8,
            "top_p": 0.95,
            "max_tokens": 5,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


def test_other_parameters_than_openais_are_sent_only_when_changed(server: OtherServer, client: OpenAIClient) -> None:
    list(client.complete("q", SamplingParams(top_k=7, stop=("END",), seed=1)))
    assert {name: server.requests[0].get(name) for name in ("prompt", "top_k", "min_p", "stop", "seed")} == {
        "prompt": "q",
        "top_k": 7,
        "min_p": None,
        "stop": ["END"],
        "seed": 1,
    }


def test_without_a_key_none_is_sent(server: OtherServer) -> None:
    OpenAIClient(f"http://127.0.0.1:{server.server_port}/v1", "").state()
    assert server.keys == [None]


def test_window_is_known_and_a_ready_server_is_not_queried_at_once(server: OtherServer, client: OpenAIClient) -> None:
    assert [client.state() for _ in range(3)] == ["ready"] * 3
    assert client.context_window == 2048
    assert len(server.keys) == 1


@pytest.mark.parametrize(("status", "state"), [(401, "refused"), (403, "refused"), (503, "loading"), (404, "down")])
def test_state_follows_from_the_status(server: OtherServer, client: OpenAIClient, status: int, state: str) -> None:
    server.status, server.error = status, {"message": "no"}
    assert client.state() == state
    server.status, server.error = 200, {}
    assert client.state() == "ready"


def test_refusal_has_the_type_for_a_full_context_window(server: OtherServer, client: OpenAIClient) -> None:
    client.state()
    server.status = 400
    server.error = {"message": "request (9013 tokens) exceeds", "type": "exceed_context_size_error", "code": 400}
    with pytest.raises(RequestRefused, match="9013") as refused:
        next(client.chat(QUESTION, SamplingParams()))
    assert refused.value.type == "exceed_context_size_error"


def test_error_about_an_unreachable_server_has_its_address() -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}/v1"
    client = OpenAIClient(url, "")
    assert client.state() == "down"
    with pytest.raises(ServerUnreachable, match=url):
        next(client.chat(QUESTION, SamplingParams()))


@pytest.mark.parametrize("models", [{"data": ["gpt"]}, {"data": {}}, {"data": []}, {}, [], "gpt", None, 7], ids=str)
def test_list_of_models_of_another_shape_is_a_state(server: OtherServer, client: OpenAIClient, models: object) -> None:
    server.models = models
    assert client.state() == "not openai"


@pytest.mark.parametrize("text", ["http://127.0.0.1:8000/v1", "http://[::1]:8000/v1", "https://example.com/v1"])
def test_usable_base_url_has_no_problem(text: str) -> None:
    assert problem_of_base_url(text) == ""


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("127.0.0.1:8000", id="no scheme"),
        pytest.param("ftp://example.com", id="another scheme"),
        pytest.param("http://", id="no host"),
        pytest.param("http://[::1", id="half an IPv6 address"),
        pytest.param("http://a..b/v1", id="empty label"),
        pytest.param(f"http://{'a' * 64}.b/v1", id="long label"),
        pytest.param("http://127.0.0.1:9/\u00e9", id="accented path"),
        pytest.param("http://\u00e9.b/v1", id="accented host"),
        pytest.param("http://127.0.0.1:9/a b", id="blank"),
        pytest.param("http://127.0.0.1:99999/v1", id="large port"),
    ],
)
def test_unusable_base_url_is_explained_and_raises_only_sentences(text: str) -> None:
    assert problem_of_base_url(text).startswith("A base URL looks like")
    client = OpenAIClient(text, "")
    assert client.state() == "down"
    with pytest.raises(TorchServeError):
        next(client.chat(QUESTION, SamplingParams()))


def test_key_with_a_hidden_character_is_explained_and_refused(server: OtherServer) -> None:
    key = "sk-\u200babc"
    assert "copy the key again" in problem_of_key(key)
    assert problem_of_key("sk-abc") == problem_of_key("") == ""
    client = OpenAIClient(f"http://127.0.0.1:{server.server_port}/v1", key)
    assert client.state() == "refused"
    with pytest.raises(RequestRefused, match="copy the key again"):
        next(client.chat(QUESTION, SamplingParams()))
