"""Names of network devices: which ones the kernel takes, and what `%d` becomes."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container

LONGEST = 15
"""Bytes in a name: IFNAMSIZ less the final NUL."""

_MOST = 1 << 15

# As isspace() in the kernel's table, where 0xa0 is the no-break space of Latin-1.
_FORBIDDEN = b"/: \t\n\v\f\r\xa0"


def problem(name: str) -> str:
    """Why the kernel would not take the name; empty when it would."""
    try:
        raw = os.fsencode(name)
    except UnicodeEncodeError:
        return "it is no text"
    if not raw:
        return "it is empty"
    if len(raw) > LONGEST:
        return f"it is longer than {LONGEST} bytes"
    if raw in (b".", b".."):
        return "it is . or .."
    if b"\0" in raw or any(byte in _FORBIDDEN for byte in raw):
        return "it contains /, : or white space"
    return ""


def pattern_problem(name: str) -> str:
    """As `problem`, for a name that may hold one `%d` for a number to be found."""
    if "%" in name and (name.count("%") > 1 or "%d" not in name):
        return "only one %d may stand in it"
    return problem(name)


def is_plain(name: str) -> bool:
    """Whether the kernel would take the name as it is."""
    return "%" not in name and not problem(name)


def is_pattern(name: str) -> bool:
    """Whether the kernel would put a number into the name."""
    return "%d" in name


def resolve(pattern: str, taken: Container[str]) -> str:
    """The first free name of the pattern, by the kernel's rule; empty when there is none."""
    for number in range(_MOST):
        name = pattern.replace("%d", str(number))
        if problem(name):
            return ""
        if name not in taken:
            return name
    return ""
