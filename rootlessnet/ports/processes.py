"""The processes of the forwarder, and what it tells them.

    workers     accept, connect inside, copy (rootlessnet.ports.loop); one for each processor
    helper      makes the sockets inside (rootlessnet.ports.pool)

They are forked when there is something to copy, and again when one ends, or hangs up: such a worker
goes on with the connections that it has, and does nothing more. What all workers share is made
once: pipes by which they hand connections to one another, and memory in which they count.
"""

from __future__ import annotations

import mmap
import os
import select
import time
from functools import partial

from rootlessnet.instance import portkeeper, state
from rootlessnet.instance.logfile import say
from rootlessnet.kernel import signals
from rootlessnet.ports import loop, pool

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from rootlessnet.instance.paths import Instance
    from rootlessnet.kernel.namespaces import Pins
    from rootlessnet.ports.publication import Publication

    Watched = tuple[int, int, Callable[[], None]]
    """A descriptor, the events to poll for, and what to do then."""

_MOST_WORKERS = 4
_SECONDS = 10.0
_BACK_OFF = (0.0, 0.1, 0.5, 1.0, 5.0, 30.0)
"""Seconds after each start before there is another."""
_STABLE_SECONDS = 10.0
_FAILED_PAUSE = 2.0
_NOBODY = 1 << 31
"""As the number of connections of a worker that is not there: it is handed no more."""
_MOST_NUMBERS = 3000
"""Listeners in one message."""


class _Child:
    """A process, and the channel to it."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.channel = channel
        channel.settimeout(_SECONDS)

    def tell(self, order: dict[str, Any], fds: list[int]) -> None:
        """One that is stuck is ended."""
        import json
        import socket

        try:
            socket.send_fds(self.channel, [json.dumps(order).encode()], fds)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has ended or hung up, as poll tells in a moment
        except OSError as error:
            say(f"a port worker does not answer: {error.strerror or error}")
            self.kill()

    def kill(self) -> None:
        try:
            os.kill(self.pid, signals.SIGKILL)
        except ProcessLookupError:
            pass

    def reap(self) -> int:
        """Its status; it has ended, or will in a moment."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.channel.close()
        return os.waitstatus_to_exitcode(status)


class Processes:
    """heard is called with what a worker says. due is when to `start` those that have ended, by the
    monotonic clock; 0 while none has."""

    def __init__(
        self,
        instance: Instance,
        pins: Pins,
        heard: Callable[[list[Any]], None],
    ) -> None:
        self._instance = instance
        self._pins = pins
        self._heard = heard
        self._number = min(_MOST_WORKERS, len(os.sched_getaffinity(0)))
        self._size = self._number + 2 * self._number * self._number
        self._counts = memoryview(mmap.mmap(-1, 4 * self._size)).cast("I")
        self._open = [_table() for _ in range(self._number)]
        self._links = [_pair() for _ in range(self._number)]
        self._workers: dict[int, _Child] = {}
        self._fresh: set[int] = set()
        self._leaving: list[_Child] = []
        self._helper: _Child | None = None
        self.due = 0.0
        self._started = self._earliest = 0.0
        self._attempt = 0

    # -- their lives -------------------------------------------------------------------------------

    def start(self) -> tuple[list[int], bool]:
        """Start those that are missing; the numbers of the workers that are new and have to be told
        all, and whether the helper is another one. Raises OSError."""
        missing = [number for number in range(self._number) if number not in self._workers]
        self.due = 0.0
        if self._helper and not missing:
            return [], False
        now = time.monotonic()
        if now < self._earliest:
            self.due = self._earliest
            return [], False
        # Until all is done it is to be tried again.
        self.due = now + _FAILED_PAUSE
        if now - self._started > _STABLE_SECONDS:
            self._attempt = 0
        self._earliest = now + _BACK_OFF[min(self._attempt, len(_BACK_OFF) - 1)]
        self._attempt += 1
        self._started = now
        for number in missing:
            self._workers[number] = self._start_worker(number)
            self._fresh.add(number)
        if self._helper:
            # It serves the channels that it was started with.
            self._helper.kill()
            self._helper.reap()
            self._helper = None
        self._helper = self._start_helper()
        self.due = 0.0
        fresh, self._fresh = sorted(self._fresh), set()
        return fresh, True

    def _start_worker(self, number: int) -> _Child:
        ours, theirs = _pair()
        # Those that were on their way to a worker that has died do not arrive any more.
        for one in range(self._number, self._size):
            self._counts[one] = 0
        self._open[number] = _table()
        pid = os.fork()
        if pid == 0:
            # --- worker ---
            try:
                _forget_signals()
                channel = theirs.detach()
                links = [(rx.fileno(), tx.fileno()) for rx, tx in self._links]
                keep = {channel, portkeeper.EXIT_FD, *(fd for link in links for fd in link)}
                _close_all_but(keep)
                opened = self._open[number]
                loop.main(number, self._counts, opened, links, channel, portkeeper.EXIT_FD)
            finally:
                os._exit(1)
        # --- forwarder ---
        theirs.close()
        return _Child(pid, ours)

    def _start_helper(self) -> _Child:
        pairs = [_pair() for _ in range(1 + self._number)]
        pid = os.fork()
        if pid == 0:
            # --- helper ---
            try:
                _forget_signals()
                channels = [theirs.detach() for _, theirs in pairs]
                _close_all_but({self._pins.user, self._pins.net, *channels})
                pool.serve(self._pins.user, self._pins.net, channels, self._root)
            finally:
                os._exit(1)
        # --- forwarder ---
        for _, theirs in pairs:
            theirs.close()
        for number, (ours, _) in enumerate(pairs[1:]):
            self._workers[number].tell({"do": "pool"}, [ours.fileno()])
            ours.close()
        helper = _Child(pid, pairs[0][0])
        helper.channel.settimeout(pool.SECONDS)
        return helper

    def watched(self) -> Iterator[Watched]:
        """What is to be polled."""
        if self._helper:
            yield self._helper.pidfd, select.POLLIN, partial(self._helper_ended, self._helper)
        for number, worker in self._workers.items():
            yield worker.pidfd, select.POLLIN, partial(self._worker_ended, number, worker)
            yield worker.channel.fileno(), select.POLLIN, partial(self._hear, number, worker)
        for worker in self._leaving:
            yield worker.pidfd, select.POLLIN, partial(self._left_ended, worker)

    def _helper_ended(self, helper: _Child) -> None:
        if self._helper is not helper:
            return  # it has been replaced since poll told of it
        say("the helper that makes sockets inside has ended")
        helper.reap()
        self._helper = None
        self.due = time.monotonic()

    def _worker_ended(self, number: int, worker: _Child) -> None:
        if self._workers.get(number) is not worker:
            return
        status = worker.reap()
        say(f"a port worker has ended (status {status})")
        self._replace(number)

    def _replace(self, number: int) -> None:
        del self._workers[number]
        self._counts[number] = _NOBODY
        self.due = time.monotonic()

    def _left_ended(self, worker: _Child) -> None:
        status = worker.reap()
        if status:
            say(f"a port worker has ended (status {status})")
        self._leaving.remove(worker)

    def end(self) -> None:
        """End all of them at once; connections are cut. Those that are leaving do so."""
        for child in (*self._workers.values(), self._helper):
            if child:
                child.kill()

    # -- what is told ------------------------------------------------------------------------------

    def publish(self, publication: Publication, number: int | None = None) -> None:
        """Give a worker, or all, the sockets of a publication. One of UDP is served by one."""
        bound, rule = publication.bound, publication.rule
        if bound is None:
            return
        for one in self._workers if number is None else (number,):
            items = [
                (publication.number_of(index), rule.port + index)
                for index in range(rule.count)
                if rule.proto == "tcp" or publication.number_of(index) % self._number == one
            ]
            for start in range(0, len(items), loop.MOST_DESCRIPTORS):
                some = items[start : start + loop.MOST_DESCRIPTORS]
                order = {
                    "do": "listen",
                    "publication": publication.number,
                    "proto": rule.proto,
                    "version": bound.version,
                    "target": publication.target.as_dict(),
                    "items": some,
                }
                fds = [bound.sockets[listener - publication.first].fileno() for listener, _ in some]
                self._workers[one].tell(order, fds)
            opened = [n for n in range(rule.count) if publication.open[n]]
            _gate(self._workers[one], [publication.number_of(n) for n in opened], [])

    def gate(
        self, opened: Iterable[tuple[Publication, int]], shut: Iterable[tuple[Publication, int]]
    ) -> None:
        """These ports listen, and those do not any more."""
        to_open = [publication.number_of(index) for publication, index in opened]
        to_shut = [publication.number_of(index) for publication, index in shut]
        for worker in self._workers.values():
            _gate(worker, to_open, to_shut)

    def retarget(self, publication: Publication) -> None:
        """It leads elsewhere."""
        target = publication.target.as_dict()
        order = {"do": "target", "publication": publication.number, "target": target}
        for worker in self._workers.values():
            worker.tell(order, [])

    def withdraw(self, publication: Publication) -> None:
        """It is no more."""
        for worker in self._workers.values():
            worker.tell({"do": "close", "publication": publication.number}, [])

    def leave(self, publication: Publication) -> None:
        """The container's network namespace has gone: nobody is to keep it."""
        for worker in self._workers.values():
            worker.tell({"do": "leave", "publication": publication.number}, [])

    def diag(self, place: str) -> int:
        """A sock_diag socket of a target's place. Raises OSError."""
        import errno

        if self._helper is None:
            raise OSError(errno.EPIPE, "the helper that makes sockets inside has ended")
        kind = f"{pool.DIAG} {place}".rstrip()
        channel = self._helper.channel
        try:
            channel.send(b"1 " + os.fsencode(kind))
            answered, fds = pool.receive(channel, 1)
            while answered != kind:
                # It comes too late, or the helper is gone.
                for fd in fds:
                    os.close(fd)
                if not answered:
                    raise OSError(errno.EPIPE, "the helper that makes sockets inside has ended")
                answered, fds = pool.receive(channel, 1)
        except TimeoutError:
            if not place:
                self.replace_helper()
            raise OSError(errno.ETIMEDOUT, "it takes too long", place) from None
        if not fds:
            raise OSError(errno.ENOENT, "it cannot be opened", place)
        return fds[0]

    def is_there(self, place: str) -> bool:
        """Whether the path of a place leads anywhere, inside or at the host."""
        path = place.partition(" ")[2]
        root = self._root()
        try:
            os.stat(root)
            os.stat(root + path)
        except FileNotFoundError as error:
            return error.filename == root or os.path.lexists(path)
        except OSError:
            pass
        return True

    def replace_helper(self) -> None:
        """It does not answer: another one is started when its end is heard of."""
        if self._helper:
            say("the helper that makes sockets inside does not answer")
            self._helper.kill()

    def _root(self) -> str:
        """What is mounted inside is seen by whoever comes by way of a process inside."""
        holder = state.read_holder(self._instance)
        return f"/proc/{holder.pid if holder else 0}/root"

    # -- what is heard -----------------------------------------------------------------------------

    def _hear(self, number: int, worker: _Child) -> None:
        import json

        if self._workers.get(number) is not worker:
            return  # it has ended since poll told of it
        try:
            data = worker.channel.recv(65536)
        except OSError:
            data = b""
        if data:
            self._heard(json.loads(data))
        else:
            self._leaving.append(worker)
            self._replace(number)

    def is_busy(self) -> bool:
        """Whether connections are open."""
        return any(self._counts[number] for number in self._workers)

    def connections(self, publication: Publication) -> list[int] | None:
        """How many are open of each of its ports, where that is known: by TCP."""
        first, last = publication.first, publication.first + publication.rule.count
        if not publication.bound or publication.rule.proto != "tcp" or last > loop.MOST_LISTENERS:
            return None
        columns = [opened[first:last].tolist() for opened in self._open]
        return list(map(sum, zip(*columns, strict=True)))


def _gate(worker: _Child, opened: list[int], shut: list[int]) -> None:
    for start in range(0, max(len(opened), len(shut)), _MOST_NUMBERS):
        part = slice(start, start + _MOST_NUMBERS)
        worker.tell({"do": "gate", "open": opened[part], "shut": shut[part]}, [])


def _table() -> memoryview:
    """Open connections of each listener of a worker. Only the pages in use cost memory."""
    return memoryview(mmap.mmap(-1, 4 * loop.MOST_LISTENERS)).cast("I")


def _pair() -> tuple[socket.socket, socket.socket]:
    import socket

    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _forget_signals() -> None:
    """What the forwarder does on signals is not for its children."""
    import signal

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _close_all_but(keep: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd not in keep:
            try:
                os.close(fd)
            except OSError:
                pass  # that of the listing
