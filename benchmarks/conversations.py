"""The workloads of several turns: a later turn begins with the text of the earlier ones."""

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.figures import Figures, checked, first_token_figures, first_token_ms, load_figures, prefixed
from benchmarks.workloads import SYSTEM_MESSAGE, body, text
from experiments.load_test import Sample, Target, run_load

LONG_TURNS = 10
CONVERSATIONS, TURNS, CLIENTS = 24, 4, 8
DOCUMENTS, DOCUMENT_TOKENS = 4, 3000


class Conversation:
    """Its messages, and the samples of its answers. Conversations with other seeds share no question."""

    def __init__(self, *seed: object) -> None:
        self.seed = seed
        self.messages: list[dict[str, str]] = [SYSTEM_MESSAGE]
        self.samples: list[Sample] = []

    def send_turn(self, target: Target, tokens: int, **fields: Any) -> Sample:
        """Sends the next question, with about `tokens` tokens. fields: of the request. Raises WorkloadFailed."""
        turn = len(self.samples)
        self.messages = [*self.messages, {"role": "user", "content": text(tokens, *self.seed, turn)}]
        (sample,) = checked(run_load(target, [body(self.messages, turn) | fields], clients=1).samples)
        self.messages = [*self.messages, {"role": "assistant", "content": sample.text}]
        self.samples.append(sample)
        return sample


def run_long_conversation(target: Target, tag: str) -> Figures:
    """WT: the time to the first token of each turn of one conversation."""
    conversation = Conversation(tag)
    times = [first_token_ms(conversation.send_turn(target, 20)) for _ in range(LONG_TURNS)]
    return {
        "last_over_first": times[-1] / times[0],
        **{f"turn_{turn}_first_token_ms": each for turn, each in enumerate(times, 1)},
        "cached_tokens": sum(sample.cached_tokens for sample in conversation.samples),
    }


def run_many_conversations(
    target: Target,
    tag: str,
    n_conversations: int = CONVERSATIONS,
    n_turns: int = TURNS,
    n_clients: int = CLIENTS,
    fields: Callable[[], dict[str, Any]] = dict,
) -> Figures:
    """WC: more conversations than slots. A client sends the next turn of the conversation that has waited longest.

    fields: further fields of each request.
    """
    waiting = deque(Conversation(tag, number) for number in range(n_conversations))
    conversations = list(waiting)

    def send_turns() -> None:
        while True:
            try:
                conversation = waiting.popleft()
            except IndexError:
                return
            conversation.send_turn(target, 60, **fields())
            if len(conversation.samples) < n_turns:
                waiting.append(conversation)

    started = time.monotonic()
    with ThreadPoolExecutor(n_clients) as pool:
        clients = [pool.submit(send_turns) for _ in range(n_clients)]
    seconds = time.monotonic() - started
    for client in clients:
        client.result()  # raises the client's WorkloadFailed
    samples = [sample for conversation in conversations for sample in conversation.samples]
    later = [sample for conversation in conversations for sample in conversation.samples[1:]]
    return {
        "tokens_per_second": sum(sample.completion_tokens for sample in samples) / seconds,
        **prefixed("later_turns", first_token_figures(later)),
        "first_turn_first_token_p50_ms": statistics.median(
            first_token_ms(conversation.samples[0]) for conversation in conversations
        ),
        "later_turns_cached_share": cached_share(later),
        "cached_share": cached_share(samples),
        **first_token_figures(samples),
    }


def run_second_questions(target: Target, tag: str) -> Figures:
    """W3: clients with a long document each. All second questions are sent when all first answers have ended."""
    systems = [
        {"role": "system", "content": f"{number} {text(DOCUMENT_TOKENS, tag, number)}"} for number in range(DOCUMENTS)
    ]
    chats = [[system, {"role": "user", "content": text(12, tag, n)}] for n, system in enumerate(systems)]
    first = run_load(target, [body(chat, n, 16) for n, chat in enumerate(chats)], DOCUMENTS)
    answers = [sample.text for sample in checked(first.samples)]
    for number, (chat, answer) in enumerate(zip(chats, answers, strict=True)):
        chat += [{"role": "assistant", "content": answer}, {"role": "user", "content": text(12, tag, "second", number)}]
    second = run_load(target, [body(chat, n) for n, chat in enumerate(chats)], DOCUMENTS)
    return {
        **load_figures(second),
        "cached_share": cached_share(second.samples),
        **prefixed("first_question", first_token_figures(first.samples)),
    }


def cached_share(samples: Sequence[Sample]) -> float:
    """The part of the prompt tokens that the server has not prefilled. 0 if it sends no such count."""
    return sum(sample.cached_tokens for sample in samples) / max(1, sum(sample.prompt_tokens for sample in samples))
