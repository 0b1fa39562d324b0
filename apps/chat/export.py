"""Conversations as JSON, which this program can import, and as Markdown for people.

Knows the store and nothing of pages. An import always creates new conversations; it never overwrites one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from apps.chat.messages import TITLE_LENGTH, Conversation, Message, clean_figures, random_id
from apps.chat.store import ChatStore

FORMAT = "llama-2-chatbot"
VERSION = 1


class ImportFailed(Exception):
    """The file was not made by `export_json`, or is damaged; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedConversation(Conversation):
    """A conversation with all its branches; every message stands after the one it follows."""

    messages: list[Message]
    id: str = ""  # an import makes a new one
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        ids: set[int | None] = {None}
        for message in self.messages:
            if message.parent_id not in ids:
                raise ValueError(f"message {message.id} comes before the one it follows")
            if not all(isinstance(message.figures.get(name, {}), dict) for name in ("usage", "timings")):
                raise ValueError(f"message {message.id} has wrong figures")
            ids.add(message.id)
        if self.leaf_id not in ids:
            raise ValueError(f"there is no message {self.leaf_id}")


@dataclass(frozen=True, slots=True)
class ExportFile:
    """The file's fields; their types, and those of a message, are what an import checks."""

    conversations: list[ExportedConversation]
    format: str = FORMAT
    version: int = VERSION


def export_json(store: ChatStore, conversation_ids: Sequence[str]) -> str:
    """The conversations with all their branches."""
    exported = []
    for conversation in map(store.get, conversation_ids):
        if conversation is not None:
            values = {field.name: getattr(conversation, field.name) for field in fields(conversation)}
            messages = list(store.tree(conversation.id).messages.values())
            exported.append(ExportedConversation(**values, messages=messages))
    return msgspec.json.format(msgspec.json.encode(ExportFile(exported)), indent=1).decode()


def import_json(store: ChatStore, text: str | bytes) -> list[str]:
    """Adds the conversations of an exported file and returns their new ids.

    Raises ImportFailed, and then adds nothing; raises StoreError.
    """
    try:
        document = msgspec.json.decode(text)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ImportFailed("The file is not an export of this chat: choose one that Export has made.")
        if (version := document.get("version")) != VERSION:
            raise ImportFailed(f"The file has version {str(version)[:20]!r}, and this program knows {VERSION}.")
        imported = [_cleaned(conversation) for conversation in msgspec.convert(document, ExportFile).conversations]
    except RecursionError as error:
        raise ImportFailed("The file is nested too deeply: choose one that Export has made.") from error
    except msgspec.DecodeError as error:
        raise ImportFailed(f"The file is damaged or not JSON ({error}): choose one that Export has made.") from error
    for conversation in imported:
        store.add(conversation, conversation.messages)
    return [conversation.id for conversation in imported]


def as_markdown(store: ChatStore, conversation_id: str) -> str:
    """The branch that is shown: the title, and each message under the name of its author."""
    conversation = store.get(conversation_id)
    if conversation is None:
        return ""
    date = datetime.fromtimestamp(conversation.created_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    parts = [f"# {conversation.title}", f"*{date}*"]
    for message in store.tree(conversation_id).path():
        parts += ["## You" if message.role == "user" else "## Assistant", message.text.strip()]
        if message.problem:
            parts.append(f"*{message.problem}*")
    return "\n\n".join(parts) + "\n"


def _cleaned(conversation: ExportedConversation) -> ExportedConversation:
    messages = [
        # An answer that was exported while it was generated has no reason of its end.
        replace(message, ended=message.ended or "cut", figures=clean_figures(message.figures))
        for message in conversation.messages
    ]
    settings = {name: value for name, value in conversation.settings.items() if not isinstance(value, dict | list)}
    title = conversation.title[:TITLE_LENGTH]
    return replace(conversation, id=random_id(), title=title, settings=settings, messages=messages)
