"""A listening socket of the host in a worker, which accepts from it."""

from __future__ import annotations

import _socket
import errno
import select

from rootlessnet.kernel.trace import trace
from rootlessnet.ports import tcp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.ports.loop import Loop
    from rootlessnet.ports.target import Target

_UNBALANCED = 8
"""Connections more than the worker that has fewest: from then on that gets the new ones."""

_IN = select.EPOLLIN
_LISTEN = select.EPOLLIN | select.EPOLLEXCLUSIVE
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """A listening socket; watched while it really listens."""

    __slots__ = ("loop", "number", "port", "sock", "target", "wanted", "watched")

    def __init__(
        self, loop: Loop, number: int, sock: _socket.socket, target: Target, port: int
    ) -> None:
        self.loop = loop
        self.number = number
        self.sock = sock
        self.target = target
        self.port = port
        self.wanted = self.watched = False

    def watch(self, wanted: bool) -> None:
        """Accept, or do not for now."""
        self.wanted = wanted
        self._register(wanted and not self.loop.full)

    def pause(self) -> None:
        self._register(False)

    def go_on(self) -> None:
        self._register(self.wanted)

    def _register(self, watched: bool) -> None:
        if watched and not self.watched:
            self.loop.watch(self.sock.fileno(), _LISTEN, self.ready)
        elif self.watched and not watched:
            self.loop.forget(self.sock.fileno(), unregister=True)
        self.watched = watched

    def ready(self, mask: int) -> None:
        loop = self.loop
        if mask & ~_IN:
            # It does not listen any more; the forwarder will tell when it does.
            self.watch(False)
            return
        try:
            fd, address = self.sock._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            return  # another worker has it
        except OSError as error:
            if error.errno in _NO_ROOM:
                loop.pause()
            return  # ECONNABORTED and the like are about one connection
        client = _socket.socket(self.sock.family, _socket.SOCK_STREAM, 0, fd)
        try:
            self._take(client, address)
        except Exception:
            loop.bugs.tell()
            tcp.reset(client)
            client.close()

    def _take(self, client: _socket.socket, address: tuple[str, int]) -> None:
        loop = self.loop
        client.setblocking(False)
        trace("worker:accepted")
        if loop.others:
            least = min(loop.others, key=loop.load)
            load = loop.load(least)
            if (
                loop.counts[loop.number] >= load + _UNBALANCED
                and load < loop.most
                and loop.hand_over(least, self.number, client, address)
            ):
                return
        loop.accepted(self, client, address)

    def failed(self) -> None:
        """It is not tried again at once."""
        self.loop.pause()

    def close(self) -> None:
        self.watch(False)
        self.sock.close()
