"""What a session's chat input and buttons have asked for, and the granting of it.

A click ends the run that is under way, at that run's next Streamlit call, and with it goes what that run was told and
had not looked at: a question sent a moment before would be lost. Callbacks come before all else in a run, so they note
wishes here, and whichever run gets that far grants them. This module knows nothing of Streamlit, so nothing in it is
ever cut off.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from apps.chat.messages import new_id
from apps.chat.turns import Chat, Settings

NEW = ""  # a conversation without a question


@dataclass(frozen=True, slots=True)
class Wish:
    """actions: "ask" (question, conversation), "stop" (messages), and those on one message (Granter)."""

    action: str
    arguments: tuple[Any, ...]


@dataclass(slots=True)
class Wishes:
    """`to_show` is a conversation's id, or NEW: what the page shows until its URL says so; then it is None again.

    Until then the browser may send clicks with the URL of before.
    """

    to_show: str | None = None
    waiting: deque[Wish] = field(default_factory=deque)

    def note(self, action: str, *arguments: Any) -> None:
        self.waiting.append(Wish(action, arguments))

    def note_question(self, question: str, opened: str) -> str:
        """A new conversation has its id from now on: what is clicked next may be meant for it, or lead away."""
        conversation_id = opened if self.to_show is None else self.to_show
        if conversation_id == NEW:
            conversation_id = self.to_show = new_id()
        self.note("ask", question, conversation_id)
        return conversation_id


@dataclass(frozen=True, slots=True)
class Granter:
    wishes: Wishes
    chat: Chat
    settings: Settings

    def grant(self, taken: Wish) -> None:
        """Raises StoreError."""
        if taken.action == "ask":
            self._ask(*taken.arguments)
        elif taken.action == "stop":
            self.chat.stop(taken.arguments)
        else:
            conversation = self.chat.store.conversation_of(taken.arguments[0])
            if conversation:  # else another tab has deleted it: the page says so
                self._change(conversation.id, taken.action, *taken.arguments)

    def _ask(self, question: str, conversation_id: str) -> None:
        """In this conversation, which begins with it if there is none of this id."""
        if self.chat.store.get(conversation_id) is None:
            begun = self.chat.store.create(self.settings.kept, conversation_id)
            if self.wishes.to_show in (None, conversation_id):
                self.wishes.to_show = begun
            conversation_id = begun
        self.chat.ask(conversation_id, question, self.settings)

    def _change(self, conversation_id: str, action: str, message_id: int, text: str = "") -> None:
        chat, settings = self.chat, self.settings
        message = chat.answers.with_unkept(chat.store.message(message_id))
        if action == "show":
            chat.store.show(message.id)
        elif action == "again":
            chat.answer_again(conversation_id, message, settings)
        elif action == "continue":
            chat.go_on(conversation_id, message, settings)
        elif action == "leave out":
            chat.leave_out_oldest(conversation_id, message, settings)
        elif action == "send all":
            chat.send_all(conversation_id)
        elif action == "resend":
            chat.ask_instead(conversation_id, message.id, text, settings)
        elif action == "anew":
            assert message.parent_id is not None
            self.wishes.to_show = new_id()
            self._ask(chat.store.message(message.parent_id).text, self.wishes.to_show)
        else:
            raise ValueError(f"there is no action {action!r}")
