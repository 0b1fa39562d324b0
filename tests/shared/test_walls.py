"""Both apps as `streamlit run` starts them: what each account of the machine gets from each of their routes."""

import http.client
import re
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import streamlit
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from apps.shared.access import Answer
from apps.shared.access_page import page as access_page
from tests.support.accounts import ANOTHER_STRANGER, STRANGER, as_account, running_relay
from tests.support.browser import running_app
from tests.support.scripted_server import running_scripted_server

SCRIPTS = ("client_app.py", "torchserve_server_app.py")
STATIC = Path(streamlit.__file__).parent / "static"
SCRIPT_FILE = next(path.relative_to(STATIC) for path in (STATIC / "static" / "js").glob("index.*.js"))
ROUTES = (
    "/",
    "/any/page",
    f"/{SCRIPT_FILE}",
    "/favicon.png",
    "/_stcore/health",
    "/_stcore/script-health-check",
    "/_stcore/host-config",
    "/_stcore/metrics",
    "/_stcore/agent/openapi.json",
    "/_stcore/upload_file/session/file",
    "/_stcore/bidi-components/copy_button/index.js",
    "/media/0123456789.png",
    "/component/any/index.html",
    "/auth/login",
    "/oauth2callback",
    "/app/static/any.txt",
    "//double",
    "/%2e%2e/%2e%2e/etc/passwd",
)


@dataclass(frozen=True)
class App:
    """A running app. `log` is what it has printed."""

    port: int
    home: Path
    log: Path

    @property
    def token_file(self) -> Path:
        return self.home / "access_tokens" / f"port_{self.port}.txt"

    @property
    def token(self) -> str:
        return self.token_file.read_text().strip().partition("token=")[2]


@pytest.fixture(scope="module", params=SCRIPTS)
def app(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    home = tmp_path_factory.mktemp("walls")
    log = home / "app.log"
    with running_scripted_server(home) as (_, config), running_app(request.param, config, log) as url:
        yield App(int(url.rpartition(":")[2]), home, log)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    text: str


def fetch(port: int, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
        return Reply(response.status, {name.lower(): value for name, value in response.getheaders()}, text)
    finally:
        connection.close()


def status_of_socket(
    port: int, headers: dict[str, str] | None = None, origin: str = "", name: str = "127.0.0.1"
) -> int:
    """101 if the app's websocket opens. `name` is the host in the address."""
    address = f"ws://{name}:{port}/_stcore/stream"
    extra = {"Origin": origin or f"http://{name}:{port}", **(headers or {})}
    try:
        connection = socket.create_connection(("127.0.0.1", port), timeout=30)
        with connect(address, additional_headers=extra, sock=connection, open_timeout=30) as opened:
            return opened.response.status_code if opened.response else 0
    except InvalidStatus as refusal:
        return refusal.response.status_code


def statuses(port: int, headers: dict[str, str] | None = None) -> dict[str, int]:
    """Of every route with every method that one of them has, and of the websocket."""
    methods = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")
    found = {f"{method} {path}": fetch(port, path, method, headers).status for path in ROUTES for method in methods}
    return found | {"websocket": status_of_socket(port, headers)}


def test_account_that_started_the_app_needs_no_token(app: App) -> None:
    page = fetch(app.port, "/")
    assert page.status == 200
    assert '<div id="root">' in page.text
    assert "set-cookie" not in page.headers or "llama2_access" not in page.headers["set-cookie"]
    assert fetch(app.port, f"/{SCRIPT_FILE}").status == 200
    assert fetch(app.port, "/_stcore/health").text == "ok"
    assert status_of_socket(app.port) == 101


def test_another_account_gets_nothing_from_any_route(app: App) -> None:
    found = as_account(STRANGER, partial(statuses, app.port))
    assert len(found) > 100
    assert set(found.values()) == {403}


def test_refusal_says_how_to_get_in_and_nothing_of_the_app(app: App) -> None:
    page = as_account(STRANGER, partial(fetch, app.port, "/?conversation=abc"))
    assert "The app printed its token when it started" in page.text
    assert str(app.token_file) in page.text
    assert '<input name="token"' in page.text
    assert app.token not in page.text
    assert page.headers["cache-control"] == "no-store"
    assert not re.search("streamlit|conversation|<script", page.text, re.IGNORECASE)


def test_wrong_token_is_refused_and_the_right_one_opens_everything(app: App) -> None:
    wrong = as_account(STRANGER, partial(fetch, app.port, f"/?token={app.token[:-1]}x"))
    assert wrong.status == 403
    assert "That is not the token." in wrong.text

    welcome = as_account(STRANGER, partial(fetch, app.port, f"/?panel=Logs&token={app.token}"))
    assert welcome.status == 200
    assert 'content="0; url=/?panel=Logs"' in welcome.text
    assert welcome.headers["referrer-policy"] == "no-referrer"
    cookie, *attributes = welcome.headers["set-cookie"].split("; ")
    assert cookie.startswith(f"llama2_access_{app.port}=")
    assert app.token not in cookie
    assert {"HttpOnly", "SameSite=strict", "Path=/"} == set(attributes)

    headers = {"Cookie": cookie}
    assert as_account(STRANGER, partial(fetch, app.port, "/", headers=headers)).status == 200
    assert as_account(STRANGER, partial(status_of_socket, app.port, headers)) == 101
    other = as_account(ANOTHER_STRANGER, partial(statuses, app.port, headers))
    assert set(other.values()) == {403}, "a cookie is worthless for an account that has stolen it"


@pytest.mark.parametrize("name", ["X-Forwarded-For", "x-forwarded-for"])
def test_another_account_cannot_claim_the_owners_connection(app: App, name: str) -> None:
    with socket.create_connection(("127.0.0.1", app.port)) as owners:
        headers = {name: f"127.0.0.1:{owners.getsockname()[1]}"}
        assert set(as_account(STRANGER, partial(statuses, app.port, headers)).values()) == {403}
        assert as_account(STRANGER, partial(fetch, app.port, "/", headers={"Forwarded": "for=127.0.0.1"})).status == 403


def test_ssh_forward_of_another_account_needs_the_token(app: App) -> None:
    """Its end is a process of the account that logged in (tried with OpenSSH 9.2)."""
    with running_relay(STRANGER, app.port) as relay:
        assert fetch(relay, "/").status == 403
        assert status_of_socket(relay) == 403


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        pytest.param({"Host": "rebound.example:8501"}, "only at this machine's own names", id="DNS rebinding"),
        pytest.param({"Origin": "http://evil.example"}, "Another page sent this request", id="another site"),
        pytest.param({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, "Another page", id="an image"),
    ],
)
def test_sites_in_the_owners_browser_are_refused(app: App, headers: dict[str, str], words: str) -> None:
    page = fetch(app.port, "/", headers=headers)
    assert page.status == 403
    assert words in page.text.replace("&#x27;", "'")
    assert f"http://127.0.0.1:{app.port}" in page.text


def test_sockets_that_other_sites_open_in_the_owners_browser_are_refused(app: App) -> None:
    assert status_of_socket(app.port, origin="http://evil.example") == 403
    assert status_of_socket(app.port, origin="http://127.0.0.1:9999") == 403
    assert status_of_socket(app.port, origin=f"http://localhost:{app.port}") == 403
    assert status_of_socket(app.port, name="rebound.example") == 403


@pytest.mark.parametrize("path", ["/", f"/{SCRIPT_FILE}", "/_stcore/host-config", "/media/none.png"])
def test_every_response_has_the_headers(app: App, path: str) -> None:
    for reply in (fetch(app.port, path), fetch(app.port, path, headers={"Host": "evil.example"})):
        assert reply.headers["content-security-policy"].startswith("default-src 'self'; ")
        assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
        assert "evil.example" not in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cross-origin-opener-policy"] == "same-origin"
        assert reply.headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in reply.headers


def test_token_is_printed_once_and_its_file_is_for_the_owner(app: App) -> None:
    fetch(app.port, f"/?token={app.token}")
    fetch(app.port, "/?token=wrong")
    status_of_socket(app.port)
    lines = [line for line in app.log.read_text().splitlines() if app.token in line]
    assert len(lines) == 1
    assert lines[0].endswith(f" http://127.0.0.1:{app.port}/?token={app.token}")
    assert stat.S_IMODE(app.token_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(app.token_file.parent.stat().st_mode) == 0o700


def test_token_is_new_at_each_start_and_its_file_ends_with_the_app(tmp_path: Path) -> None:
    tokens = set()
    with running_scripted_server(tmp_path) as (_, config):
        for _ in range(2):
            with running_app("client_app.py", config, tmp_path / "app.log") as url:
                running = App(urlsplit(url).port or 0, tmp_path, tmp_path / "app.log")
                tokens.add(running.token)
            assert not running.token_file.exists()
    assert len(tokens) == 2


def test_pages_of_a_closed_door_escape_what_they_show() -> None:
    assert "<b>" not in access_page(Answer.WELCOME, "file", "http://x", '/"><b>x')
    assert "<b>" not in access_page(Answer.ASK, "<b>file", "http://x")
