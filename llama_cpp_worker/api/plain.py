"""The original call of a TorchServe model: a prompt or messages in, plain text out."""

from collections.abc import Sequence

from llama_cpp_worker.api import chat, completions
from llama_cpp_worker.api.chat import ChatFormat, read_chat
from llama_cpp_worker.api.completions import CompletionFormat, read_prompts
from llama_cpp_worker.api.errors import refusal
from llama_cpp_worker.api.fields import Fields
from llama_cpp_worker.api.reply import TEXT_TYPE, Choice, Format, Head
from llama_cpp_worker.api.request import SAMPLING_NAMES, STREAM_NAMES, GenerationRequest, read_params, read_stream
from llama_cpp_worker.sampling_params import SampledToken

NAMES = SAMPLING_NAMES | STREAM_NAMES | {"model", "prompt", "messages", "echo"}
ELSEWHERE = {"v1/chat/completions": chat.NAMES, "v1/completions": completions.NAMES}


def parse(fields: Fields) -> GenerationRequest:
    """Raises ApiError, which names the parameter."""
    fields.check_names(NAMES, ELSEWHERE)
    if fields.get("messages") is not None:
        if fields.get("prompt") is not None:
            raise refusal("messages", "send either prompt or messages, not both")
        if fields.flag("echo"):
            raise refusal("echo", "is not possible for a chat")
        return read_chat(fields)
    prompts = read_prompts(fields)
    if len(prompts) > 1:
        raise refusal("prompt", "several prompts are possible at v1/completions only")
    echo = fields.flag("echo", default=isinstance(prompts[0], str))
    return GenerationRequest(params=read_params(fields), prompts=prompts, echo=echo, **read_stream(fields))


def make_format(request: GenerationRequest, head: Head) -> Format:
    """Plain text, or the events of OpenAI's streams."""
    if not request.stream:
        return TextFormat(request, head)
    return ChatFormat(request, head) if request.messages else CompletionFormat(request, head)


class TextFormat(CompletionFormat):
    """A whole answer as text; an error is a JSON object."""

    def __init__(self, request: GenerationRequest, head: Head) -> None:
        super().__init__(request, head)
        self.content_type = TEXT_TYPE

    def whole(self, choices: Sequence[Choice], tokens: Sequence[Sequence[SampledToken]]) -> str:
        return choices[0].prompt_text + choices[0].output.text
