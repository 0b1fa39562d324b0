"""What can be done in a conversation: ask, ask instead, answer again, continue, leave out, stop.

Joins the store, the answers being written and the server. Knows nothing of pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from apps.chat.answering import Answers, Server
from apps.chat.context import left_out, messages_for, oldest_to_leave_out, told_tokens
from apps.chat.messages import Message
from apps.chat.store import ChatStore
from llama_cpp_worker.sampling_params import SamplingParams
from torchserve_client.inference import Answer

ROOM_SHARE = 4  # when turns are left out: a quarter of the window for the answer, or max_tokens if that is less


class ChatServer(Server, Protocol):
    @property
    def has_chat_template(self) -> bool: ...
    def chat(self, messages: list[dict[str, str]], params: SamplingParams, tells_progress: bool = ...) -> Answer: ...
    def complete(self, prompt: str, params: SamplingParams, tells_progress: bool = ...) -> Answer: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """How to ask. `sampling` holds SamplingParams' arguments, still unchecked; `kept` is what a conversation keeps."""

    is_raw: bool
    system_prompt: str
    sampling: dict[str, Any]
    answers: int = 1
    kept: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chat:
    """Every method returns at once; the answers come from threads of their own."""

    store: ChatStore
    answers: Answers
    server: ChatServer

    def ask(self, conversation_id: str, question: str, settings: Settings) -> None:
        """A question at the end; if an answer is still being written there, its own answers wait for that one."""
        ids = self.store.ask(conversation_id, question, settings.is_raw, settings.answers)
        path = self.store.tree(conversation_id).path(ids[0])  # read now: the question's place is taken
        after = path[-3].id if len(path) > 2 and not path[-3].ended else None
        self._begin(conversation_id, ids, settings, after)

    def ask_instead(self, conversation_id: str, question_id: int, question: str, settings: Settings) -> None:
        """An earlier question in other words, as a branch of its own."""
        ids = self.store.ask_instead(question_id, question, settings.is_raw, settings.answers)
        self._begin(conversation_id, ids, settings)

    def answer_again(self, conversation_id: str, answer: Message, settings: Settings) -> None:
        """Another answer beside this one, or in its place if it has no text."""
        if answer.text:
            assert answer.parent_id is not None
            ids = self.store.answer_again(answer.parent_id, answer.is_raw, settings.answers)
        else:
            ids = [answer.id] if self.store.reopen(answer.id) else []
        self._begin(conversation_id, ids, settings)

    def go_on(self, conversation_id: str, answer: Message, settings: Settings) -> None:
        """Continues an answer where it ended."""
        if self.store.reopen(answer.id):
            self._begin(conversation_id, [answer.id], settings, begun=answer)

    def leave_out_oldest(self, conversation_id: str, answer: Message, settings: Settings) -> None:
        """Marks as many of the oldest turns as not sent as it takes, and answers the last question again."""
        window = self.server.context_window or told_tokens(answer.problem) * 3 // 4  # some servers do not tell it
        room = min(window // ROOM_SHARE, settings.sampling["max_tokens"])
        path = self.store.tree(conversation_id).path(answer.id)
        self.store.leave_out(oldest_to_leave_out(path, settings.system_prompt, window, room))
        self.answer_again(conversation_id, answer, settings)

    def send_all(self, conversation_id: str) -> None:
        """Sends the turns again that were left out."""
        path = self.store.tree(conversation_id).path()
        self.store.leave_out([message.id for message in path if message.is_left_out], is_left_out=False)

    def stop(self, message_ids: Sequence[int]) -> None:
        for message_id in message_ids:
            self.answers.stop(message_id)

    def _begin(
        self,
        conversation_id: str,
        ids: Sequence[int],
        settings: Settings,
        after: int | None = None,
        begun: Message | None = None,
    ) -> None:
        self.store.save_settings(conversation_id, settings.kept)
        path = self.store.tree(conversation_id).path()
        for message_id in ids:
            request = partial(self._request, conversation_id, message_id, settings)
            self.answers.start(message_id, request, self.server, {"left_out": left_out(path)}, begun, after)

    def _request(self, conversation_id: str, message_id: int, settings: Settings) -> Answer:
        """In the answer's thread: the conversation as it is now. Raises InvalidParameter."""
        params = SamplingParams(**settings.sampling)
        path = self.store.tree(conversation_id).path(message_id)
        question, answer = path[-2:]
        if answer.is_raw:
            return self.server.complete(question.text + answer.text, params, tells_progress=True)
        return self.server.chat(messages_for(path, settings.system_prompt), params, tells_progress=True)
