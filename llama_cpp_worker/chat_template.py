"""Chat templates: renders messages as the text that the model was trained with, byte for byte like Hugging Face.

Knows Jinja and Hugging Face's conventions (transformers 5.23, utils/chat_template_utils.py). Knows nothing of tokens
and llama.cpp. A template that writes calls of functions in a notation of tool_formats.py gets the definitions. For any
other one they become a part of the messages.

Not covered: documents, the templates' own options.
"""

import json
import secrets
from collections.abc import Sequence
from datetime import datetime
from functools import partial

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llama_cpp_worker.reasoning import Marks, marks_in, opens_reasoning
from llama_cpp_worker.tool_formats import (
    HERMES,
    PROBE,
    PROBE_TOOL,
    PROMPTED,
    CallFormat,
    Message,
    as_text,
    for_template,
    format_in,
)

# For a base model, which has no chat template: a plain format of questions and answers.
RAW_CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{ {'system': '', 'user': 'Question: ', 'assistant': 'Answer: '}[message.role] + message.content }}"
    "{{ '\n' if add_generation_prompt or not loop.last }}"
    "{%- endfor %}{{ 'Answer:' if add_generation_prompt }}"
)


class TemplateError(ValueError):
    """The model's chat template refuses these messages, or is not valid."""


class _Generation(Extension):
    """{% generation %} … {% endgeneration %}: marks the assistant's text for trainers; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it as a variable of the instance

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A model's template, or the raw one if `source` is None. Raises TemplateError if it is not valid Jinja.

    call_format: the notation of calls in the prompt and in the answer.
    reasoning_marks: those that the template knows. opens_reasoning: whether a prompt ends with the first one.
    """

    def __init__(self, source: str | None, bos: str, eos: str) -> None:
        self.is_raw = source is None
        self._special = {"bos_token": bos, "eos_token": eos}
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
        environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)  # Jinja's own escapes for HTML
        try:
            self._template = environment.from_string(RAW_CHAT_TEMPLATE if source is None else source)
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template cannot be read: {error}") from error
        native = format_in(self._attempt(for_template(PROBE, HERMES), [PROBE_TOOL]))
        self.call_format: CallFormat = native or PROMPTED
        self._writes_calls = native is not None
        self._has_system = "probe" in self._attempt([{"role": "system", "content": "probe"}, PROBE[0]], [])
        self.reasoning_marks: Marks | None = None if source is None else marks_in(source)
        begin = self._attempt([PROBE[0]], [])
        self.opens_reasoning = self.reasoning_marks is not None and opens_reasoning(begin, self.reasoning_marks)

    def render(
        self, messages: Sequence[Message], tools: Sequence[Message] = (), *, continues_answer: bool = True
    ) -> str:
        """The prompt for `messages` (dicts with `role` and `content`), up to the beginning of the answer.

        tools: definitions of functions that the model may call. Messages may have `tool_calls`, and the role tool.
        If the last message is the assistant's and `continues_answer`, the text ends with it, so that the model
        continues it. Blanks at its end stay. (Hugging Face drops them if the template does; a client that appends the
        continuation to the message would then have them twice.)
        Raises TemplateError.
        """
        is_continued = continues_answer and bool(messages) and "tool_calls" not in messages[-1]
        if self._writes_calls:
            messages = for_template(messages, self.call_format)
        else:
            messages, tools = as_text(messages, tools, self.call_format, has_system=self._has_system), ()
        if not is_continued or messages[-1]["role"] != "assistant":
            return self._render(messages, tools, add_generation_prompt=True)
        *earlier, unfinished = messages
        if not unfinished["content"].strip():
            return self._render(earlier, tools, add_generation_prompt=True)
        end = f"\ufdd0{secrets.token_hex(8)}\ufdd1"  # cannot occur in any message
        marked = unfinished | {"content": unfinished["content"] + end}
        text, found, _ = self._render([*earlier, marked], tools, add_generation_prompt=False).partition(end)
        if not found:
            raise TemplateError("the model's chat template leaves out the answer that should be continued")
        return text

    def _attempt(self, messages: Sequence[Message], tools: Sequence[Message]) -> str:
        """The prompt for messages that the template may refuse; then it is empty."""
        try:
            return self._render(messages, tools, add_generation_prompt=True)
        except TemplateError:
            return ""

    def _render(self, messages: Sequence[Message], tools: Sequence[Message], add_generation_prompt: bool) -> str:
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                # None, not left out: many templates test for none, and treat undefined as a list of tools.
                tools=list(tools) or None,
                documents=None,
                **self._special,
            )
        except Exception as error:  # a template is a program of somebody else, and can raise anything
            raise TemplateError(f"the model's chat template refuses these messages: {error}") from error


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
