"""Conversations of several turns, and the two ways in which they arrive. Knows nothing of nodes and routing."""

import random
from collections import deque
from dataclasses import dataclass

from benchmarks.cluster_simulation.clock import Clock
from benchmarks.cluster_simulation.cluster import Cluster
from benchmarks.cluster_simulation.request import Request


@dataclass(frozen=True, slots=True)
class Lengths:
    """The shortest and the longest of each; any length between is as likely. All of them are assumptions."""

    turns: tuple[int, int] = (2, 12)
    question_tokens: tuple[int, int] = (20, 100)
    answer_tokens: tuple[int, int] = (32, 192)
    pause_seconds: tuple[float, float] = (5.0, 35.0)  # from an answer's end to the next question
    system_tokens: int = 200  # the same system prompt for all conversations


class Conversation:
    """Its turns are drawn in advance, so each routing has the same ones."""

    def __init__(self, number: int, lengths: Lengths, dice: random.Random) -> None:
        self.number = number
        self.n_computed = lengths.system_tokens  # of the prompt and the answers so far
        self._turns = deque(
            (dice.randint(*lengths.question_tokens), dice.randint(*lengths.answer_tokens))
            for _ in range(dice.randint(*lengths.turns))
        )
        self._pauses = [dice.uniform(*lengths.pause_seconds) for _ in self._turns]

    @property
    def has_ended(self) -> bool:
        return not self._turns

    def next_request(self, now: float) -> Request:
        question, answer = self._turns.popleft()
        request = Request(self.number, self.n_computed + question, answer, now)
        self.n_computed += question + answer
        return request

    def next_pause(self) -> float:
        return self._pauses.pop()


class Arrivals:
    """New conversations arrive at random times (a Poisson process), however slow the answers are."""

    def __init__(self, clock: Clock, cluster: Cluster, lengths: Lengths, per_second: float, until: float, seed: int):
        self.n_sent = 0
        self._clock = clock
        self._cluster = cluster
        self._lengths = lengths
        self._per_second = per_second
        self._until = until
        self._dice = random.Random(seed)
        self._open: dict[int, Conversation] = {}
        self._n_conversations = 0
        cluster.on_end = self._continue
        self._wait_for_next()

    def _wait_for_next(self) -> None:
        arrives_at = self._clock.now + self._dice.expovariate(self._per_second)
        if arrives_at < self._until:
            self._clock.at(arrives_at, self._arrive)

    def _arrive(self) -> None:
        conversation = Conversation(self._n_conversations, self._lengths, self._dice)
        self._n_conversations += 1
        self._open[conversation.number] = conversation
        self._wait_for_next()
        self._send(conversation)

    def _send(self, conversation: Conversation) -> None:
        self.n_sent += 1
        self._cluster.send(conversation.next_request(self._clock.now))

    def _continue(self, request: Request) -> None:
        conversation = self._open[request.conversation]
        if conversation.has_ended:
            del self._open[conversation.number]
        else:
            self._clock.after(conversation.next_pause(), lambda: self._send(conversation))


class Clients:
    """A fixed number of clients without pauses. Each one sends the next turn that has waited longest.

    So does benchmarks/conversations.py, `run_many_conversations`, with a real server.
    """

    def __init__(self, clock: Clock, cluster: Cluster, conversations: list[Conversation], clients: int) -> None:
        self._clock = clock
        self._cluster = cluster
        self._waiting = deque(conversations)
        self._busy: dict[int, Conversation] = {}
        cluster.on_end = self._continue
        for _ in range(clients):
            clock.after(0.0, self._send)

    def _send(self) -> None:
        if self._waiting:
            conversation = self._waiting.popleft()
            self._busy[conversation.number] = conversation
            self._cluster.send(conversation.next_request(self._clock.now))

    def _continue(self, request: Request) -> None:
        conversation = self._busy.pop(request.conversation)
        if not conversation.has_ended:
            self._waiting.append(conversation)
        self._send()
