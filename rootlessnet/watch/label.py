"""Names of others as labels of a drawing: a container may be called whatever it likes."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text on one line, with everything that does not show as itself escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def cells(text: str) -> int:
    """How many columns of a terminal, or widths of a letter, the text takes."""
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in ("W", "F") else 1 for c in text)


def cut(text: str, most: int) -> str:
    """The text, or its beginning and end with an ellipsis between, in so many cells."""
    if cells(text) <= most:
        return text
    head = list(text)
    tail: list[str] = []
    # The end of an id or an address tells as much as its beginning.
    while cells("".join(head)) > (most - 1) * 2 // 3:
        head.pop()
    for c in reversed(text):
        if cells("".join(tail)) + cells(c) > most - 1 - cells("".join(head)):
            break
        tail.insert(0, c)
    return "".join((*head, "…", *tail))
