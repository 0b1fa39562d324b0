"""How packaging fails, in words."""

from __future__ import annotations


class PackagingError(Exception):
    """One sentence: the thing, the problem, the next step."""
