"""The journal, by its native protocol: one datagram an entry."""

from __future__ import annotations

import os

SOCKET = "/run/systemd/journal/socket"
FIELD = "ROOTLESSNET_INSTANCE"


def available() -> bool:
    """Whether a journal takes entries on this machine."""
    return os.path.exists(SOCKET)


class Journal:
    """Entries of one instance. A journal that is away or busy loses them: nothing waits for it."""

    def __init__(self, instance: str) -> None:
        import socket

        self._head = f"SYSLOG_IDENTIFIER=rootlessnet\n{FIELD}={instance}\n".encode()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    def send(self, line: str, priority: int = 6) -> None:
        """One line, at a syslog(3) priority."""
        message = line.encode(errors="replace").replace(b"\n", b" ")
        try:
            self._socket.sendto(
                self._head + b"PRIORITY=%d\nMESSAGE=%s\n" % (priority, message), SOCKET
            )
        except OSError:
            pass
