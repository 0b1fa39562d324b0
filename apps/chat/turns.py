"""What a person can do in a conversation: ask, edit, delete, request another answer, continue, leave out, stop.

Joins the store, the running answers and the server. Knows nothing of pages.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from apps.chat.answering import AnsweringServer, Answers
from apps.chat.context import (
    TOKENS_PER_MESSAGE,
    characters_per_token,
    estimate,
    gauge,
    messages_for,
    oldest_to_leave_out,
    prompt_tokens_in,
    too_long,
)
from apps.chat.messages import Message, tokens_of
from apps.chat.origin import is_from, origin_of
from apps.chat.store import ChatStore, NewAnswers
from llama_cpp_worker.sampling_params import SamplingParams
from torchserve_client.http import RequestRefused
from torchserve_client.streaming import CompletionStream

ANSWER_SHARE = 4  # when turns are left out: a quarter of the window for the answer, or max_tokens if that is less


class ChatServer(AnsweringServer, Protocol):
    """A server that a page can use: torchserve_client/inference.py or openai_client.py."""

    @property
    def has_chat_template(self) -> bool: ...
    def chat(self, messages: list[dict[str, str]], params: SamplingParams) -> CompletionStream: ...
    def complete(self, prompt: str, params: SamplingParams) -> CompletionStream: ...
    def count_tokens(self, text: str) -> int | None: ...


class QuestionTooLong(Exception):
    """A question that the context window has no room for; the message says by how much."""


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
    second: ChatServer | None = None  # gets each question as well

    def ask(self, conversation_id: str, question: str, must_fit: bool = False) -> str:
        """Asks at the end of a conversation, which is created if it does not exist. Returns its id.

        If the answer before it is unfinished, the new answers wait for that one.
        must_fit: if the question is too long for the context window, nothing is stored or sent, and QuestionTooLong
        is raised. Without it the server refuses such a question, and the page offers to leave out earlier ones.
        """
        if must_fit:
            self._check_size(conversation_id, question)
        if self.store.get(conversation_id) is None:
            conversation_id = self.store.create(self.settings.stored, conversation_id)
        new = self.store.ask(conversation_id, question, self.settings.is_raw, self._n_answers)
        self._start(conversation_id, new)
        return conversation_id

    def _check_size(self, conversation_id: str, question: str) -> None:
        """Raises QuestionTooLong."""
        windows = [server.context_window for server in (self.server, self.second) if server and server.context_window]
        if not windows:
            return  # the server will say so
        conversation = self.store.get(conversation_id)
        path = self.store.tree(conversation_id).path() if conversation and not self.settings.is_raw else []
        counted = self.server.count_tokens(question)
        tokens = counted or int(len(question) / characters_per_token(path))
        free = min(windows) - gauge(path, self.settings.system_prompt, min(windows)).used - TOKENS_PER_MESSAGE
        if tokens >= free:
            about = "" if counted else "about "
            raise QuestionTooLong(
                f"Nothing was sent: the question with its files has {about}{tokens:,} tokens, and {max(0, free):,} of "
                f"the context window's {min(windows):,} are free, so {about}{tokens - free + 1:,} are too many. "
                "Attach less, or begin a new chat if this one is long."
            )

    def edit_question(self, question_id: int, question: str) -> None:
        """Asks an edited question as a branch beside the original one."""
        conversation_id = self.store.conversation_id_of(question_id)
        new = self.store.ask_instead(question_id, question, self.settings.is_raw, self._n_answers)
        self._start(conversation_id, new)

    def edit_answer(self, answer_id: int, text: str) -> None:
        """Shows an edited answer as a branch beside the original one; nothing is sent."""
        self.store.conversation_id_of(answer_id)
        self.store.edit_answer(answer_id, text)

    def delete_message(self, message_id: int) -> None:
        """Deletes an answer, or a question with its answers; those that are unfinished are stopped."""
        self.store.conversation_id_of(message_id)
        self.store.remove(message_id)

    def undelete_message(self, message_id: int) -> None:
        """Restores what `delete_message` has deleted."""
        self.store.restore(message_id)

    def answer_again(self, answer_id: int) -> None:
        """Requests another answer beside this one, or in its place if it has no text."""
        conversation_id = self.store.conversation_id_of(answer_id)
        answer = self.answers.current(self.store.message(answer_id))
        if not answer.text:
            self.continue_answer(answer_id)
            return
        assert answer.parent_id is not None
        new = self.store.answer_again(answer.parent_id, answer.is_raw, self._n_answers)
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

    @property
    def _n_answers(self) -> int:
        return self.settings.answers * (2 if self.second else 1)

    def _server_for(self, message: Message, number: int, of: int) -> ChatServer:
        """The server of answer `number` of a question: each server gets one half. One that goes on stays at its own."""
        if self.second is None:
            return self.server
        if "server" in message.figures:
            return self.server if is_from(message.figures, self.server) else self.second
        return self.second if 2 * number >= of > 1 else self.server

    def _start(self, conversation_id: str, new: NewAnswers) -> None:
        self.store.save_settings(conversation_id, self.settings.stored)
        n_left_out = self.store.count_left_out(new.ids[0])
        for number, message_id in enumerate(new.ids):
            message = self.answers.current(self.store.message(message_id))
            server = self._server_for(message, number, len(new.ids))
            figures = {"left_out": n_left_out, **origin_of(server)} | (
                {"earlier_tokens": tokens_of(message.figures)} if message.text else {}
            )
            figures |= {name: value for name, value in message.figures.items() if name == "thought_seconds"}
            if self.settings.problem:
                self.store.finish(message_id, message.text, "failed", self.settings.problem, figures)
            else:
                send = partial(self._send, conversation_id, message_id, server)
                self.answers.start(replace(message, figures=figures), send, server, new.waits_for)

    def _send(self, conversation_id: str, message_id: int, server: ChatServer) -> CompletionStream:
        """In the answer's thread: sends the conversation as it is at that time.

        Raises RequestRefused at once if what is before the question fills the context window already, by the server's
        own count. All else only the server knows; it refuses before it computes anything.
        """
        path = self.store.tree(conversation_id).path(message_id)
        question, answer = path[-2:]
        if answer.is_raw:
            return server.complete(question.text + answer.text, self.settings.params)
        before = gauge(path[:-2], self.settings.system_prompt, server.context_window)
        if before.window and before.used >= before.window and not before.is_estimate:
            size = before.used + estimate([question], "", characters_per_token(path))
            raise RequestRefused(too_long(size, before.window), 400, code="context_length_exceeded")
        return server.chat(messages_for(path, self.settings.system_prompt), self.settings.params)
