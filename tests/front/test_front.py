"""What the front passes on, what it answers itself, and in which shape. TorchServe is a scripted server."""

import gzip
import json
from typing import Any

import httpx
import pytest

from tests.front.conftest import MAX_BODY, ORIGIN, Front
from tests.front.upstream import JSON, KEY, SSE, Answer
from tests.support.scripted_server import write_keys
from tests.support.serving import wait_until

CHAT = "/v1/chat/completions"
BODY = b'{"messages": []}'
EVENTS = (b'data: {"a": 1}\n\n', b"data: [DO", b"NE]\n\n")


def openai_error(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


# What goes to TorchServe


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        (CHAT, "v1/chat/completions"),
        ("/v1/messages?beta=true", "v1/messages"),
        ("/v1/messages/count_tokens", "v1/messages/count_tokens"),
        ("/v1/a%20b/", "v1/a b"),
        ("/tokenize", "tokenize"),
        ("/v1/tokenize", "tokenize"),
        ("/v1/detokenize", "detokenize"),
        ("/v1/apply-template", "apply-template"),
    ],
)
def test_a_path_goes_to_the_default_version_without_its_query(front: Front, path: str, sent: str) -> None:
    front.client.post(path, content=BODY)
    (received,) = front.upstream.received
    assert (received.path, received.headers["X-Api-Path"]) == ("/predictions/llamacpp", sent)


def test_a_get_has_no_body(front: Front) -> None:
    response = front.client.get("/v1/models/llamacpp")
    assert response.json() == {"object": "list"}
    (received,) = front.upstream.received
    assert (received.method, received.headers["X-Api-Path"], received.body) == ("GET", "v1/models/llamacpp", b"")
    assert "Content-Type" not in received.headers


def test_a_request_is_made_anew_and_has_no_header_of_its_client(front: Front) -> None:
    headers = {"X-Api-Path": "v1/other", "Cookie": "a=b", "X-Forwarded-For": "1.2.3.4", "Accept-Encoding": "br"}
    front.client.post(CHAT, content=BODY, headers=headers | {"Content-Type": JSON})
    (received,) = front.upstream.received
    assert received.body == BODY
    del received.headers["User-Agent"]
    assert received.headers == {
        "Host": f"127.0.0.1:{front.upstream.server_port}",
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Connection": "keep-alive",
        "Authorization": f"Bearer {KEY}",
        "X-Api-Path": "v1/chat/completions",
        "Content-Type": JSON,
        "Content-Length": str(len(BODY)),
    }


@pytest.mark.parametrize(
    ("content_type", "body", "sent"),
    [
        ("application/json; charset=utf-8", b"[]", JSON),
        ("application/x-www-form-urlencoded", b' \n{"prompt": "a&b=c"}', JSON),
        ("application/x-www-form-urlencoded; charset=utf-8", b"prompt=a", "application/x-www-form-urlencoded"),
        ("text/plain", BODY, JSON),
        (None, BODY, JSON),
    ],
)
def test_an_object_is_json_whatever_its_type(front: Front, content_type: str | None, body: bytes, sent: str) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    assert front.client.post(CHAT, content=body, headers=headers).status_code == 200
    (received,) = front.upstream.received
    assert (received.headers["Content-Type"], received.body) == (sent, body)


def test_another_content_type_is_refused_by_name(front: Front) -> None:
    response = front.client.post(CHAT, content=b"--x", headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert response.status_code == 415
    assert openai_error(response)["message"].startswith("Content-Type: send a JSON object")
    assert not front.upstream.received


# Bodies that are refused


@pytest.mark.parametrize("body", [b"prompt=100%", b"prompt=%zz&n=1", b"prompt=%2"])
def test_a_form_that_torchserve_would_log_is_refused(front: Front, body: bytes) -> None:
    response = front.client.post(CHAT, content=body, headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert response.status_code == 400
    assert "%25" in openai_error(response)["message"]
    assert not front.upstream.received


def chunks(size: int) -> list[bytes]:
    return [b"{" + b" " * (size - 2) + b"}"]


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_may_have_max_request_size_and_not_a_byte_more(front: Front, is_chunked: bool) -> None:
    for size, status in ((MAX_BODY, 200), (MAX_BODY + 1, 413)):
        body = chunks(size)
        response = front.client.post(CHAT, content=iter(body) if is_chunked else body[0])
        assert response.status_code == status
    assert "max_request_size of config.properties, 1,000 bytes" in openai_error(response)["message"]
    (received,) = front.upstream.received
    assert len(received.body) == MAX_BODY


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
def test_a_compressed_body_is_refused_in_words(front: Front, encoding: str) -> None:
    response = front.client.post(CHAT, content=gzip.compress(BODY), headers={"Content-Encoding": encoding})
    assert response.status_code == 415
    assert openai_error(response)["message"].startswith("Content-Encoding: this server takes no compressed bodies")
    assert not front.upstream.received


# Keys


BOTH = {"x-api-key": KEY, "Authorization": "Bearer of-another-service"}


@pytest.mark.parametrize(
    "headers", [{"Authorization": f"Bearer {KEY}"}, {"authorization": f"bearer  {KEY}"}, {"x-api-key": KEY}, BOTH]
)
def test_a_key_comes_as_bearer_or_as_x_api_key(front: Front, headers: dict[str, str]) -> None:
    assert httpx.get(f"{front.url}/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Nothing", ""),
        ("Authorization", "Bearer old-key"),
        ("Authorization", "Bearer"),
        ("Authorization", f"Basic {KEY}"),
        ("Authorization", KEY),
        ("x-api-key", ""),
        ("x-api-key", f"{KEY}\xe9"),
        ("x-api-key", "None"),
    ],
)
def test_a_missing_or_wrong_key_is_401(front: Front, name: str, value: str) -> None:
    headers = [(name.encode(), value.encode("latin-1"))]
    response = httpx.post(front.url + CHAT, headers=headers, content=BODY)
    assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer")
    error = openai_error(response)
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert "`.venv/bin/python -m torchserve_client.keys` prints KEY" in error["message"]
    assert not front.upstream.received


def test_a_new_key_is_known_at_once_and_the_old_one_is_refused(front: Front) -> None:
    assert front.client.get("/v1/models").status_code == 200
    front.upstream.key = "new-key"
    write_keys(front.home / "key_file.json", "new-key")
    refused = front.client.get("/v1/models")  # TorchServe refuses it: the front has not read the new key yet
    assert (refused.status_code, openai_error(refused)["code"]) == (401, "invalid_api_key")
    assert front.client.get("/v1/models", headers={"Authorization": "Bearer new-key"}).status_code == 200
    assert front.client.get("/v1/models").status_code == 401


def test_without_a_key_file_a_key_that_is_not_known_is_503(front: Front) -> None:
    (front.home / "key_file.json").unlink()
    response = front.client.get("/v1/models", headers={"Authorization": "Bearer unknown"})
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    url = f"http://127.0.0.1:{front.upstream.server_port}"
    sentence = f"TorchServe does not answer at {url}: press Start Server in the server app."
    assert openai_error(response)["message"] == sentence


# Answers and errors


def test_an_answer_that_is_not_streamed_is_not_changed(front: Front) -> None:
    body = b'{ "id": "a",\n "choices": []}'
    front.upstream.answer = Answer((body,))
    response = front.client.post(CHAT, content=BODY)
    assert (response.status_code, response.content) == (200, body)
    assert (response.headers["Content-Type"], response.headers["x-request-id"]) == (JSON, "request-1")


def test_a_stream_passes_through_piece_by_piece(front: Front) -> None:
    front.upstream.answer = Answer((EVENTS[0], None, *EVENTS[1:]), content_type=SSE, is_chunked=True)
    with front.client.stream("POST", CHAT, content=BODY) as response:
        pieces = response.iter_raw()
        assert next(pieces) == EVENTS[0]
        assert not front.upstream.goes_on.is_set(), "the piece came before the rest was sent"
        front.upstream.goes_on.set()
        assert b"".join(pieces) == EVENTS[1] + EVENTS[2]
        assert response.headers["Content-Type"] == SSE


@pytest.mark.parametrize(("path", "kind"), [(CHAT, "server_error"), ("/v1/messages", "api_error")])
def test_a_stream_that_is_cut_ends_with_an_error_event(front: Front, path: str, kind: str) -> None:
    front.upstream.answer = Answer(EVENTS[:2], content_type=SSE, is_chunked=True, is_cut=True)
    received = front.client.post(path, content=BODY).content
    assert received.startswith(EVENTS[0] + EVENTS[1] + b"\n\nevent: error\ndata: {")
    error = json.loads(received.split(b"data: ")[-1])["error"]
    assert error["type"] == kind
    assert error["message"].startswith("The answer was cut")


@pytest.mark.parametrize("is_chunked", [False, True])
def test_an_answer_that_is_cut_before_its_end_is_502(front: Front, is_chunked: bool) -> None:
    front.upstream.answer = Answer((b'{"id": ',), is_chunked=is_chunked, is_cut=True)
    response = front.client.post(CHAT, content=BODY)
    assert response.status_code == 502
    assert openai_error(response)["message"].startswith("The answer was cut")


TORCHSERVE_ERRORS = [
    (404, "ModelNotFoundException", "Model not found: llamacpp", "press Register Llama2", "model_not_found"),
    (503, "ServiceUnavailableException", 'Model "llamacpp" has no worker to serve', "try again in a moment", None),
    (500, "InternalServerException", "Worker died.", "TorchServe restarts it", None),
]


@pytest.mark.parametrize(("status", "kind", "message", "sentence", "code"), TORCHSERVE_ERRORS)
def test_an_error_of_torchserve_becomes_an_error_object(
    front: Front, status: int, kind: str, message: str, sentence: str, code: str | None
) -> None:
    body = json.dumps({"code": status, "type": kind, "message": message}, indent=2).encode()
    front.upstream.answer = Answer((body,), status)
    response = front.client.post(CHAT, content=BODY)
    assert response.status_code == status
    error = openai_error(response)
    assert sentence in error["message"]
    assert (error["type"], error["code"]) == ("server_error" if status >= 500 else "invalid_request_error", code)
    assert response.headers.get("Retry-After") == ("1" if status == 503 else None)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, "not_found_error"), (503, "overloaded_error"), (500, "api_error"), (400, "invalid_request_error")],
)
def test_messages_has_the_errors_of_anthropic(front: Front, status: int, kind: str) -> None:
    front.upstream.answer = Answer((b'{"code": 1, "type": "X", "message": "why"}',), status)
    response = front.client.post("/v1/messages", content=BODY)
    assert (response.status_code, response.json()) == (
        status,
        {"type": "error", "error": {"type": kind, "message": "why"}},
    )


def test_messages_has_the_401_of_anthropic(front: Front) -> None:
    response = httpx.post(f"{front.url}/v1/messages", headers={"x-api-key": "wrong"}, content=BODY)
    assert response.status_code == 401
    assert response.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    "body", [b'{"error": {"message": "m", "param": "n", "extra": 1}}', b'{"type": "error", "error": {"type": "x"}}']
)
@pytest.mark.parametrize(("sent", "status"), [(400, 400), (200, 500)])
def test_an_error_object_is_not_changed_and_never_200(front: Front, body: bytes, sent: int, status: int) -> None:
    front.upstream.answer = Answer((body,), sent, is_chunked=True)
    response = front.client.post(CHAT, content=BODY)
    assert (response.status_code, response.content) == (status, body)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("POST", "/predictions/llamacpp", 404), ("DELETE", "/v1/models/a", 405), ("GET", "/v1/é", 404)],
)
def test_an_unknown_path_or_method_is_an_error_object(front: Front, method: str, path: str, status: int) -> None:
    response = front.client.request(method, path)
    assert response.status_code == status
    assert openai_error(response)["message"] == f"There is no {method} {path} here; the API begins at /v1."
    assert not front.upstream.received


# Health


def test_health_needs_no_key_and_says_whether_a_worker_is_ready(front: Front) -> None:
    def health() -> httpx.Response:
        return httpx.get(f"{front.url}/health")

    wait_until(lambda: health().status_code == 200)
    assert health().json() == {"status": "ok"}
    front.upstream.worker_status = "UNLOADING"
    wait_until(lambda: health().status_code == 503)
    assert "(loading): see the server app" in openai_error(health())["message"]
    queries = front.upstream.n_state_queries
    assert [health().status_code for _ in range(20)] == [503] * 20
    assert front.upstream.n_state_queries - queries < 20, "many requests for the health share a query"


# Web pages


def preflight(front: Front, origin: str) -> httpx.Response:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    headers["Access-Control-Request-Headers"] = "authorization,content-type,x-stainless-lang"
    return httpx.options(front.url + CHAT, headers=headers)


def test_a_page_of_a_named_origin_may_use_the_front(front: Front) -> None:
    response = preflight(front, ORIGIN)
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "x-stainless-lang" in response.headers["Access-Control-Allow-Headers"]
    answer = front.client.post(CHAT, content=BODY, headers={"Origin": ORIGIN})
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)
    refused = httpx.post(front.url + CHAT, content=BODY, headers={"Origin": ORIGIN})
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, ORIGIN)


@pytest.mark.parametrize("origin", ["http://localhost:3001", "https://localhost:3000", "null", "http://evil.example"])
def test_a_page_of_another_origin_may_not(front: Front, origin: str) -> None:
    response = preflight(front, origin)
    assert response.status_code == 400
    message = openai_error(response)["message"]
    assert message.startswith(f"Disallowed CORS origin: a page of {origin} may not send this request.")
    assert "--allow-origin" in message
    assert "Access-Control-Allow-Origin" not in response.headers
    answer = front.client.post(CHAT, content=BODY, headers={"Origin": origin})
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost@evil.example", ""])
def test_a_host_name_that_is_not_ours_is_refused(front: Front, host: str) -> None:
    response = front.client.post(CHAT, content=BODY, headers={"Host": host})
    message = f"The Host header '{host}' names no host of this front: if it is another name of this machine, "
    assert response.status_code == 400
    assert openai_error(response)["message"] == f"{message}start the front with --allow-host NAME."
    assert not front.upstream.received


def test_localhost_with_any_port_is_ours(front: Front) -> None:
    assert front.client.get("/v1/models", headers={"Host": "LOCALHOST:1"}).status_code == 200
