"""The SQL of a search in all conversations, and the excerpt that shows where the words are.

SQLite's trigram index (schema.py) finds candidates quickly. It knows only sequences of three characters, so LIKE checks
every candidate, and words of one or two characters are looked up in all texts. Knows nothing of the open database.
"""

from collections.abc import Sequence

MIN_INDEXED_LENGTH = 3  # characters
LONGEST = 1000  # characters of a search; SQLite refuses more than 1000 conditions, and very long ones
EXCERPT_BEFORE, EXCERPT_AFTER = 20, 60  # characters around the start of the first word found


def words_of(typed: str) -> list[str]:
    """The words of a search. What is beyond LONGEST characters is ignored, and so is a null, which ends SQL's texts."""
    return typed[:LONGEST].replace("\0", " ").split()


def search_query(words: Sequence[str], limit: int) -> tuple[str, list[object]]:
    """Selects the conversations that have all words in one message or in the title.

    The columns are id, title, time and is_pinned, then the newest such message and its text.
    """
    patterns = [f"%{_escaped(word)}%" for word in words]
    title_has = " AND ".join(["conversations.title LIKE ? ESCAPE '\\'"] * len(words))
    text_has = " AND ".join(["messages.text LIKE ? ESCAPE '\\'"] * len(words))
    indexed = [word for word in words if len(word) >= MIN_INDEXED_LENGTH]
    phrases = " ".join('"' + word.replace('"', '""') + '"' for word in indexed)
    candidates = "messages JOIN search ON search.rowid = messages.id AND search MATCH ?" if indexed else "messages"
    sql = f"""
        WITH found AS (
            SELECT conversation_id, max(messages.id) AS message_id FROM {candidates}
            WHERE {text_has} AND removed_at IS NULL GROUP BY conversation_id
        )
        SELECT conversations.id, title, updated_at, is_pinned, message_id, coalesce(text, '') FROM conversations
        LEFT JOIN found ON found.conversation_id = conversations.id
        LEFT JOIN messages ON messages.id = found.message_id
        WHERE deleted_at IS NULL AND (found.message_id IS NOT NULL OR ({title_has}))
        ORDER BY is_pinned DESC, updated_at DESC LIMIT ?
        """  # noqa: S608  # only question marks are put in
    return sql, [*([phrases] if indexed else []), *patterns, *patterns, limit]


def excerpt_of(text: str, words: Sequence[str]) -> str:
    """The text around the first of the words, on one line; empty if it has none of them."""
    found = [position for word in words if (position := text.lower().find(word.lower())) >= 0]
    if not found:
        return ""
    start, end = max(0, min(found) - EXCERPT_BEFORE), min(found) + EXCERPT_AFTER
    return ("…" if start else "") + " ".join(text[start:end].split()) + ("…" if end < len(text) else "")


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
