"""The exports of ChatGPT and Open WebUI as conversations of this program, with all their branches.

Sources: ChatGPT's conversations.json is described in github.com/mitkury/chatgpt-export-parser (docs/) and read by
github.com/open-webui/open-webui (src/lib/utils/index.ts, convertOpenAIMessages). Open WebUI's export is the list of its
ChatResponse (backend/open_webui/models/chats.py), whose `chat` has `history.messages` and `history.currentId`.

Both are trees in which messages of one author may follow each other, and which have messages that nobody sees (of
tools, for example). Here questions and answers alternate: messages of one author become one. Pictures are not imported.
Files from outside: every type is checked, all else raises ValueError (msgspec.ValidationError is one).
"""

import heapq
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeGuard

from msgspec import Meta, Struct, convert, field

from apps.chat.messages import Message, Time, WholeConversation, title_from

LARGEST_TOTAL = 50_000_000  # characters of all branches, which may repeat their beginnings
MILLISECONDS = 1e11  # a larger time is in milliseconds, as some of Open WebUI's are
NO_ANSWER = "The imported file has no answer to this question."
NO_QUESTION = "…"  # before an answer that has no question
CITATION = re.compile("\ue200[^\ue201]{0,1000}\ue201")  # ChatGPT's references to sources, in private characters
PICTURE = "[a picture that was not imported]"
Role = Literal["user", "assistant"]
Moment = Annotated[float, Meta(ge=0, le=1e14)]  # in seconds or milliseconds


class Author(Struct):
    role: str


class ChatGPTContent(Struct):
    content_type: str = "text"
    parts: list[str | dict[str, Any] | None] = field(default_factory=list)
    text: str | None = None


class ChatGPTMessage(Struct):
    author: Author
    content: ChatGPTContent
    create_time: Time | None = None
    recipient: str | None = "all"
    metadata: dict[str, Any] | None = None


class ChatGPTNode(Struct):
    parent: str | None = None
    message: ChatGPTMessage | None = None


class ChatGPTConversation(Struct):
    mapping: dict[str, ChatGPTNode]
    title: str | None = None
    current_node: str | None = None
    create_time: Time | None = None
    update_time: Time | None = None


class OpenWebUIMessage(Struct, rename="camel"):
    role: str
    content: str | None = None
    parent_id: str | None = None
    timestamp: Moment | None = None


class OpenWebUIHistory(Struct, rename="camel"):
    messages: dict[str, OpenWebUIMessage]
    current_id: str | None = None


class OpenWebUIChat(Struct):
    history: OpenWebUIHistory
    title: str | None = None
    system: str | None = None
    params: dict[str, Any] | None = None


class OpenWebUIConversation(Struct):
    chat: OpenWebUIChat
    title: str | None = None
    created_at: Moment | None = None
    updated_at: Moment | None = None
    pinned: bool | None = False


@dataclass(slots=True)
class Node:
    """A message of a foreign file. text: None if nobody sees it."""

    parent: str | None
    role: str
    text: str | None
    at: float


@dataclass(slots=True)
class Joined:
    """Messages of one author that follow each other. before: the ones of the same author above `text`."""

    role: Role
    text: str
    at: float
    parent: "Joined | None"
    before: "Joined | None"
    length: int
    id: int = 0  # in the conversation that is made of it


def is_foreign(document: object) -> TypeGuard[list[dict[str, Any]]]:
    """Whether this looks like one of the two formats: a list of objects that have a `mapping` or a `chat`."""
    return (
        isinstance(document, list)
        and bool(document)
        and all(isinstance(entry, dict) and ("mapping" in entry or "chat" in entry) for entry in document)
    )


def conversations_of(document: Sequence[dict[str, Any]]) -> list[WholeConversation]:
    """Raises ValueError."""
    return [_from_chatgpt(entry) if "mapping" in entry else _from_open_webui(entry) for entry in document]


def _from_chatgpt(entry: dict[str, Any]) -> WholeConversation:
    found = convert(entry, ChatGPTConversation)
    created = found.create_time or 0.0
    nodes = {
        name: Node(
            node.parent,
            node.message.author.role if node.message else "",
            _text_of(node.message) if node.message else None,
            (node.message.create_time if node.message else None) or created,
        )
        for name, node in found.mapping.items()
    }
    times = (created, found.update_time or created)
    return _conversation(nodes, found.current_node, found.title, times)


def _text_of(message: ChatGPTMessage) -> str | None:
    """What ChatGPT shows of a message; None for what it hides, such as calls of tools and its own notes."""
    is_hidden = (message.metadata or {}).get("is_visually_hidden_from_conversation")
    if is_hidden or message.recipient not in (None, "all"):
        return None
    if message.content.content_type not in ("text", "multimodal_text", "code"):
        return None
    parts = [_part(part) for part in message.content.parts if part] or [message.content.text or ""]
    return CITATION.sub("", "\n\n".join(part for part in parts if part))


def _part(part: str | dict[str, Any]) -> str:
    if isinstance(part, str):
        return part
    spoken = part.get("text")
    return spoken if isinstance(spoken, str) else PICTURE


def _from_open_webui(entry: dict[str, Any]) -> WholeConversation:
    found = convert(entry, OpenWebUIConversation)
    created = _seconds(found.created_at)
    nodes = {
        name: Node(message.parent_id, message.role, message.content, _seconds(message.timestamp) or created)
        for name, message in found.chat.history.messages.items()
    }
    system = (found.chat.params or {}).get("system") or found.chat.system
    settings = {"system_prompt": system} if isinstance(system, str) and system else {}
    times = (created, _seconds(found.updated_at) or created)
    title = found.title or found.chat.title
    return _conversation(nodes, found.chat.history.current_id, title, times, settings, bool(found.pinned))


def _seconds(time: float | None) -> float:
    return (time or 0.0) / 1000 if (time or 0.0) > MILLISECONDS else time or 0.0


def _conversation(
    nodes: dict[str, Node],
    shown_last: str | None,
    title: str | None,
    times: tuple[Time, Time],
    settings: dict[str, Any] | None = None,
    is_pinned: bool = False,
) -> WholeConversation:
    """Raises ValueError for messages that follow each other in a circle, or that are too long together."""
    joined = _joined(nodes)
    last = None if shown_last is None else joined.get(shown_last)
    if last is None:  # not named, or nothing to be seen on that branch: the newest message
        last = max(filter(None, reversed(joined.values())), key=lambda message: message.at, default=None)
    messages, leaf_id = _messages(joined, last)
    return WholeConversation(
        title=title or title_from(messages[0].text if messages else ""),
        settings=settings or {},
        leaf_id=leaf_id,
        created_at=times[0],
        updated_at=times[1],
        is_pinned=is_pinned,
        messages=messages,
    )


def _joined(nodes: dict[str, Node]) -> dict[str, Joined | None]:
    """For each node the last message on its way that can be seen, None if there is none; parents first, else by age."""
    children: dict[str | None, list[str]] = {}
    for name, node in nodes.items():
        children.setdefault(node.parent if node.parent in nodes else None, []).append(name)
    joined: dict[str, Joined | None] = {}
    place = {name: number for number, name in enumerate(nodes)}  # in the file, for messages of the same time
    ready = [(nodes[name].at, place[name], name) for name in children.get(None, [])]
    heapq.heapify(ready)
    while ready:
        *_, name = heapq.heappop(ready)
        node = nodes[name]
        above = None if node.parent is None else joined.get(node.parent)
        joined[name] = _with(above, node)
        for child in children.get(name, []):
            heapq.heappush(ready, (nodes[child].at, place[child], child))
    if len(joined) < len(nodes):
        raise ValueError("messages of a conversation follow each other in a circle")
    return joined


def _with(above: Joined | None, node: Node) -> Joined | None:
    if node.role not in ("user", "assistant") or not node.text or not node.text.strip():
        return above
    role: Role = "user" if node.role == "user" else "assistant"
    if above is None or above.role != role:
        return Joined(role, node.text, node.at, above, None, len(node.text))
    return Joined(role, node.text, node.at, above.parent, above, above.length + len(node.text) + 2)


def _messages(joined: dict[str, Joined | None], last: Joined | None) -> tuple[list[Message], int | None]:
    """The messages, parents first, and the id of the answer that is shown last.

    A message that is only the beginning of a longer one is left out.
    """
    distinct = list({id(message): message for message in joined.values() if message}.values())
    beginnings = {id(message.before) for message in distinct}
    followed = {id(message.parent) for message in distinct}
    kept = [
        message for message in distinct if id(message) not in beginnings or id(message) in followed or message is last
    ]
    if sum(message.length for message in kept) > LARGEST_TOTAL:
        raise ValueError("the branches of a conversation are too long together")
    messages: list[Message] = []
    leaf_id = None

    def add(parent_id: int | None, role: Role, text: str, at: float, problem: str = "") -> int:
        ended = "sent" if role == "user" else "cut" if problem else "stop"
        messages.append(Message(len(messages) + 1, parent_id, role, text, ended, problem, created_at=at))
        return len(messages)

    for message in kept:
        parent_id = message.parent.id if message.parent else None
        if parent_id is None and message.role == "assistant":
            parent_id = add(None, "user", NO_QUESTION, message.at)
        message.id = shown = add(parent_id, message.role, _whole(message), message.at)
        if message.role == "user" and id(message) not in followed:
            shown = add(message.id, "assistant", "", message.at, NO_ANSWER)
        if message is last:
            leaf_id = shown
    if last and last.role == "user" and leaf_id == last.id:  # shown last, but answered on another branch
        leaf_id = add(last.id, "assistant", "", last.at, NO_ANSWER)
    return messages, leaf_id


def _whole(message: Joined) -> str:
    texts = []
    part: Joined | None = message
    while part:
        texts.append(part.text)
        part = part.before
    return "\n\n".join(reversed(texts))
