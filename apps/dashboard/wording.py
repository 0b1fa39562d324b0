"""How the dashboard writes counts, sizes and durations. Knows nothing of Streamlit."""


def counted(number: int, noun: str) -> str:
    """A number with its noun, such as "1 worker" or "2 workers"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def megabytes(size: int) -> str:
    """`size` is in bytes."""
    return f"{size / 2**20:,.0f} MB"


def duration(seconds: float) -> str:
    """In seconds, minutes or hours."""
    if seconds < 90:
        return f"{max(0.0, seconds):.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
