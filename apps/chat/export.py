"""Conversations as JSON, which this program can import, and as Markdown for people.

Knows the store and nothing of pages. An import always creates new conversations; it never overwrites one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime

import msgspec

from apps.chat.foreign_exports import conversations_of, is_foreign
from apps.chat.messages import LONGEST_TITLE, Message, WholeConversation, clean_figures, random_id
from apps.chat.origin import SERVER_SETTINGS
from apps.chat.store import ChatStore

FORMAT = "llama-2-chatbot"
VERSION = 1
LARGEST_FILE = 50_000_000  # bytes; .streamlit/config.toml has the same limit for the upload
LONGEST_TEXT = 2_000_000  # characters of one message; a page with more can hardly be used
LONGEST_SETTING = 200_000  # characters, of the system prompt for example
MOST_MESSAGES = 20_000  # of one conversation
LONGEST_REASON = 200  # characters of what a decoder says
ENDINGS = {"", "sent", "stop", "length", "full", "stopped", "cut", "failed", "edited", "too long"}  # of Message.ended


class ImportFailed(Exception):
    """The file is no export, or is damaged; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class ExportFile:
    """The file's fields; their types, and those of a message, are what an import checks."""

    conversations: list[WholeConversation]
    format: str = FORMAT
    version: int = VERSION


def export_json(store: ChatStore, conversation_ids: Sequence[str]) -> str:
    """The conversations with all their branches."""
    exported = []
    for conversation in map(store.get, conversation_ids):
        if conversation is not None:
            values = {field.name: getattr(conversation, field.name) for field in fields(conversation)}
            messages = list(store.tree(conversation.id).messages.values())
            exported.append(WholeConversation(**values, messages=messages))
    return msgspec.json.format(msgspec.json.encode(ExportFile(exported)), indent=1).decode()


def import_json(store: ChatStore, text: str | bytes) -> list[str]:
    """Adds the conversations of a file of this program, ChatGPT or Open WebUI, and returns their new ids.

    Raises ImportFailed, and then adds nothing; raises StoreError.
    """
    if len(text) > LARGEST_FILE:
        raise ImportFailed(f"The file is larger than {LARGEST_FILE // 1_000_000} MB: export fewer conversations.")
    try:
        document = msgspec.json.decode(text)
        imported = [_cleaned(conversation) for conversation in _read(document)]
    except RecursionError as error:
        raise ImportFailed("The file is nested too deeply: choose one that Export has made.") from error
    except (msgspec.DecodeError, ValueError) as error:  # ValueError: a number with thousands of digits
        reason = str(error)[:LONGEST_REASON]
        raise ImportFailed(f"The file is damaged or not JSON ({reason}): choose one that Export has made.") from error
    for conversation in imported:
        store.add(conversation, conversation.messages)
    return [conversation.id for conversation in imported]


def _read(document: object) -> list[WholeConversation]:
    """The conversations of a file of any of the three formats. Raises ImportFailed and ValueError."""
    if is_foreign(document):
        return conversations_of(document)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ImportFailed(
            "The file is not an export of this chat, of ChatGPT or of Open WebUI: choose one that Export has made, "
            "or conversations.json of ChatGPT."
        )
    if (version := document.get("version")) != VERSION:
        shown = repr(version) if isinstance(version, str | int | float) else "unknown"
        raise ImportFailed(f"The file has version {shown[:20]}, and this program knows {VERSION}.")
    return msgspec.convert(document, ExportFile).conversations


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


def _cleaned(conversation: WholeConversation) -> WholeConversation:
    """Raises ValueError."""
    _check(conversation)
    messages = [
        # An answer that was exported while it was generated has no reason of its end.
        replace(message, ended=message.ended or "cut", figures=clean_figures(message.figures))
        for message in conversation.messages
    ]
    settings = {
        name: value
        for name, value in conversation.settings.items()
        if not isinstance(value, dict | list) and name not in SERVER_SETTINGS
    }
    title = (
        conversation.title
        if len(conversation.title) <= LONGEST_TITLE
        else f"{conversation.title[: LONGEST_TITLE - 1]}…"
    )
    return replace(conversation, id=random_id(), title=title, settings=settings, messages=messages)


def _check(conversation: WholeConversation) -> None:
    """Raises ValueError for what the store and the pages rely on, beyond the types of the fields."""
    if len(conversation.messages) > MOST_MESSAGES:
        raise ValueError(f"a conversation has more than {MOST_MESSAGES:,} messages")
    roles: dict[int | None, str] = {None: "assistant"}  # of the messages so far; a conversation begins with a question
    for number, message in enumerate(conversation.messages, start=1):
        if problem := _problem_of(message, roles):
            raise ValueError(f"message number {number} {problem}")
        roles[message.id] = message.role
    is_hidden = conversation.leaf_id is None and conversation.messages
    if is_hidden or roles.get(conversation.leaf_id) != "assistant":
        raise ValueError("the answer to be shown last is missing")
    if any(isinstance(value, str) and len(value) > LONGEST_SETTING for value in conversation.settings.values()):
        raise ValueError(f"a setting is longer than {LONGEST_SETTING:,} characters")


def _problem_of(message: Message, roles: dict[int | None, str]) -> str:
    """What is wrong with a message after those with these ids and roles; empty if nothing."""
    if message.parent_id not in roles:
        return "comes before the one it follows"
    if message.id in roles:
        return "has the id of an earlier one"
    if roles[message.parent_id] == message.role:
        return "is an answer without a question, or a question to a question"
    if message.ended not in ENDINGS:
        return "has an unknown end"
    if not all(isinstance(message.figures.get(name, {}), dict) for name in ("usage", "timings")):
        return "has wrong figures"
    if len(message.text) + len(message.problem) > LONGEST_TEXT:
        return f"is longer than {LONGEST_TEXT:,} characters"
    return ""
