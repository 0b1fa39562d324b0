"""Who may use an app: the account that started it, and everybody with the token that it prints.

The account is recognized by the other end of the connection (peer.py), so that the person who typed `streamlit run`
needs no token. Everything else of the app is closed without one: pages, websockets, files, uploads, health checks.

A browser runs the code of many sites under one account. So the request must also say that it comes from the app's own
page or from an address that a person opened, and must use one of this machine's own names (against DNS rebinding).
"""

import hmac
import secrets
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.requests import cookie_parser

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
TOKEN = "token"  # the query parameter
TOKEN_BYTES = 32
NO_ACCOUNT = "unknown"


class Answer(Enum):
    """What to do with a request."""

    SERVE = "serve"
    WELCOME = "set the cookie and load the page again, without the token in its address"
    ASK = "ask for the token"
    ASK_AGAIN = "ask for the token, since the one in the address is wrong"
    WRONG_HOST = "refuse a name that is not this machine's"
    FOREIGN = "refuse what another site has sent"


@dataclass(frozen=True, slots=True)
class Attempt:
    """What decides about a request. `headers` have lower-case names; of a repeated one, the last value.

    account: the uid at the other end, None if it is unknown.
    """

    headers: dict[str, str]
    query: str
    account: int | None
    is_websocket: bool = False
    method: str = "GET"


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of one app: its owner's uid and its token, which is a new one at each start."""

    owner: int
    port: int = 0
    token: str = field(default_factory=lambda: secrets.token_urlsafe(TOKEN_BYTES), repr=False)

    @property
    def cookie_name(self) -> str:
        """With the port, since browsers send a host's cookies to all of its ports, and each app has its own."""
        return f"llama2_access_{self.port}"

    def cookie(self, account: int | None) -> str:
        """The cookie's value for the account that sent the token.

        It is worthless for any other account of this machine, because a browser also sends it to programs of other
        accounts that listen on this host. The token cannot be found from it.
        """
        name = NO_ACCOUNT if account is None else str(account)
        return hmac.digest(self.token.encode(), name.encode(), "sha256").hex()

    def decide(self, attempt: Attempt) -> Answer:
        host = attempt.headers.get("host", "")
        if not is_local_name(host):
            return Answer.WRONG_HOST
        if comes_from_elsewhere(attempt, host):
            return Answer.FOREIGN
        given = dict(parse_qsl(attempt.query)).get(TOKEN)
        if given is not None and not attempt.is_websocket:
            is_right = hmac.compare_digest(given.encode(), self.token.encode())
            return Answer.WELCOME if is_right else Answer.ASK_AGAIN
        if attempt.account == self.owner or self._has_cookie(attempt):
            return Answer.SERVE
        return Answer.ASK

    def _has_cookie(self, attempt: Attempt) -> bool:
        given = cookie_parser(attempt.headers.get("cookie", "")).get(self.cookie_name, "")
        return hmac.compare_digest(given.encode(), self.cookie(attempt.account).encode())


def is_local_name(host: str) -> bool:
    """Whether a Host header has one of this machine's own names, with any port: an SSH tunnel may have another one."""
    try:
        parts = urlsplit(f"//{host}")
        names = {name if ":" not in name else f"[{name}]" for name in LOOPBACK_NAMES}
        return host.lower() in names | {f"{name}:{parts.port}" for name in names}
    except ValueError:  # no such port
        return False


def comes_from_elsewhere(attempt: Attempt, host: str) -> bool:
    """Whether a page of another site or another port has sent the request. Following a link is no such thing."""
    origin = attempt.headers.get("origin")
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        return True
    if attempt.is_websocket or attempt.headers.get("sec-fetch-site") in (None, "none", "same-origin"):
        return False
    is_link = (
        attempt.headers.get("sec-fetch-mode") == "navigate" and attempt.headers.get("sec-fetch-dest") == "document"
    )
    return not (is_link and attempt.method == "GET")


def without_token(query: str) -> str:
    return urlencode([(name, value) for name, value in parse_qsl(query, keep_blank_values=True) if name != TOKEN])
