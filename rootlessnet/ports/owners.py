"""Who owns published ports: whether an owner lives, and word of its end.

    user            always
    lease:NAME      while somebody has its fifo open for writing, or its process lives
    named:NAME      while the named lease has its record
    container:ID    while the container has its record

The end of a lease is a hang-up of its fifo, and then the end of its process, which may have closed
what it does not know; that of the others is seen in the directories of their records.
"""

from __future__ import annotations

import os
import select
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
        self._processes: dict[int, str] = {}
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
        if owner.startswith(files.LEASE + ":") and not self._is_watched(owner):
            fd = os.open(
                files.fifo(self._instance, owner),
                os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC,
            )
            self._fifos[fd] = owner
            if not files.is_open(fd):
                # A hang-up from before is not told.
                self._hung_up(fd, owner)
        if owner.startswith(files.CONTAINER + ":") and self._containers < 0:
            self._containers = self._watcher.add(
                self._instance.path(containers.DIRECTORY), inotify.IN_DELETE
            )

    def forget(self, owner: str) -> None:
        """It has no ports any more; the fifo of a lease goes, too."""
        if not owner.startswith(files.LEASE + ":"):
            return
        for watched in (self._fifos, self._processes):
            for fd, name in list(watched.items()):
                if name == owner:
                    del watched[fd]
                    os.close(fd)
        try:
            os.unlink(files.fifo(self._instance, owner))
        except OSError:
            pass

    def watched(self) -> Iterator[Watched]:
        """What is to be polled."""
        for fd, owner in self._fifos.items():
            yield fd, 0, partial(self._hung_up, fd, owner)
        for fd, owner in self._processes.items():
            yield fd, select.POLLIN, partial(self._ended, owner)

    def _is_watched(self, owner: str) -> bool:
        return owner in self._fifos.values() or owner in self._processes.values()

    def _hung_up(self, fd: int, owner: str) -> None:
        """Nobody has the fifo open: nobody will, so it is the process now that counts."""
        try:
            pidfd = files.open_process(owner)
        except OSError:
            self._ended(owner)
            return
        self._processes[pidfd] = owner
        del self._fifos[fd]
        os.close(fd)

    def changed(self, number: int) -> None:
        """The watcher tells this number."""
        if number in (self._leases, self._containers):
            self._ended("")
