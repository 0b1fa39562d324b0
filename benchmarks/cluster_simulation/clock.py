"""The clock of the simulation: actions in the order of their times. Knows nothing of what they do."""

import heapq
import itertools
from collections.abc import Callable


class Clock:
    """`now` is the simulated time in seconds. Actions of the same time run in the order in which they were added."""

    def __init__(self) -> None:
        self.now = 0.0
        self._actions: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        """Runs `action` when the time is `seconds`."""
        assert seconds >= self.now, "an action in the past"
        heapq.heappush(self._actions, (seconds, next(self._numbers), action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self.at(self.now + seconds, action)

    def run(self) -> None:
        """Runs every action, also those that actions add."""
        while self._actions:
            self.now, _, action = heapq.heappop(self._actions)
            action()
