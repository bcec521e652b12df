"""Tell the service manager how it goes: sd_notify(3)."""

from __future__ import annotations

import os


def notify(*assignments: str) -> bool:
    """Send assignments such as "READY=1"; False when no service manager listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    import socket

    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto("\n".join(assignments).encode(), address)
        except OSError:
            return False
    return True


def watchdog_seconds() -> float | None:
    """How often the manager wants to hear WATCHDOG=1, halved as sd_watchdog_enabled(3) advises."""
    text = os.environ.get("WATCHDOG_USEC", "")
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(text) / 2e6 if text.isdecimal() and int(text) else None
