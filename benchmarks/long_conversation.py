"""Measures what a conversation of 300 messages costs a person, in a real browser. No model is needed.

    python -m benchmarks.long_conversation

A scripted server answers at once. Prints the median of several tries and the bar of each: opening the conversation from
the list, leaving it, reloading it, from Enter to the question on the page, the answer's first character after the
server has sent it, and the time that a frame takes while a person types. The page notes all times itself.
"""

import random
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

from apps.chat.export import import_json
from apps.chat.store import ChatStore
from benchmarks import argument_parser
from tests.chat.chat_page import open_chat_page, write_export
from tests.support.browser import running_app, running_browser
from tests.support.scripted_server import Server, running_scripted_server

TURNS = 150
SEED = 13
WORDS = ("the", "llama", "walks", "over", "high", "mountains", "and", "finds", "grass", "water", "salt", "snow", "home")
TITLE = "A long conversation"
LAST = "This is the last answer."
BARS = {  # milliseconds
    "open": 1500,
    "leave": 300,
    "reload": 2500,
    "Enter to question": 250,
    "first character behind the server": 120,
    "frame while typing, p95": 50,
}
# bench.after(event, condition) begins with the next such event, and bench.done resolves in the frame in which the
# condition holds: [milliseconds since the event, milliseconds since 1970].
SETUP = """
const texts = role => [...document.querySelectorAll(`.chat-message.${role} .text`)].map(each => each.textContent);
const conditions = {
  open: () => texts("answer").at(-1) === "LAST",
  left: () => document.querySelectorAll('[data-testid="stChatMessage"]').length === 1,
  asked: () => texts("question").at(-1) === bench.question,
  answered: () => conditions.asked() && texts("answer").at(-1).startsWith("It"),
};
const bench = window.bench = {
  since(began, condition) {
    return new Promise(resolve => {
      const check = () => {
        if (conditions[condition]()) resolve([performance.now() - began, Date.now()]);
        else requestAnimationFrame(check);
      };
      check();
    });
  },
  after(event, condition) {
    bench.done = new Promise(resolve => {
      const start = ({timeStamp}) => resolve(bench.since(timeStamp, condition));
      addEventListener(event, start, {capture: true, once: true});
    });
  },
  watchFrames() {
    const times = [];
    const step = now => { times.push(now); if (bench.frames === times) requestAnimationFrame(step); };
    bench.frames = times;
    requestAnimationFrame(step);
  },
};
""".replace("LAST", LAST)


class NotedQuestions(list[tuple[str, dict[str, Any]]]):
    """A scripted server's questions, and when the last one came: its answer begins at once."""

    came_at = 0.0

    def append(self, question: tuple[str, dict[str, Any]]) -> None:
        self.came_at = 1000 * time.time()
        super().append(question)


def conversation(path: Path) -> Path:
    """An exported conversation of TURNS turns; always the same."""
    words = random.Random(SEED)

    def text(paragraphs: int) -> str:
        return "\n\n".join(" ".join(words.choices(WORDS, k=words.randint(10, 60))) + "." for _ in range(paragraphs))

    code = "```python\ndef walk(steps):\n    return [step * 2 for step in range(steps)]\n```"
    turns = [(text(1), f"{text(2)}\n\n- **one**\n- two\n\n{code}\n\n{text(1)}") for _ in range(TURNS - 1)]
    return write_export(path, [*turns, ("And now?", LAST)], TITLE)


def measure_once(page: Page, questions: NotedQuestions, number: int) -> dict[str, float]:
    """One try of everything. The page shows an empty chat at the start and at the end."""
    found: dict[str, float] = {}
    page.get_by_role("tab", name="Conversations").click()
    page.evaluate("bench.after('click', 'open')")
    page.get_by_role("button", name=TITLE).click()
    found["open"] = page.evaluate("bench.done")[0]
    address = page.url
    page.evaluate("bench.after('click', 'left')")
    page.get_by_role("button", name="New chat").click()
    found["leave"] = page.evaluate("bench.done")[0]

    page.goto(address, wait_until="commit")
    page.evaluate("bench.since(0, 'open')")
    page.reload(wait_until="commit")
    found["reload"] = page.evaluate("bench.since(0, 'open')")[0]

    question = f"How does llama number {number} find its way home in the snow?"
    page.wait_for_load_state("networkidle")
    page.evaluate("bench.watchFrames()")
    page.get_by_test_id("stChatInputTextArea").press_sequentially(question, delay=30)
    frames = page.evaluate("bench.frames.splice(0)")
    page.evaluate("bench.frames = null")
    gaps = sorted(after - before for before, after in pairwise(frames))
    found["frame while typing, p95"] = gaps[int(0.95 * len(gaps))]

    page.evaluate("question => { bench.question = question; bench.after('keydown', 'asked'); }", question)
    page.keyboard.press("Enter")
    found["Enter to question"] = page.evaluate("bench.done")[0]
    shown_at = page.evaluate("bench.since(0, 'answered')")[1]
    found["first character behind the server"] = shown_at - questions.came_at
    page.get_by_role("button", name="Delete the question and its answer").last.click()
    page.evaluate("bench.since(0, 'open')")
    page.get_by_role("button", name="New chat").click()
    page.evaluate("bench.since(0, 'left')")
    return found


def run(tries: int) -> list[dict[str, float]]:
    with (
        tempfile.TemporaryDirectory() as folder,
        running_browser() as browser,
        running_scripted_server(Path(folder)) as (server, config),
    ):
        questions = note_questions(server)
        store = ChatStore(config.home / "conversations.sqlite3")
        import_json(store, conversation(Path(folder) / "long.json").read_bytes())
        store.close()
        with running_app("client_app.py", config, Path(folder) / "client.log") as url:
            page = open_chat_page(browser, url)
            page.context.add_init_script(SETUP)
            page.reload()
            expect(page.get_by_role("tab", name="Conversations")).to_be_visible()
            return [measure_once(page, questions, number) for number in range(tries + 1)][1:]  # the first one warms up


def note_questions(server: Server) -> NotedQuestions:
    server.questions = questions = NotedQuestions()
    return questions


def main() -> None:
    parser = argument_parser("long_conversation", __doc__)
    parser.add_argument("--tries", type=int, default=5)
    tries = run(parser.parse_args().tries)
    for name, bar in BARS.items():
        values = sorted(each[name] for each in tries)
        over = "" if statistics.median(values) <= bar else "  over the bar"
        print(
            f"{name}: {statistics.median(values):.0f} ms ({values[0]:.0f} to {values[-1]:.0f}), bar {bar} ms{over}",
            flush=True,
        )


if __name__ == "__main__":
    main()
