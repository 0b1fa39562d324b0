"""Who may use an app, request by request. Knows no network."""

from typing import Any

import pytest

from apps.shared.access import Access, Answer, Attempt, is_local_name, without_token

OWNER, STRANGER = 1000, 1001
ACCESS = Access(OWNER, port=8501)
HOST = {"host": "127.0.0.1:8501"}
OWN_SITE = {"sec-fetch-site": "same-origin", "origin": "http://127.0.0.1:8501"}
LINK = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


def decide(account: int | None = OWNER, query: str = "", headers: dict[str, str] | None = None, **rest: Any) -> Answer:
    return ACCESS.decide(Attempt({**HOST, **(headers or {})}, query, account, **rest))


def test_owner_needs_no_token() -> None:
    assert decide() is Answer.SERVE
    assert decide(is_websocket=True, headers={"origin": "http://127.0.0.1:8501"}) is Answer.SERVE


@pytest.mark.parametrize("account", [STRANGER, 0, None])
def test_everybody_else_needs_the_token(account: int | None) -> None:
    assert decide(account) is Answer.ASK
    assert decide(account, is_websocket=True) is Answer.ASK
    assert decide(account, "token=wrong") is Answer.ASK_AGAIN
    assert decide(account, "token=") is Answer.ASK
    assert decide(account, f"max_tokens=5&token={ACCESS.token}") is Answer.WELCOME
    assert decide(account, f"token={ACCESS.token}", is_websocket=True) is Answer.ASK, "a page asks, not a socket"


def test_root_needs_no_token_only_for_its_own_app() -> None:
    assert Access(owner=0).decide(Attempt(HOST, "", 0)) is Answer.SERVE
    assert decide(0) is Answer.ASK


@pytest.mark.parametrize("account", [STRANGER, None])
def test_cookie_is_good_for_the_account_that_had_the_token_and_for_no_other(account: int | None) -> None:
    cookie = {"cookie": f"a b=strange; _streamlit_xsrf=x; {ACCESS.cookie_name}={ACCESS.cookie(account)}"}
    assert decide(account, headers=cookie) is Answer.SERVE
    assert decide(account, headers=cookie, is_websocket=True) is Answer.SERVE
    assert decide(0, headers=cookie) is Answer.ASK
    assert decide(account, headers={"cookie": f"{ACCESS.cookie_name}={ACCESS.token}"}) is Answer.ASK
    assert decide(account, headers={"cookie": f"{ACCESS.cookie_name}=\xff"}) is Answer.ASK
    assert Access(OWNER, 8501).decide(Attempt({**HOST, **cookie}, "", account)) is Answer.ASK, "a new start"


@pytest.mark.parametrize("host", ["127.0.0.1:8501", "localhost:9000", "LOCALHOST", "[::1]:8501", "127.0.0.1"])
def test_own_names_are_local(host: str) -> None:
    assert is_local_name(host)


@pytest.mark.parametrize(
    "host",
    ["", "rebound.example:8501", "127.0.0.1.example", "localhost@evil.example", "evil@localhost", "localhost:http",
     "localhost/path", "localhost:8501:1", "127.0.0.2", "0.0.0.0:8501", "localhost:99999", "::1", "local host"],
)  # fmt: skip
def test_other_names_are_refused_to_the_owner_as_well(host: str) -> None:
    assert not is_local_name(host)
    assert decide(headers={"host": host}) is Answer.WRONG_HOST
    assert decide(headers={"host": host}, query=f"token={ACCESS.token}") is Answer.WRONG_HOST


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"origin": "http://evil.example"}, id="another site"),
        pytest.param({"origin": "http://127.0.0.1:9999"}, id="another port"),
        pytest.param({"origin": "http://localhost:8501"}, id="another name"),
        pytest.param({"origin": "null"}, id="a sandboxed page"),
        pytest.param({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, id="an image of another site"),
        pytest.param({"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}, id="an image of another port"),
        pytest.param(LINK | {"sec-fetch-dest": "iframe"}, id="a frame"),
    ],
)
def test_what_another_page_sends_is_refused_to_the_owner_as_well(headers: dict[str, str]) -> None:
    assert decide(headers=headers) is Answer.FOREIGN


def test_sockets_of_other_pages_are_refused() -> None:
    assert decide(headers={"origin": "http://127.0.0.1:9999"}, is_websocket=True) is Answer.FOREIGN


def test_links_and_own_requests_are_served() -> None:
    assert decide(headers=LINK) is Answer.SERVE
    assert decide(headers=LINK, method="POST") is Answer.FOREIGN
    assert decide(headers=OWN_SITE, method="PUT") is Answer.SERVE
    assert decide(headers={"sec-fetch-site": "none", "sec-fetch-mode": "navigate"}) is Answer.SERVE


def test_only_the_token_leaves_the_address() -> None:
    assert without_token("max_tokens=16&token=abc&empty=&panel=Logs") == "max_tokens=16&empty=&panel=Logs"


def test_tokens_are_new_and_are_not_printed_by_accident() -> None:
    assert len({Access(OWNER).token for _ in range(100)}) == 100
    assert len(ACCESS.token) > 40
    assert ACCESS.token not in repr(ACCESS)
