"""Text of others on the user's terminal."""

from __future__ import annotations

from rootlessnet.watch.label import printable

__all__ = ["printable"]
