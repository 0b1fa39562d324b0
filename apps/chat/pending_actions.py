"""The actions that a session's chat input and buttons have queued.

Streamlit aborts the running script when anything is clicked; whatever it had not processed yet is lost. Callbacks
therefore only queue an action; the next script run that reaches `run_pending()` carries it out. Streamlit
aborts a run only inside its own functions, and this module calls none of them.
"""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from apps.chat.database import StoreError
from apps.chat.messages import random_id
from apps.chat.store import ConversationDeleted
from apps.chat.turns import Chat

PendingAction = Callable[[Chat], object]  # a Chat has the sidebar's settings at the time of the run

NEW = ""  # in place of a conversation's id: a conversation that has no question yet


class QuestionNotStored(StoreError):
    """`question` is the text that the person typed: the page shows it, so that it is not lost."""

    def __init__(self, question: str, reason: StoreError) -> None:
        super().__init__(str(reason))
        self.question = question


@dataclass(slots=True)
class PendingActions:
    """to_open: the conversation to show although the URL names another one; None once the URL names it.

    in_address: the one that was put into the URL last; None once a click had it. Until then the browser may send clicks
    with the old URL, and still change it. is_own_run: the next run has no click's URL, but that of the run before it.
    """

    to_open: str | None = None
    in_address: str | None = None
    is_own_run: bool = False
    _queue: deque[PendingAction] = field(default_factory=deque)

    def add(self, action: PendingAction) -> None:
        self._queue.append(action)

    def add_question(self, question: str, opened: str, must_fit: bool = False) -> str:
        """Queues a question and returns its conversation's id. must_fit: see Chat.ask().

        A new conversation gets its id now: the next click may already belong to it, or lead away from it.
        """
        conversation_id = opened if self.to_open is None else self.to_open
        if conversation_id == NEW:
            conversation_id = self.to_open = random_id()
        self.add(partial(self._ask, question, conversation_id, must_fit))
        return conversation_id

    def run_pending(self, chat: Chat) -> None:
        """Carries out all queued actions.

        Raises StoreError and QuestionTooLong; the actions after the failed one stay queued.
        """
        while action := self._take():
            with suppress(ConversationDeleted):  # in another tab; the page says so
                action(chat)

    def _take(self) -> PendingAction | None:
        with suppress(IndexError):  # two script runs of a session overlap for a moment, so a check before is no help
            return self._queue.popleft()
        return None

    def _ask(self, question: str, conversation_id: str, must_fit: bool, chat: Chat) -> None:
        try:
            used_id = chat.ask(conversation_id, question, must_fit)
        except StoreError as error:
            raise QuestionNotStored(question, error) from error
        if used_id != conversation_id and self.to_open in (None, conversation_id):
            self.to_open = used_id
