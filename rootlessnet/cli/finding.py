"""What one check of the doctor found."""

from __future__ import annotations

OK = "ok"
WARNING = "warning"
ERROR = "error"


class Finding:
    """The name of the check, how it is, in words, and the command that mends it."""

    def __init__(self, name: str, level: str, text: str, mend: str = "") -> None:
        self.name = name
        self.level = level
        self.text = text
        self.mend = mend
