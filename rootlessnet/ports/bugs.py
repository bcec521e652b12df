"""Exceptions that nobody foresaw: each is told with its traceback, and not over and over."""

from __future__ import annotations

import sys
import time

from rootlessnet.instance.logfile import say

_SECONDS = 60.0
_MOST = 32
"""Places that are kept in mind."""


class Bugs:
    """What a process has told of already."""

    def __init__(self) -> None:
        self._told: dict[object, tuple[float, int]] = {}

    def tell(self) -> None:
        """Tell the exception that is being handled, unless it was told within a minute: then it is
        counted, for the next time."""
        kind, _, trace = sys.exc_info()
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = (kind, trace and (trace.tb_frame.f_code, trace.tb_lineno))
        now = time.monotonic()
        since, more = self._told.get(place, (now - _SECONDS, 0))
        if now - since < _SECONDS:
            self._told[place] = (since, more + 1)
            return
        if len(self._told) >= _MOST:
            self._told.clear()
        self._told[place] = (now, 0)
        counted = f" ({more} more of it since the last time)" if more else ""
        say(f"bug: {_traceback()}{counted}")


def _traceback() -> str:
    try:
        import traceback

        return traceback.format_exc().rstrip()
    except Exception:
        # Out of memory or of descriptors, perhaps.
        return repr(sys.exc_info()[1])
