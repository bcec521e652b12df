"""What the command line asks an instance to be; checked in rootlessnet.instance.settings."""

from __future__ import annotations

from rootlessnet.errors import Error

DEFAULT_TIMEOUT = 10.0
_MAX_SECONDS = 10 * 365 * 86400


class Requested:
    """Empty where the command line is silent; linger and timeout are in seconds."""

    __slots__ = ("driver", "linger", "options", "timeout")

    def __init__(self) -> None:
        self.driver = ""
        self.options: list[str] = []
        self.linger: float | None = None
        self.timeout = DEFAULT_TIMEOUT

    def anything(self) -> bool:
        """Whether there is something that a running instance could contradict."""
        return bool(self.driver or self.options or self.linger is not None)


def seconds(option: str, text: str, minimum: float = 0.0, maximum: float = _MAX_SECONDS) -> float:
    """The value of an option in seconds. Raises Error."""
    try:
        if "_" in text or not text.isascii() or text != text.strip():
            raise ValueError  # a Python number, but nobody else's
        value = float(text)
        if not minimum <= value <= maximum:
            raise ValueError
    except ValueError:
        raise Error(
            f"{option} {text}: not a number of seconds from {minimum:g} to {maximum:.0f}"
        ) from None
    return value
