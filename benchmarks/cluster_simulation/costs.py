"""What the steps of one node's engine cost. Every value names its source. Knows nothing of requests and routing.

The figures are of the demo model (SmolLM2-135M, Q8_0) on 2 x86-64 cores. Only their ratios matter for a comparison of
routings. A larger model needs other figures: prefill and decode become slower together.
"""

from dataclasses import dataclass

import numpy as np

from llama_cpp_worker.chunk_size import aligned, largest_chunk


@dataclass(frozen=True, slots=True)
class Costs:
    """The cost model of a node. Times are in seconds, lengths in tokens."""

    # docs/measurements.md, "Types", Q8_0: 143 tokens/s for 1 client, 281 for 8. docs/llama-cpp-facts.md, fact 8:
    # 2 to 7 sequences cost nearly as much as 8. A value for each number of sequences; so their number is the slots.
    decode_step_seconds: tuple[float, ...] = (1 / 143, *7 * (8 / 281,))

    # docs/measurements.md, "Chunks of a prompt", flash attention on: tokens/s by chunk, at two depths.
    chunk_tokens: tuple[int, ...] = (16, 32, 64, 96, 128, 256, 512)
    chunk_tokens_per_second: tuple[float, ...] = (562, 674, 760, 768, 722, 719, 601)
    deep_chunk_tokens_per_second: tuple[float, ...] = (99, 98, 142, 177, 216, 228, 231)
    depth: int = 3000  # of the second row

    n_batch: int = 512  # model-config.yaml: tokens of a step, at most

    # docs/llama-cpp-facts.md, fact 10: 23 kB a token, saved at 250 to 500 MB/s, restored at 5 to 9 GB/s.
    saved_token_seconds: float = 23e3 / 375e6
    restored_token_seconds: float = 23e3 / 7e9

    # llama_cpp_handler.py: a tenth of the free memory is for saved sequences. Assumed: 20 GB are free.
    saved_tokens: int = int(20e9 / 10 / 23e3)

    # Assumed: 10 ms for HTTP, TorchServe, the tokenizer and the cluster's entry, before the engine has the request.
    request_seconds: float = 0.010

    # cluster/application.py: a node accepts requests for all of its slots, and half as many more, which wait there.
    waiting_per_slot: float = 0.5

    @property
    def slots(self) -> int:
        return len(self.decode_step_seconds)

    @property
    def max_requests(self) -> int:
        """How many requests a node accepts at the same time; it is full then."""
        return int(self.slots * (1 + self.waiting_per_slot))


class StepTimes:
    """The duration of each step, interpolated between the measured points of `costs`."""

    def __init__(self, costs: Costs) -> None:
        self.costs = costs
        points = np.array([0, *costs.chunk_tokens])
        lengths = np.arange(costs.n_batch + 1)
        shallow = points / [1.0, *costs.chunk_tokens_per_second]
        deep = points / [1.0, *costs.deep_chunk_tokens_per_second]
        self._chunk: list[float] = np.interp(lengths, points, shallow).tolist()
        self._chunk_and_depth: list[float] = (np.interp(lengths, points, deep - shallow) / costs.depth).tolist()

    def decode(self, sequences: int) -> float:
        """Seconds of a step that decodes one token of each sequence."""
        return self.costs.decode_step_seconds[sequences - 1]

    def prefill(self, tokens: int, depth: int) -> float:
        """Seconds for a chunk of at most `n_batch` tokens behind `depth` others. Linear in the depth."""
        return self._chunk[tokens] + depth * self._chunk_and_depth[tokens]

    def next_chunk(self, tokens: int, depth: int) -> int:
        """How many of a prompt's `tokens` one step computes: all of them, or as many as it has time for."""
        most = min(tokens, self.costs.n_batch)
        affordable = min(most, largest_chunk(depth, most / self.prefill(most, depth)))
        return tokens if affordable == tokens else aligned(affordable, self.costs.n_batch)
