"""Named points between two steps, for tests that let the program die or fail there.

`trace("moved")` does nothing, unless one of these was in the environment when the program started:

    ROOTLESSNET_CRASH_AT=moved    the process gets SIGKILL at that point, as from a power cut
    ROOTLESSNET_FAIL_AT=FILE      there is an exception that nobody foresaw, as long as the file has
                                  the name of the point in it
"""

from __future__ import annotations

import os

_crash_at = os.environ.get("ROOTLESSNET_CRASH_AT")
_fail_at = os.environ.get("ROOTLESSNET_FAIL_AT")

if _crash_at or _fail_at:

    def trace(point: str) -> None:
        """Die or fail here when the test asks for it."""
        if point == _crash_at:
            os.kill(os.getpid(), 9)
        if _fail_at:
            with open(_fail_at, encoding="ascii") as file:
                if point in file.read().split():
                    raise RuntimeError(f"a test wants a failure at {point}")

else:

    def trace(point: str) -> None:
        """Nothing: no test is looking."""
