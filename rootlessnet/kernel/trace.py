"""Named points between two steps, for tests that kill the program there.

`trace("moved")` does nothing, unless ROOTLESSNET_CRASH_AT=moved was in the environment when the
program started: then the process gets SIGKILL at that point, as from a power cut.
"""

from __future__ import annotations

import os

_crash_at = os.environ.get("ROOTLESSNET_CRASH_AT")

if _crash_at:

    def trace(point: str) -> None:
        """Die here when the test asks for it."""
        if point == _crash_at:
            os.kill(os.getpid(), 9)

else:

    def trace(point: str) -> None:
        """Nothing: no test is looking."""
