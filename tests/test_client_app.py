"""The chat's logic without a browser: Streamlit's AppTest against a small HTTP server that speaks TorchServe's wire.

Not covered here: stop, closed tabs, timers, layout (a real browser does that), and TorchServe itself.
"""

from __future__ import annotations

import json
import re
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

APP = Path(__file__).resolve().parent.parent / "client_app.py"
RUN_SECONDS = 120
GREETING = "How may I assist you today?"


@dataclass(frozen=True, slots=True)
class Reply:
    """How the server answers one question; a cut reply ends without finish reason and `[DONE]`."""

    text: str = "It is Proxima Centauri."
    finish_reason: str = "stop"
    is_cut: bool = False
    refusal: str = ""


class Server(ThreadingHTTPServer):
    """TorchServe's inference port with one model. `questions` is what was asked, `replies` what comes next."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.questions: list[tuple[str, dict[str, Any]]] = []
        self.replies: deque[Reply] = deque()
        self.has_model = True

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_OPTIONS(self) -> None:
        self._describe()

    def do_GET(self) -> None:
        self._describe()

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.questions.append((self.path.partition("/v1/")[2], question))
        reply = self.server.replies.popleft() if self.server.replies else Reply()
        if reply.refusal:
            self._send(400, {"error": {"message": reply.refusal, "type": "invalid_request_error", "param": "prompt"}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for text in re.split(r"(?= )", reply.text):
            self._event({"choices": [{"delta": {"content": text}} if "messages" in question else {"text": text}]})
        if not reply.is_cut:
            ending = {"delta": {}, "text": "", "finish_reason": reply.finish_reason}
            figures = {"usage": {"completion_tokens": 5}, "timings": {"predicted_per_second": 12.34}}
            self._event({"choices": [ending], **figures})
            self.wfile.write(b"data: [DONE]\n\n")

    def _describe(self) -> None:
        if self.server.has_model:
            self._send(200, {"object": "list", "data": [{"id": "llamacpp", "object": "model"}]})
        else:
            self._send(404, {"code": 404, "type": "ModelNotFoundException", "message": "Model not found: llamacpp"})

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running server that the app's configuration points to."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    config = tmp_path / "config.properties"
    config.write_text(
        f"inference_address=http://127.0.0.1:{server.server_port}\ndisable_token_authorization=true\n", encoding="utf-8"
    )
    monkeypatch.setenv("TS_CONFIG_FILE", str(config))
    yield server
    server.close()
    thread.join()


def open_app(**settings: str) -> AppTest:
    """The page of a new session, opened with `settings` in its address."""
    app = AppTest.from_file(str(APP), default_timeout=RUN_SECONDS)
    for name, value in settings.items():
        app.query_params[name] = value
    return drawn(app.run())


def drawn(app: AppTest) -> AppTest:
    assert not app.exception, app.exception[0].message
    return app


def ask(app: AppTest, question: str) -> AppTest:
    return drawn(app.chat_input(key="question").set_value(question).run())


def last_answer(app: AppTest) -> Any:
    return app.chat_message[-1]


def has_button(app: AppTest, label: str) -> bool:
    return any(button.label == label for button in app.button)


def press(app: AppTest, label: str) -> AppTest:
    return drawn(next(button for button in app.button if button.label == label).click().run())


def test_page_greets_and_says_that_the_model_is_ready(server: Server) -> None:
    app = open_app()

    assert [bubble.markdown[0].value for bubble in app.chat_message] == [GREETING]
    assert app.title[0].value == "🦙💬 Llama 2 Chatbot"
    assert app.sidebar.success[0].value == "Proceed to entering your prompt message!"
    assert not app.chat_input(key="question").disabled


def test_answer_stands_under_its_question_with_its_figures(server: Server) -> None:
    app = ask(open_app(), "What is the closest star?")

    assert [bubble.name for bubble in app.chat_message] == ["assistant", "user", "assistant"]
    assert app.chat_message[1].text[0].value == "What is the closest star?"
    assert last_answer(app).markdown[0].value == "It is Proxima Centauri."
    figures = last_answer(app).caption[0].value.split(" · ")
    assert figures[:2] == ["5 tokens", "12.3 tokens/s"]
    assert figures[2].startswith("first token after ")
    assert figures[3] == "ended by itself"


def test_system_prompt_and_history_go_with_every_question(server: Server) -> None:
    app = open_app()
    app.text_area(key="system_prompt").set_value("You are an astronomer.")

    ask(ask(app, "What is the closest star?"), "How far is it?")

    path, question = server.questions[-1]
    assert path == "chat/completions"
    assert question["stream"] is True
    assert question["messages"] == [
        {"role": "system", "content": "You are an astronomer."},
        {"role": "user", "content": "What is the closest star?"},
        {"role": "assistant", "content": "It is Proxima Centauri."},
        {"role": "user", "content": "How far is it?"},
    ]


def test_raw_format_sends_only_the_typed_prompt_and_shows_what_it_became(server: Server) -> None:
    server.replies.append(Reply(" Proxima."))
    app = open_app()
    app.radio(key="prompt_format").set_value("raw")

    ask(app, "Question: What is the closest star? Answer:")

    path, question = server.questions[0]
    assert path == "completions"
    assert question["prompt"] == "Question: What is the closest star? Answer:"
    assert "messages" not in question
    assert last_answer(app).markdown[0].value == "Question: What is the closest star? Answer: Proxima."


def test_parameters_begin_at_their_defaults(server: Server) -> None:
    ask(open_app(), "Hello")

    _, question = server.questions[0]
    sent = {name: question.get(name) for name in ("temperature", "top_p", "max_tokens", "top_k", "min_p", "seed")}
    assert sent == {
        "temperature": 0.8,
        "top_p": 0.95,
        "max_tokens": 256,
        "top_k": 40,
        "min_p": 0.05,
        "seed": None,
    }


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("slider", "temperature", 0.01),
        ("slider", "temperature", 5.0),
        ("slider", "top_p", 0.5),
        ("slider", "max_tokens", 2048),
        ("number_input", "top_k", 1),
        ("slider", "min_p", 0.2),
        ("number_input", "repeat_penalty", 1.15),
        ("number_input", "seed", 7),
    ],
    ids=lambda value: str(value),
)
def test_parameter_reaches_the_request(server: Server, kind: str, name: str, value: float) -> None:
    app = open_app()
    getattr(app, kind)(key=name).set_value(value)

    ask(app, "Hello")

    assert server.questions[0][1][name] == value


def test_parameters_can_come_from_the_address(server: Server) -> None:
    ask(open_app(max_tokens="16", temperature="0.25", seed="7", prompt_format="raw"), "Hello")

    path, question = server.questions[0]
    assert path == "completions"
    assert (question["max_tokens"], question["temperature"], question["seed"]) == (16, 0.25, 7)


def test_stop_strings_are_lines_in_which_a_line_break_can_be_written(server: Server) -> None:
    app = open_app()
    app.text_area(key="stop").set_value("\\nQuestion:\n\n###")

    ask(app, "Hello")

    assert server.questions[0][1]["stop"] == ["\nQuestion:", "###"]


def test_parameters_out_of_bounds_are_named_and_nothing_is_sent(server: Server) -> None:
    app = open_app()
    app.text_area(key="stop").set_value("\n".join("abcdefghijklmnopq"))

    ask(app, "Hello")

    assert server.questions == []
    assert last_answer(app).error[0].value == "stop: takes at most 16 strings, not 17"


def test_answer_that_reached_max_tokens_says_so(server: Server) -> None:
    server.replies.append(Reply(finish_reason="length"))

    app = ask(open_app(), "Hello")

    assert last_answer(app).caption[0].value.endswith("length limit reached")
    assert not has_button(app, "Try again")


def test_cut_answer_keeps_its_text_and_offers_to_try_again(server: Server) -> None:
    server.replies.append(Reply("It is Prox", is_cut=True))

    app = ask(open_app(), "What is the closest star?")

    assert last_answer(app).markdown[0].value == "It is Prox"
    assert last_answer(app).caption[0].value.endswith("cut")
    assert "cut" in last_answer(app).error[0].value
    assert has_button(app, "Try again")


def test_try_again_asks_the_same_question_in_the_place_of_the_failed_one(server: Server) -> None:
    server.replies.append(Reply("It is Prox", is_cut=True))
    app = ask(open_app(), "What is the closest star?")

    press(app, "Try again")

    assert [question["messages"] for _, question in server.questions] == [
        [{"role": "user", "content": "What is the closest star?"}]
    ] * 2
    assert len(app.chat_message) == 3
    assert last_answer(app).markdown[0].value == "It is Proxima Centauri."
    assert not has_button(app, "Try again")


def test_refusal_is_shown_and_its_question_is_not_sent_again_with_the_next(server: Server) -> None:
    server.replies.append(Reply(refusal="The prompt has 5000 tokens, the context 2048: shorten it."))
    app = ask(open_app(), "Something long")

    assert last_answer(app).error[0].value == "The prompt has 5000 tokens, the context 2048: shorten it."
    assert has_button(app, "Try again")
    ask(app, "Something short")
    assert server.questions[-1][1]["messages"] == [{"role": "user", "content": "Something short"}]


def test_question_sent_to_a_server_that_has_gone_is_kept(server: Server) -> None:
    app = open_app()
    server.close()

    ask(app, "Is anybody there?")

    assert app.chat_message[1].text[0].value == "Is anybody there?"
    assert last_answer(app).error[0].value
    assert has_button(app, "Try again")


def test_input_stays_open_while_the_server_is_down_and_says_what_to_do(server: Server) -> None:
    server.close()

    app = open_app()

    assert app.sidebar.warning[0].value == "TorchServe is not running. Press Start Server in the server app."
    assert app.chat_input(key="question").placeholder == "TorchServe is not running"
    assert not app.chat_input(key="question").disabled, "a disabled input would drop what is being typed"


def test_page_says_when_a_model_has_been_registered(server: Server) -> None:
    server.has_model = False
    app = open_app()
    assert app.sidebar.warning[0].value == "No model is registered. Press Register Llama2 in the server app."

    server.has_model = True
    drawn(app.run())

    assert app.sidebar.success
    assert app.chat_input(key="question").placeholder == "Your message"


def test_clear_chat_history_leaves_only_the_greeting(server: Server) -> None:
    app = ask(open_app(), "What is the closest star?")

    drawn(app.button(key="clear_chat_history").click().run())

    assert [bubble.markdown[0].value for bubble in app.chat_message] == [GREETING]
    ask(app, "And now?")
    assert server.questions[-1][1]["messages"] == [{"role": "user", "content": "And now?"}]


def test_two_sessions_know_nothing_of_each_other(server: Server) -> None:
    one, other = ask(open_app(max_tokens="16"), "First"), ask(open_app(), "Second")

    assert [len(question["messages"]) for _, question in server.questions] == [1, 1]
    assert [question["max_tokens"] for _, question in server.questions] == [16, 256]
    assert (len(one.chat_message), len(other.chat_message)) == (3, 3)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        pytest.param("It costs $5 or $6.", r"It costs \$5 or \$6.", id="money is no formula"),
        pytest.param(r"It costs \$5.", r"It costs \$5.", id="an escaped character stays one"),
        pytest.param("Run `echo $HOME` for $5.", r"Run `echo $HOME` for \$5.", id="code in a line"),
        pytest.param("A ` and $5\n\nb ` c", "A ` and \\$5\n\nb ` c", id="lone backticks are no code"),
        pytest.param("$1\n```sh\necho $A `$B`\n```\n$2", "\\$1\n```sh\necho $A `$B`\n```\n\\$2", id="block of code"),
        pytest.param("1. Do\n    ~~~\n    $A\n    ~~~", "1. Do\n    ~~~\n    $A\n    ~~~", id="block in a list"),
        pytest.param("```sh\necho $A", "```sh\necho $A", id="block still being written"),
        pytest.param("![x](http://a/b.png)", r"\![x](http://a/b.png)", id="an image is not loaded"),
        pytest.param("Then :red[this] at 10:30", r"Then \:red[this] at 10:30", id="no colours"),
        pytest.param("<b>bold</b>", "<b>bold</b>", id="Streamlit shows HTML as text"),
    ],
)
def test_model_output_is_text_before_it_is_markdown(server: Server, said: str, shown: str) -> None:
    server.replies.append(Reply(said))

    app = ask(open_app(), "Hello")

    assert last_answer(app).markdown[0].value == shown
    assert not last_answer(app).markdown[0].allow_html
