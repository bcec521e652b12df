"""inotify(7): changes in directories, as a descriptor to poll."""

from __future__ import annotations

import os
import struct

from rootlessnet.kernel import libc

IN_MODIFY = 0x2
IN_CLOSE_WRITE = 0x8
IN_OPEN = 0x20
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_ONLYDIR = 0x01000000

_EVENT = struct.Struct("iIII")


class Watcher:
    """Watches directories and files; `fd` is readable when something has changed.

    A user may have 128 of them by default (fs.inotify.max_user_instances). One that could not be
    had sees nothing: fd is -1 then, and `problem` says why.
    """

    def __init__(self) -> None:
        self.problem = ""
        try:
            self.fd = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            self.fd = -1
            self.problem = f"{error.strerror}: sysctl fs.inotify.max_user_instances"

    def add(self, path: str, mask: int) -> int:
        """Watch path; the number by which `read` tells it, -1 when it cannot be watched."""
        if self.fd < 0:
            return -1
        try:
            return libc.inotify_add_watch(self.fd, path, mask)
        except OSError:
            return -1

    def read(self) -> list[tuple[int, int, str]]:
        """(number, what happened, name within the directory) of every change since the last."""
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            return []  # nothing yet, or no watcher
        events = []
        offset = 0
        while offset < len(data):
            number, mask, _, length = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size
            name = data[offset : offset + length].rstrip(b"\0")
            offset += length
            events.append((number, mask, os.fsdecode(name)))
        return events

    def close(self) -> None:
        """See nothing any more."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
