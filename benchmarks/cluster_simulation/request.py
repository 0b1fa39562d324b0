"""One turn of a conversation as a request, and what happened to it. Knows nothing of nodes' insides."""

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Request:
    """Lengths are in tokens, times in seconds of the simulation.

    The prompt begins with all earlier turns. The node writes `n_cached` to `ended_at`; -1 and nan: not yet. Requests
    that a node's death has cut are sent again as they are, so these are the values of the last attempt.
    """

    conversation: int
    n_prompt: int
    n_completion: int
    sent_at: float
    n_cached: int = -1
    n_to_prefill: int = -1
    n_to_decode: int = -1
    first_token_at: float = float("nan")
    ended_at: float = float("nan")
    node: int = -1
    moved: bool = False  # the conversation's turn before this one was answered by another node
    n_cuts: int = 0

    @property
    def first_token_seconds(self) -> float:
        return self.first_token_at - self.sent_at
