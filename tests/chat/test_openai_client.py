"""Another server: the requests it gets, and the meaning of its responses."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.chat import openai_client
from apps.chat.openai_client import (
    ModelList,
    OpenAIClient,
    State,
    full_base_url,
    problem_of_base_url,
    problem_of_key,
    short_name,
)
from llama_cpp_worker.sampling_params import SamplingParams
from tests.support.serving import free_ports
from torchserve_client import http
from torchserve_client.config import TorchServeError
from torchserve_client.http import RequestRefused, ServerUnreachable
from torchserve_client.streaming import StreamEvent

QUESTION = [{"role": "user", "content": "q"}]
ODD_HOSTS = (
    "127.0.0.1:1",
    "[::1]:1",
    "[v1.a]",
    "[",
    "%00",
    "1.2.3.4.5",
    "256.1.1.1:1",
    "me:pw@127.0.0.1:1",
    "*",
    "",
    ".",
)


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
    return OpenAIClient(ModelList(f"http://127.0.0.1:{server.server_port}/v1/", "their-key"))


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
    OpenAIClient(ModelList(f"http://127.0.0.1:{server.server_port}/v1", "")).state()
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


def test_a_server_that_sends_a_byte_now_and_then_does_not_stop_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_client, "MODELS_TIMEOUT_SECONDS", 0.2)
    has_ended = threading.Event()

    def drip(listener: socket.socket) -> None:
        with listener.accept()[0] as connection:
            while not has_ended.wait(0.05):
                connection.sendall(b"H")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        models = ModelList(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", "")
        states: list[str] = []
        page = threading.Thread(target=lambda: states.extend(models.state() for _ in range(3)), daemon=True)
        page.start()
        page.join(30)
        has_ended.set()
        thread.join()
    assert states == ["down"] * 3


def test_an_endless_response_is_refused(
    server: OtherServer, client: OpenAIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "LARGEST_RESPONSE", 1000)
    server.models = {"data": [{"id": "m" * 200}] * 10}
    assert client.state() == "not openai"


def test_refusal_has_the_type_for_a_full_context_window(server: OtherServer, client: OpenAIClient) -> None:
    client.state()
    server.status = 400
    server.error = {"message": "request (9013 tokens) exceeds", "type": "exceed_context_size_error", "code": 400}
    with pytest.raises(RequestRefused, match="9013") as refused:
        next(client.chat(QUESTION, SamplingParams()))
    assert refused.value.type == "exceed_context_size_error"


def test_error_about_an_unreachable_server_has_its_address() -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}/v1"
    client = OpenAIClient(ModelList(url, ""))
    assert client.state() == "down"
    with pytest.raises(ServerUnreachable, match=url):
        next(client.chat(QUESTION, SamplingParams()))


@pytest.mark.parametrize("models", [{"data": ["gpt"]}, {"data": {}}, {"data": []}, {}, [], "gpt", None, 7], ids=str)
def test_list_of_models_of_another_shape_is_a_state(server: OtherServer, client: OpenAIClient, models: object) -> None:
    server.models = models
    assert client.state() == "not openai"


def test_all_listed_models_can_be_chosen_and_the_first_is_the_default(server: OtherServer) -> None:
    server.models = {"data": [{"id": "one"}, {"no": "id"}, {"id": 7}, {"id": "two", "meta": {"n_ctx": 512}}]}
    models = ModelList(f"http://127.0.0.1:{server.server_port}/v1", "")
    first, second = OpenAIClient(models), OpenAIClient(models, "two")
    assert first.model == ""
    assert first.state() == "ready"
    assert list(models.models) == ["one", "two"]
    assert (first.model, first.context_window) == ("one", None)
    assert (second.model, second.context_window) == ("two", 512)
    list(second.chat(QUESTION, SamplingParams()))
    assert server.requests[0]["model"] == "two"


def test_a_chosen_model_that_is_not_listed_is_not_replaced(server: OtherServer) -> None:
    client = OpenAIClient(ModelList(f"http://127.0.0.1:{server.server_port}/v1", ""), "gone")
    assert client.state() == "ready"
    list(client.chat(QUESTION, SamplingParams()))
    assert server.requests[0]["model"] == "gone"


@pytest.mark.parametrize(
    ("typed", "base_url"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        (" localhost/v1/ ", "http://localhost/v1"),
        ("[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("192.168.1.5", "http://192.168.1.5/v1"),
        ("mac.local:1234/v1", "http://mac.local:1234/v1"),
        ("api.example.com", "https://api.example.com/v1"),
        ("http://api.example.com/openai", "http://api.example.com/openai"),
        ("", ""),
        ("http://[::1", "http://[::1"),
    ],
)
def test_base_url_may_be_typed_without_scheme_and_path(typed: str, base_url: str) -> None:
    assert full_base_url(typed) == base_url


def test_short_name_is_the_host_with_what_tells_it_apart() -> None:
    names = [short_name(url) for url in ("http://127.0.0.1:8000/v1", "https://example.com/a/v1", "http://a/b")]
    assert names == ["127.0.0.1:8000", "example.com/a", "a/b"]


@pytest.mark.parametrize("text", ["http://me:pw@127.0.0.1:8000/v1", "http://a/v1?key=b", "http://a/v1#b"])
def test_base_url_with_a_possible_secret_is_refused_since_it_is_stored_and_shown(text: str) -> None:
    assert problem_of_base_url(text).startswith("Leave out what is before @")


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
    client = OpenAIClient(ModelList(text, ""))
    assert client.state() == "down"
    with pytest.raises(TorchServeError):
        next(client.chat(QUESTION, SamplingParams()))


def test_key_with_a_hidden_character_is_explained_and_refused(server: OtherServer) -> None:
    key = "sk-\u200babc"
    assert "copy the key again" in problem_of_key(key)
    assert problem_of_key("sk-abc") == problem_of_key("") == ""
    client = OpenAIClient(ModelList(f"http://127.0.0.1:{server.server_port}/v1", key))
    assert client.state() == "refused"
    with pytest.raises(RequestRefused, match="copy the key again"):
        next(client.chat(QUESTION, SamplingParams()))


@settings(max_examples=200)
@given(host=st.sampled_from(ODD_HOSTS), rest=st.text("/v1:@?#%[]\\ ;=&.é\x00\n", max_size=8), key=st.text(max_size=6))
def test_nonsense_is_a_sentence_or_a_server_that_does_not_answer(host: str, rest: str, key: str) -> None:
    base_url = f"http://{host}{rest}"
    problem = problem_of_base_url(base_url) or problem_of_key(key)
    if problem:
        assert problem.endswith((".", "key again."))
    else:
        assert OpenAIClient(ModelList(base_url, key)).state() in get_args(State)
