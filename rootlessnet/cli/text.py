"""Text of others on the user's terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text on one line, with control characters escaped: a command may be named as it likes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
