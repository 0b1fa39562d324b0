"""OpenAI's completions of prompts: the request's fields, and the shapes of the answers."""

from collections.abc import Sequence

from llama_cpp_worker.api.errors import ApiError, refusal
from llama_cpp_worker.api.fields import Fields
from llama_cpp_worker.api.openai_format import OpenAIFormat
from llama_cpp_worker.api.reply import Choice, Head
from llama_cpp_worker.api.request import (
    N_CHOICES,
    SAMPLING_NAMES,
    STREAM_NAMES,
    GenerationRequest,
    read_params,
    read_stream,
)
from llama_cpp_worker.api.texts import TextOrTokens, read_texts
from llama_cpp_worker.api.usage import CompletionLogprobs
from llama_cpp_worker.output import Delta, Text
from llama_cpp_worker.sampling_params import Bounds, SampledToken

LOGPROBS = Bounds(int, 0, 20)  # OpenAI takes 5, llama-server and vLLM take more
MAX_PROMPTS = 128

NAMES = SAMPLING_NAMES | STREAM_NAMES | {"model", "prompt", "suffix", "echo", "n", "logprobs"}


def parse(fields: Fields) -> GenerationRequest:
    """Raises ApiError, which names the parameter."""
    fields.check_names(NAMES)
    fields.text("model")
    prompts = read_prompts(fields)
    suffix = fields.text("suffix") or None
    echo = fields.flag("echo")
    if suffix and (echo or not all(isinstance(prompt, str) for prompt in prompts)):
        raise refusal("suffix", "is only possible without echo, and after a prompt that is a text")
    return GenerationRequest(
        params=read_params(fields, fewest_tokens=0),
        prompts=prompts,
        suffix=suffix,
        echo=echo,
        n=fields.number("n", N_CHOICES) or 1,
        logprobs=fields.number("logprobs", LOGPROBS),
        **read_stream(fields),
    )


def read_prompts(fields: Fields) -> list[TextOrTokens]:
    """The field `prompt`. Raises ApiError with this name as `param`; its message has the place."""
    try:
        return read_texts(fields.get("prompt"), "prompt", MAX_PROMPTS)
    except ApiError as error:
        error.param = "prompt"
        raise


class CompletionFormat(OpenAIFormat):
    """Completion objects, whole or as the events of a stream.

    An echoed prompt is the first event. With log probabilities, it comes with those of its tokens, after the prefill.
    """

    def __init__(self, request: GenerationRequest, head: Head) -> None:
        super().__init__(request, head, "cmpl", "text_completion")
        self._logprobs: dict[int, CompletionLogprobs] = {}  # by the index of the choice

    def begin(self, choice: Choice) -> str:
        is_known = self._request.echo and self._request.logprobs is None
        return self.event(_choice(choice, choice.prompt_text)) if is_known else ""

    def progress(self, choice: Choice, progress: dict[str, float]) -> str:
        return self.event(_choice(choice, ""), prompt_progress=progress)

    def update(
        self, choice: Choice, deltas: Sequence[Delta], tokens: Sequence[SampledToken], timings: dict[str, object]
    ) -> str:
        text = "".join(delta.text for delta in deltas if isinstance(delta, Text))
        if self._owes_prompt(choice):
            text = choice.prompt_text + text
        return self.event(_choice(choice, text, self._tokens(choice, tokens)), **timings)

    def end_choice(self, choice: Choice, timings: dict[str, object]) -> str:
        prompt = self.update(choice, [], [], {}) if self._owes_prompt(choice) else ""
        return prompt + self.event(_choice(choice, "", finish_reason=choice.finish_reason), **timings)

    def whole(self, choices: Sequence[Choice], tokens: Sequence[Sequence[SampledToken]]) -> str:
        objects = [
            _choice(
                choice,
                choice.prompt_text + choice.output.text,
                self._tokens(choice, sampled),
                choice.finish_reason,
            )
            for choice, sampled in zip(choices, tokens, strict=True)
        ]
        return self.body(objects, choices)

    def _owes_prompt(self, choice: Choice) -> bool:
        return self._request.echo and self._request.logprobs is not None and choice.index not in self._logprobs

    def _tokens(self, choice: Choice, tokens: Sequence[SampledToken]) -> dict[str, object] | None:
        """The log probabilities of new tokens; before the first ones, those of an echoed prompt."""
        if self._request.logprobs is None:
            return None
        owes_prompt = self._owes_prompt(choice)
        logprobs = self._logprobs.setdefault(choice.index, CompletionLogprobs())
        if owes_prompt:
            return logprobs.of([*choice.request.prompt_tokens, *tokens], first=choice.first_piece)
        return logprobs.of(tokens)


def _choice(
    choice: Choice, text: str, logprobs: dict[str, object] | None = None, finish_reason: str | None = None
) -> dict[str, object]:
    return {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
