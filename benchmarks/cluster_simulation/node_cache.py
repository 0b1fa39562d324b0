"""What one node has cached: the sequences in its slots, and saved ones. A model of llama_cpp_worker/prefix_cache.py.

A conversation is a number and the length of its computed tokens: every later prompt of it begins with them. All
conversations begin with the same system prompt. Knows nothing of time and the schedule.
"""

from collections import OrderedDict

from benchmarks.cluster_simulation.costs import Costs


class NodeCache:
    """The slots without a request keep their last sequence. A sequence that has to leave its slot is saved.

    When the saved sequences need more than `costs.saved_tokens`, the oldest one is evicted.
    """

    def __init__(self, costs: Costs, n_system: int) -> None:
        self._costs = costs
        self._n_system = n_system  # tokens of the system prompt
        self.clear()

    def clear(self) -> None:
        """The node has died: nothing is cached."""
        self._n_running = 0
        self._idle: OrderedDict[int, int] = OrderedDict()  # tokens by conversation; the least recently used is first
        self._saved: OrderedDict[int, int] = OrderedDict()
        self._n_saved = 0
        self._has_system = False

    def assign(self, conversation: int, n_prompt: int) -> tuple[int, float]:
        """Gives a conversation a slot. Returns how many tokens of its prompt are cached, and the seconds of copies.

        As in llama_cpp_worker, the last token of a prompt is always computed.
        """
        seconds = 0.0
        if conversation in self._idle:
            n_computed = self._idle.pop(conversation)
        else:
            n_computed = self._saved.pop(conversation, 0)
            self._n_saved -= n_computed
            seconds += n_computed * self._costs.restored_token_seconds
            if self._n_running + len(self._idle) == self._costs.slots:
                seconds += self._save_oldest()
        self._n_running += 1
        n_system = self._n_system if self._has_system else 0
        self._has_system = True
        return min(max(n_computed, n_system), n_prompt - 1), seconds

    def release(self, conversation: int, n_computed: int) -> None:
        """A request has ended; its tokens stay in the slot."""
        self._n_running -= 1
        self._idle[conversation] = n_computed

    def _save_oldest(self) -> float:
        conversation, n_computed = self._idle.popitem(last=False)
        self._saved[conversation] = n_computed
        self._n_saved += n_computed
        while self._n_saved > self._costs.saved_tokens:
            self._n_saved -= self._saved.popitem(last=False)[1]
        return n_computed * self._costs.saved_token_seconds
