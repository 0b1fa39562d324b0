"""Conversations as JSON, to be read back by this program anywhere, and as Markdown, to be read by people.

Knows the store and nothing of pages. An imported conversation is always a new one, so nothing is ever overwritten.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from apps.chat.messages import Conversation, Message, new_id
from apps.chat.store import ChatStore

FORMAT = "llama-2-chatbot"
VERSION = 1


class ImportFailed(Exception):
    """The file is not what `export_json` writes; the message says what is wrong with it."""


def export_json(store: ChatStore, conversation_ids: Sequence[str]) -> str:
    """The conversations with all their branches."""
    conversations = []
    for conversation_id in conversation_ids:
        conversation = store.get(conversation_id)
        if conversation is not None:
            messages = [asdict(message) for message in store.tree(conversation_id).messages.values()]
            conversations.append(asdict(conversation) | {"messages": messages})
    document = {"format": FORMAT, "version": VERSION, "conversations": conversations}
    return json.dumps(document, ensure_ascii=False, indent=1)


def import_json(store: ChatStore, text: str | bytes) -> list[str]:
    """Adds the conversations of an exported file and returns their new ids; raises ImportFailed and adds nothing."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ImportFailed(f"The file is not JSON ({error}): choose one that Export has made.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ImportFailed("The file is not an export of this chat: choose one that Export has made.")
    if document.get("version") != VERSION:
        raise ImportFailed(f"The file has version {document.get('version')}, and this program reads {VERSION}.")
    try:
        read = [_read_conversation(entry) for entry in document["conversations"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ImportFailed(f"The file is damaged ({error!r}): export it again.") from error
    for conversation, messages in read:
        store.add(conversation, messages)
    return [conversation.id for conversation, _ in read]


def as_markdown(store: ChatStore, conversation_id: str) -> str:
    """The branch that is shown: a heading, and each message under who said it."""
    conversation = store.get(conversation_id)
    if conversation is None:
        return ""
    said = datetime.fromtimestamp(conversation.created_at, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    parts = [f"# {conversation.title}", f"*{said}*"]
    for message in store.tree(conversation_id).path():
        parts += ["## You" if message.role == "user" else "## Assistant", message.text.strip()]
        if message.problem:
            parts.append(f"*{message.problem}*")
    return "\n\n".join(parts) + "\n"


def _read_conversation(entry: dict[str, Any]) -> tuple[Conversation, list[Message]]:
    messages: dict[int, Message] = {}
    for fields in entry["messages"]:
        message = _read_message(fields)
        if message.parent_id is not None and message.parent_id not in messages:
            raise ValueError(f"message {message.id} comes before the one it follows")
        messages[message.id] = message
    leaf = entry["leaf_id"]
    if leaf is not None and leaf not in messages:
        raise ValueError(f"there is no message {leaf}")
    conversation = Conversation(
        id=new_id(),
        title=_of_type(entry["title"], str),
        settings=_of_type(entry["settings"], dict),
        leaf_id=leaf,
        created_at=float(entry["created_at"]),
        updated_at=float(entry["updated_at"]),
    )
    return conversation, list(messages.values())


def _read_message(fields: dict[str, Any]) -> Message:
    role, ended = fields["role"], _of_type(fields["ended"], str)
    if role not in ("user", "assistant"):
        raise ValueError(f"there is no role {role!r}")
    return Message(
        id=_of_type(fields["id"], int),
        parent_id=fields["parent_id"],
        role=role,
        text=_of_type(fields["text"], str),
        ended=ended or "cut",  # it was exported while it was written
        problem=_of_type(fields["problem"], str),
        figures=_of_type(fields["figures"], dict),
        is_raw=bool(fields["is_raw"]),
        is_left_out=bool(fields["is_left_out"]),
        together=fields["together"],
        created_at=float(fields["created_at"]),
    )


def _of_type(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return value
