"""Points in time as people and programs read them."""

from __future__ import annotations


def timestamp(seconds: float) -> str:
    """Seconds since the epoch in RFC 3339, in the local time zone."""
    from datetime import datetime

    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def now() -> str:
    """The present in RFC 3339."""
    import time

    return timestamp(time.time())
