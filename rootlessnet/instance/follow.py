"""The resolv.conf inside follows the host's while the instance lives.

It is bind mounted as a file, so it cannot be replaced by a rename; it is rewritten in place. That
no reader ever sees half of it, the new content goes in with one write of the old size, less than a
page; an empty comment at the end fills it up. To grow, the comment is made longer first.

Watched are the directories in which a name on the way from /etc/resolv.conf to the real file could
be replaced, so it does not matter whether the file is rewritten, renamed over or the link switched.
"""

from __future__ import annotations

import os

from rootlessnet.instance import resolvconf
from rootlessnet.kernel import inotify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SETTLE = 0.05
"""Seconds from a change to the look at it: a writer truncates first and writes then."""

_MASK = (
    inotify.IN_CREATE
    | inotify.IN_MOVED_TO
    | inotify.IN_MOVED_FROM
    | inotify.IN_DELETE
    | inotify.IN_CLOSE_WRITE
    | inotify.IN_MODIFY
    | inotify.IN_DELETE_SELF
    | inotify.IN_MOVE_SELF
)


class Follower:
    """Keeps one file up to date; `fd` is to be polled, `due` is when `refresh` is to be called."""

    def __init__(self, path: str, compose: Callable[[], str]) -> None:
        self.path = path
        self.due: float | None = None
        self._compose = compose
        self._names: dict[int, set[str]] = {}
        self._watcher = inotify.Watcher()
        self._watch()

    @property
    def fd(self) -> int:
        return self._watcher.fd

    def _watch(self) -> None:
        """Watch every directory that matters now."""
        for path in resolvconf.sources():
            directory, name = os.path.split(path)
            # What is not there yet is waited for in the nearest directory that is.
            while not os.path.isdir(directory):
                directory, name = os.path.split(directory)
            try:
                number = self._watcher.add(directory, _MASK)
            except OSError:
                continue
            self._names.setdefault(number, set()).add(name)

    def changed(self, now: float) -> bool:
        """Read what has happened; whether something concerns us, which then sets `due`."""
        concerned = False
        for number, _, name in self._watcher.read():
            if not name or name in self._names.get(number, ()):
                concerned = True
                self.due = self.due or now + SETTLE
        return concerned

    def refresh(self) -> bool:
        """Bring the file up to date; whether it changed. Raises Error or OSError."""
        self.due = None
        self._watch()
        return write_in_place(self.path, self._compose())


def write_in_place(path: str, text: str) -> bool:
    """Rewrite an existing file whole, by one write of the same size; whether it was different."""
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        before = os.pread(fd, 1 << 20, 0)
        data = resolvconf.fill_up(text, len(before))
        if before == data:
            return False
        longer = len(data) - len(before)
        if longer:
            os.pwrite(fd, b"#" + b" " * (longer - 2) + b"\n", len(before))
        os.pwrite(fd, data, 0)
    finally:
        os.close(fd)
    return True
