"""Who owns published ports: whether an owner lives, and word of its end.

    user            always
    lease:NAME      while somebody has its fifo open for writing
    named:NAME      while the named lease has its record
    container:ID    while the container has its record

The end of a lease is a hang-up of its fifo; that of the others is seen in the directories of their
records.
"""

from __future__ import annotations

import os
from functools import partial

from rootlessnet.instance import containers, named, state
from rootlessnet.kernel import inotify
from rootlessnet.ports import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rootlessnet.instance.paths import Instance
    from rootlessnet.ports.processes import Watched


class Owners:
    """ended is told an owner that may have ended, "" when it is not known which."""

    def __init__(
        self, instance: Instance, watcher: inotify.Watcher, ended: Callable[[str], None]
    ) -> None:
        self._instance = instance
        self._watcher = watcher
        self._ended = ended
        self._fifos: dict[int, str] = {}
        self._leases = watcher.add(
            instance.path(state.LEASES), inotify.IN_DELETE | inotify.IN_MOVED_FROM
        )
        self._containers = -1

    def lives(self, owner: str) -> bool:
        """Whether it is still there."""
        kind, _, name = owner.partition(":")
        if kind == files.LEASE:
            return files.is_held(self._instance, owner)
        if kind == files.NAMED:
            return name in named.records(self._instance)
        if kind == files.CONTAINER:
            return os.path.lexists(containers.path(self._instance, name))
        return True

    def watch(self, owner: str) -> None:
        """Wait for its end. Raises OSError."""
        if owner.startswith(files.LEASE + ":") and owner not in self._fifos.values():
            fd = os.open(
                files.fifo(self._instance, owner),
                os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC,
            )
            self._fifos[fd] = owner
        if owner.startswith(files.CONTAINER + ":") and self._containers < 0:
            self._containers = self._watcher.add(
                self._instance.path(containers.DIRECTORY), inotify.IN_DELETE
            )

    def forget(self, owner: str) -> None:
        """It has no ports any more; the fifo of a lease goes, too."""
        if not owner.startswith(files.LEASE + ":"):
            return
        for fd, name in list(self._fifos.items()):
            if name == owner:
                del self._fifos[fd]
                os.close(fd)
        try:
            os.unlink(files.fifo(self._instance, owner))
        except OSError:
            pass

    def watched(self) -> Iterator[Watched]:
        """What is to be polled."""
        for fd, owner in self._fifos.items():
            yield fd, 0, partial(self._ended, owner)

    def changed(self, number: int) -> None:
        """The watcher tells this number."""
        if number in (self._leases, self._containers):
            self._ended("")
