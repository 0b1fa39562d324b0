"""Conversations as JSON, which this program can import, and as Markdown for people.

Knows the store and nothing of pages. An import always creates new conversations; it never overwrites one.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from apps.chat.messages import NOT_STORED, TITLE_LENGTH, Conversation, Message, clean_figures, random_id
from apps.chat.store import ChatStore

FORMAT = "llama-2-chatbot"
VERSION = 1
LATEST_TIME = 1e11  # seconds since 1970: year 5138; Python cannot print times after the year 9999


class ImportFailed(Exception):
    """The file was not made by `export_json`, or is damaged; the message says what is wrong with it."""


def export_json(store: ChatStore, conversation_ids: Sequence[str]) -> str:
    """The conversations with all their branches."""
    conversations = []
    for conversation_id in conversation_ids:
        conversation = store.get(conversation_id)
        if conversation is not None:
            messages = [_message_fields(message) for message in store.tree(conversation_id).messages.values()]
            conversations.append(asdict(conversation) | {"messages": messages})
    document = {"format": FORMAT, "version": VERSION, "conversations": conversations}
    return json.dumps(document, ensure_ascii=False, indent=1)


def import_json(store: ChatStore, text: str | bytes) -> list[str]:
    """Adds the conversations of an exported file and returns their new ids.

    Raises ImportFailed, and then adds nothing; raises StoreError.
    """
    try:
        document = json.loads(text)
    except RecursionError as error:
        raise ImportFailed("The file is nested too deeply: choose one that Export has made.") from error
    except ValueError as error:
        raise ImportFailed(f"The file is not JSON ({error}): choose one that Export has made.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ImportFailed("The file is not an export of this chat: choose one that Export has made.")
    if document.get("version") != VERSION:
        raise ImportFailed(
            f"The file has version {str(document.get('version'))[:20]!r}, and this program knows {VERSION}."
        )
    try:
        imported = [_conversation_from(entry) for entry in document["conversations"]]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise ImportFailed(f"The file is damaged ({error!r}): export it again.") from error
    for conversation, messages in imported:
        store.add(conversation, messages)
    return [conversation.id for conversation, _ in imported]


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


def _message_fields(message: Message) -> dict[str, Any]:
    return {name: value for name, value in asdict(message).items() if name not in NOT_STORED}


def _conversation_from(entry: dict[str, Any]) -> tuple[Conversation, list[Message]]:
    messages: dict[int, Message] = {}
    for fields in entry["messages"]:
        message = _message_from(fields)
        if message.parent_id is not None and message.parent_id not in messages:
            raise ValueError(f"message {message.id} comes before the one it follows")
        messages[message.id] = message
    leaf = entry["leaf_id"]
    if leaf is not None and leaf not in messages:
        raise ValueError(f"there is no message {leaf}")
    conversation = Conversation(
        id=random_id(),
        title=_text(entry["title"])[:TITLE_LENGTH],
        settings={name: value for name, value in entry["settings"].items() if not isinstance(value, dict | list)},
        leaf_id=leaf,
        created_at=_time(entry["created_at"]),
        updated_at=_time(entry["updated_at"]),
    )
    return conversation, list(messages.values())


def _message_from(fields: dict[str, Any]) -> Message:
    values = {name: check(fields[name]) for name, check in CHECKS.items()}
    values["ended"] = values["ended"] or "cut"  # it was exported while it was generated
    return Message(id=_of_type(fields["id"], int), parent_id=fields["parent_id"], **values)


def _role(value: Any) -> str:
    if value not in ("user", "assistant"):
        raise ValueError(f"there is no role {str(value)[:80]!r}")
    return str(value)


def _figures(value: Any) -> dict[str, Any]:
    for name in ("usage", "timings"):
        _of_type(value.get(name, {}), dict)
    return clean_figures(value)


def _text(value: Any) -> str:
    text: str = _of_type(value, str)
    if text != text.encode("utf-8", "ignore").decode():
        raise ValueError("a text has half a character")  # of a surrogate pair, which SQLite and Streamlit refuse
    return text


def _time(value: Any) -> float:
    if not 0 <= float(value) <= LATEST_TIME:
        raise ValueError(f"{value!r} is no time")
    return float(value)


def _of_type(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{str(value)[:80]!r} is not of type {kind.__name__}")
    return value


CHECKS: dict[str, Callable[[Any], Any]] = {
    "role": _role,
    "text": _text,
    "ended": _text,
    "problem": _text,
    "figures": _figures,
    "is_raw": bool,
    "is_left_out": bool,
    "together": lambda value: None if value is None else _text(value),
    "created_at": _time,
}
