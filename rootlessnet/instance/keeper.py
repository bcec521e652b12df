"""The supervisor's part in containers: it finds those that ended without a teardown.

It wakes for three descriptors, and for none of them while nothing changes:

    containers/ changes          a record was written or removed: what is watched follows it
    an interface of N is gone    the other end of a container's may have gone with its namespace
    a process of --pid ended     its namespace may have no process any more

What has ended is taken down by a program, `rootlessnet container teardown --gone`, which looks
again with the containers' lock held, and knows netavark and CNI. It is started only after such an
event, and again only after the next one, so that what it cannot mend keeps nobody busy.
"""

from __future__ import annotations

import os
import sys

from rootlessnet.errors import reason
from rootlessnet.instance import containers, look
from rootlessnet.instance.logfile import say
from rootlessnet.kernel import inotify, links, process, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.instance.paths import Instance
    from rootlessnet.kernel.namespaces import Pins

_CHANGES = inotify.IN_MOVED_TO | inotify.IN_DELETE
_BUFFER = 1 << 17
_MOST_REMEMBERED = 4096


class _Watched:
    """What would tell that a container has ended: interfaces, and a process."""

    def __init__(self, record: dict[str, Any]) -> None:
        is_ready = record["phase"] == containers.READY
        items = record["networks"].values() if is_ready else ()
        self.peers = {item["peer"] for item in items if item["peer"]}
        self.pidfd = -1
        self.has_ended = False
        pid, started = record["netns"]["pid"], record["netns"]["started"]
        if is_ready and pid is not None:
            try:
                self.pidfd = process.open_process(pid, started)
            except OSError:
                self.has_ended = True

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Keeper:
    """Looks after the containers of one instance; its descriptors are for the supervisor's poll."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._watched: dict[str, _Watched] = {}
        self._deleted: dict[int, None] = {}
        self._links = -1
        self._helper = -1
        self._helper_pid = 0
        self._is_due = False
        self._seen_pending: tuple[int, int] | None = None
        os.makedirs(instance.path(containers.DIRECTORY), mode=0o700, exist_ok=True)
        self._inotify = inotify.Watcher()
        self._inotify.add(instance.path(containers.DIRECTORY), _CHANGES | inotify.IN_ONLYDIR)
        if self._inotify.problem:
            say(f"containers that end by themselves will not be noticed: {self._inotify.problem}")

    def adopt(self, pins: Pins) -> None:
        """After another supervisor: nobody has watched meanwhile."""
        for id in containers.names(self._instance):
            self._follow(id, pins)
            self._is_due = True

    def descriptors(self) -> list[int]:
        """What to poll."""
        pidfds = [each.pidfd for each in self._watched.values()]
        found = [self._inotify.fd, self._links, self._helper, *pidfds]
        return [fd for fd in found if fd >= 0]

    def has_users(self) -> bool:
        """Whether there is a container."""
        return bool(containers.names(self._instance))

    def look(self, ready: set[int], pins: Pins) -> None:
        """Deal with what has become readable."""
        if self._helper in ready:
            self._reap()
        # First the interfaces, then the records: whoever takes a container down writes that down
        # before, and so is not mistaken for one that was lost.
        if self._links in ready:
            self._read_links()
        if self._inotify.fd in ready:
            for _, _, name in self._inotify.read():
                if not name.endswith(".new"):
                    self._follow(name, pins)
        for watched in self._watched.values():
            if watched.pidfd in ready:
                watched.close()
                watched.has_ended = True
        if any(each.has_ended or self._has_lost(each) for each in self._watched.values()):
            self._is_due = True
            for watched in self._watched.values():
                watched.has_ended = False
                watched.peers -= self._deleted.keys()
        if self._is_due:
            self._start()

    def _has_lost(self, watched: _Watched) -> bool:
        return bool(watched.peers) and self._deleted.keys() >= watched.peers

    def finish_pending(self) -> None:
        """With no lease left: a change that is still being made was left by somebody killed."""
        try:
            info = os.stat(self._instance.path(containers.PENDING))
        except OSError:
            return
        identity = (info.st_ino, info.st_mtime_ns)
        if identity != self._seen_pending:
            self._seen_pending = identity
            self._start()

    def _follow(self, name: str, pins: Pins) -> None:
        before = self._watched.pop(name, None)
        if before:
            before.close()
        record = containers.read(self._instance, name)
        if record is None or record.get("damaged"):
            return
        self._watched[name] = _Watched(record)
        if self._links < 0:
            try:
                self._links = look.link_events(pins)
            except OSError as error:
                say(f"watch the containers' interfaces: {reason(error)}")
                return
            # It may have come and gone before.
            self._is_due = record["phase"] == containers.READY

    def _read_links(self) -> None:
        while True:
            try:
                data = os.read(self._links, _BUFFER)
            except BlockingIOError:
                break
            except OSError:
                self._is_due = True  # some were lost (ENOBUFS)
                break
            for index in links.deleted(data):
                self._deleted[index] = None
        while len(self._deleted) > _MOST_REMEMBERED:
            del self._deleted[next(iter(self._deleted))]

    def _start(self) -> None:
        if self._helper >= 0:
            return  # it is looked again when that one has ended
        self._is_due = False
        command = [sys.executable, "-P", "-m", "rootlessnet", "container", "teardown", "--gone"]
        if self._instance.static_dir:
            command.append(f"--static-dir={self._instance.static_dir}")
        try:
            self._helper_pid = spawn.start(command, descriptors={1: 2, 2: 2})
            self._helper = os.pidfd_open(self._helper_pid)
        except OSError as error:
            say(f"take down containers that have ended: {reason(error)}")

    def _reap(self) -> None:
        try:
            status = os.waitstatus_to_exitcode(os.waitpid(self._helper_pid, 0)[1])
            if status:
                say(f"take down containers that have ended: status {status}")
        except ChildProcessError:
            pass
        os.close(self._helper)
        self._helper = -1
