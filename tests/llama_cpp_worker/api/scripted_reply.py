"""A reply of one choice whose text is taken apart as a test says, without a model: for the shapes of answers."""

import json
from typing import Any

from llama_cpp_worker.api.fields import read_body
from llama_cpp_worker.api.reply import Head, Reply
from llama_cpp_worker.api.routes import FAMILIES
from llama_cpp_worker.output import Delta
from llama_cpp_worker.prompt import Prepared
from llama_cpp_worker.sampling_params import SampledToken

N_PROMPT_TOKENS = 7
N_CACHED_TOKENS = 2


class ScriptedParser:
    """Returns what a test has put into `deltas`."""

    def __init__(self) -> None:
        self.deltas: list[Delta] = []

    def push(self, text: str) -> list[Delta]:
        deltas, self.deltas = self.deltas, []
        return deltas

    def finish(self) -> list[Delta]:
        return []


class ScriptedReply:
    """`say` and `end` return the next piece of the answer."""

    def __init__(self, path: str, body: dict[str, Any]) -> None:
        family = FAMILIES[path]
        api_request = family.parse(read_body({"body": body}))
        self._parser = ScriptedParser()
        prepared = Prepared(
            prompts=[list(range(N_PROMPT_TOKENS))],
            texts=[""],
            first_pieces=[b""],
            constraint=None,
            make_parser=lambda: self._parser,
        )
        self.reply = Reply(
            api_request, prepared, family.make_format, Head("id-1", "tiny", "fp_1", created=1_700_000_000)
        )
        (self.request,) = self.reply.requests
        self.request.n_cached = N_CACHED_TOKENS

    def say(self, *deltas: Delta, tokens: tuple[SampledToken, ...] = ()) -> str:
        """Each call is one token of the completion."""
        self._parser.deltas += deltas
        self.request.completion.append(0)
        for token in tokens:
            self.request.assembler.push(token.chosen.piece, token)
        return self.reply.next_piece()

    def end(self, reason: str = "stop") -> str:
        self.request.finish_reason, self.request.finished_at = reason, 1.0
        return self.reply.next_piece()

    def fail(self, message: str) -> str:
        self.request.error = message
        return self.reply.next_piece()


def read_events(text: str) -> list[dict[str, Any]]:
    """The events of a stream, each with its name in the line `event:` and as its type."""
    blocks = text.split("\n\n")
    assert blocks.pop() == "", "the last event ends with an empty line"
    events = []
    for block in blocks:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events
