"""JSON to the byte as Go's encoding/json writes it, because podman's files are made by that."""

from __future__ import annotations

import json  # noqa: TID253 - nothing on the warm path comes here

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SHORT = {"b": "\\u0008", "f": "\\u000c"}


def encode(value: Any, indent: int, *, for_html: bool = True) -> str:
    """The value, indented, without a newline at the end.

    for_html is Go's default, which a podman that prints turns off: <, > and & are escaped.
    """
    import re

    text = json.dumps(value, indent=indent, ensure_ascii=False)
    # Escapes come in pairs of characters, so an escaped backslash is stepped over as one.
    text = re.sub(r"\\(.)", lambda m: _SHORT.get(m[1], m[0]), text)
    text = text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    # A byte that was no UTF-8 came as half of a surrogate pair.
    text = re.sub("[\ud800-\udfff]", r"\\ufffd", text)
    if for_html:
        text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return text


def quote(text: str) -> str:
    """A string as a message of podman's quotes it (%q)."""
    return json.dumps(text, ensure_ascii=False)
