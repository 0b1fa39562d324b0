"""The SQL of deleted messages: they stay in the file, hidden, because other messages follow them.

What follows a hidden message then follows the one before it (messages.without). Knows nothing of the open store.
"""

from apps.chat.database import Database


def hide(database: Database, conversation_id: str, message_id: int, now: float) -> None:
    """Hides a message, a question with all its answers, and asks for a stop of those that are unfinished."""
    database.rows(
        "UPDATE messages SET removed_at = ?, stop_wanted = 1 "
        "WHERE removed_at IS NULL AND (id = ? OR parent_id = ? AND role = 'assistant')",
        (now, message_id, message_id),
    )
    # The prompts of later answers were counted with it.
    database.rows(
        "UPDATE messages SET figures = json_remove(figures, '$.usage.total_tokens', '$.timings.prompt_n') "
        "WHERE conversation_id = ? AND id > ?",
        (conversation_id, message_id),
    )


def unhide(database: Database, message_id: int) -> None:
    """Shows a message again, and what was hidden together with it."""
    database.rows(
        "UPDATE messages SET removed_at = NULL "
        "WHERE (id = ? OR parent_id = ?) AND removed_at = (SELECT removed_at FROM messages WHERE id = ?)",
        (message_id, message_id, message_id),
    )


def hidden(database: Database, conversation_id: str) -> dict[int, int | None]:
    """The ids of the hidden messages, and what each of them follows."""
    sql = "SELECT id, parent_id FROM messages WHERE conversation_id = ? AND removed_at IS NOT NULL"
    return dict(database.rows(sql, (conversation_id,)))


def forget(database: Database, oldest: float) -> None:
    """Empties the messages that were hidden before this time; also in the search, since `ended` is set."""
    database.rows(
        "UPDATE messages SET text = '', problem = '', figures = '{}', ended = ended "
        "WHERE removed_at < ? AND text != ''",
        (oldest,),
    )
