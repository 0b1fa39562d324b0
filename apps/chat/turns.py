"""What a person can do in a conversation: ask, edit a question, request another answer, continue, leave out, stop.

Joins the store, the running answers and the server. Knows nothing of pages.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from apps.chat.answering import AnsweringServer, Answers
from apps.chat.context import messages_for, oldest_to_leave_out, prompt_tokens_in
from apps.chat.messages import tokens_of
from apps.chat.store import ChatStore, NewAnswers
from llama_cpp_worker.sampling_params import SamplingParams
from torchserve_client.streaming import CompletionStream

ANSWER_SHARE = 4  # when turns are left out: a quarter of the window for the answer, or max_tokens if that is less


class ChatServer(AnsweringServer, Protocol):
    """A server that a page can use: torchserve_client/inference.py or openai_client.py."""

    @property
    def has_chat_template(self) -> bool: ...
    def chat(self, messages: list[dict[str, str]], params: SamplingParams) -> CompletionStream: ...
    def complete(self, prompt: str, params: SamplingParams) -> CompletionStream: ...


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """The sidebar's settings. `stored` are those that a conversation keeps.

    problem: what is wrong with them. If it is not empty, `params` are not the wanted ones, and nothing is sent.
    """

    params: SamplingParams
    is_raw: bool = False
    system_prompt: str = ""
    answers: int = 1
    stored: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Chat:
    """The actions, with the settings of one script run. Each one returns at once; threads generate the answers.

    All of them raise StoreError, and those with a message's id raise ConversationDeleted.
    """

    store: ChatStore
    answers: Answers
    server: ChatServer
    settings: ChatSettings

    def ask(self, conversation_id: str, question: str) -> str:
        """Asks at the end of a conversation, which is created if it does not exist. Returns its id.

        If the answer before it is unfinished, the new answers wait for that one.
        """
        if self.store.get(conversation_id) is None:
            conversation_id = self.store.create(self.settings.stored, conversation_id)
        new = self.store.ask(conversation_id, question, self.settings.is_raw, self.settings.answers)
        self._start(conversation_id, new)
        return conversation_id

    def edit_question(self, question_id: int, question: str) -> None:
        """Asks an edited question as a branch beside the original one."""
        conversation_id = self.store.conversation_id_of(question_id)
        new = self.store.ask_instead(question_id, question, self.settings.is_raw, self.settings.answers)
        self._start(conversation_id, new)

    def answer_again(self, answer_id: int) -> None:
        """Requests another answer beside this one, or in its place if it has no text."""
        conversation_id = self.store.conversation_id_of(answer_id)
        answer = self.answers.current(self.store.message(answer_id))
        if not answer.text:
            self.continue_answer(answer_id)
            return
        assert answer.parent_id is not None
        new = self.store.answer_again(answer.parent_id, answer.is_raw, self.settings.answers)
        self._start(conversation_id, new)

    def continue_answer(self, answer_id: int) -> None:
        """Continues an answer where it ended."""
        conversation_id = self.store.conversation_id_of(answer_id)
        if self.store.reopen(answer_id):  # else another tab was first
            self._start(conversation_id, NewAnswers([answer_id]))

    def leave_out_oldest(self, answer_id: int) -> None:
        """Marks as many of the oldest turns as not sent as necessary, and answers the last question again."""
        conversation_id = self.store.conversation_id_of(answer_id)
        path = self.store.tree(conversation_id).path(answer_id)
        # Some servers do not report their window: then it is estimated from the size of the prompt that did not fit.
        window = self.server.context_window or prompt_tokens_in(path[-1].problem) * 3 // 4
        room = min(window // ANSWER_SHARE, self.settings.params.max_tokens or window)
        self.store.leave_out(oldest_to_leave_out(path, self.settings.system_prompt, window, room))
        self.answer_again(answer_id)

    def send_all(self, message_id: int) -> None:
        """Sends all turns of the branch again that were left out."""
        path = self.store.tree(self.store.conversation_id_of(message_id)).path()
        self.store.leave_out([message.id for message in path if message.is_left_out], is_left_out=False)

    def show(self, message_id: int) -> None:
        """Shows the branch through this message."""
        self.store.conversation_id_of(message_id)
        self.store.show(message_id)

    def stop(self, message_ids: Iterable[int]) -> None:
        for message_id in message_ids:
            self.answers.stop(message_id)

    def _start(self, conversation_id: str, new: NewAnswers) -> None:
        self.store.save_settings(conversation_id, self.settings.stored)
        n_left_out = self.store.count_left_out(new.ids[0])
        for message_id in new.ids:
            message = self.answers.current(self.store.message(message_id))
            figures = {"left_out": n_left_out} | (
                {"earlier_tokens": tokens_of(message.figures)} if message.text else {}
            )
            if self.settings.problem:
                self.store.finish(message_id, message.text, "failed", self.settings.problem, figures)
            else:
                send = partial(self._send, conversation_id, message_id)
                self.answers.start(replace(message, figures=figures), send, self.server, new.waits_for)

    def _send(self, conversation_id: str, message_id: int) -> CompletionStream:
        """In the answer's thread: sends the conversation as it is at that time."""
        path = self.store.tree(conversation_id).path(message_id)
        question, answer = path[-2:]
        if answer.is_raw:
            return self.server.complete(question.text + answer.text, self.settings.params)
        return self.server.chat(messages_for(path, self.settings.system_prompt), self.settings.params)
