"""Tells when the host's resolv.conf may have changed.

Watched are the directories in which a name on the way from /etc/resolv.conf to the real file could
be replaced, so it does not matter whether the file is rewritten, renamed over or the link switched.
"""

from __future__ import annotations

import os

from rootlessnet.instance import resolvconf
from rootlessnet.kernel import inotify

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
    """`fd` is to be polled, and `changed` called then; when `due` is over all is quiet again."""

    def __init__(self) -> None:
        self.due: float | None = None
        self._names: dict[int, set[str]] = {}
        self._watcher = inotify.Watcher()
        self.watch()

    @property
    def fd(self) -> int:
        return self._watcher.fd

    @property
    def problem(self) -> str:
        """Why nothing is watched; empty when all is well."""
        return self._watcher.problem

    def watch(self) -> None:
        """Watch every directory that matters now."""
        self.due = None
        for path in resolvconf.sources():
            directory, name = os.path.split(path)
            # What is not there yet is waited for in the nearest directory that is.
            while not os.path.isdir(directory):
                directory, name = os.path.split(directory)
            number = self._watcher.add(directory, _MASK)
            self._names.setdefault(number, set()).add(name)

    def changed(self, now: float) -> bool:
        """Read what has happened; whether something concerns us, which then sets `due`."""
        concerned = False
        for number, _, name in self._watcher.read():
            if not name or name in self._names.get(number, ()):
                concerned = True
                self.due = self.due or now + SETTLE
        return concerned
