"""TCP: from an accepted connection to one inside, and the copying between them.

A connection is two `Half`s. What one reads is written to the other at once; what that does not take
is kept, and nothing more is read until it has gone. So a slow reader costs what was read in one go:
64 KiB, more only for a connection that has been taking more, and never more than a budget in all.

One buffer serves all connections: large reads and writes wake the other side seldom, and are what
makes this faster than splice(2) through a pipe.
"""

from __future__ import annotations

import _socket
import errno
import select
import struct
from functools import partial

from rootlessnet.ports.target import unmapped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.ports.loop import Loop
    from rootlessnet.ports.target import Target

_FIRST_READ = 64 << 10
_LARGEST_READ = 4 << 20
_LAST_READS = 16
_BUDGET = 64 << 20
"""Bytes that a worker keeps for slow readers before it reads in small pieces only."""

_IN, _OUT, _ERR, _HUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR, select.EPOLLHUP
_RESET = struct.pack("ii", 1, 0)
_GONE = -1
_SNAT_AFTER = 1.0
_SNAT_AFTER_LOCAL = 0.03
"""Within the namespace every answer is immediate, but for a full queue, and for IPv6 resets to ::1,
which do not come back at all."""
_STRIKES = 2
_NO_ROOM = (errno.ENFILE, errno.EMFILE)
_PAUSE = 0.05
_PATIENCE = 200
_CONNECT_SECONDS = 30.0


class Half:
    """One end of a connection. pending is what it has still to send."""

    __slots__ = ("ended", "events", "fd", "limit", "loop", "other", "pending", "sock")

    other: Half

    def __init__(self, loop: Loop, sock: _socket.socket) -> None:
        self.loop = loop
        self.sock = sock
        self.fd = sock.fileno()
        self.pending: memoryview | None = None
        self.limit = _FIRST_READ
        self.events = _IN
        self.ended = False

    def ready(self, mask: int) -> None:
        """What epoll says of this socket."""
        if mask & _OUT and self.pending is not None:
            self._flush()
        if mask & ~_OUT and self.sock is not None:
            if self.events & _IN:
                self._copy()
            else:
                self._hung_up()

    def _copy(self) -> None:
        loop, other = self.loop, self.other
        try:
            count = self.sock.recv_into(loop.buffer, self.limit)
        except BlockingIOError:
            return
        except OSError:
            self.abort()
            return
        if not count:
            self.ended = True
            self._watch(0)
            other.finish()
            return
        try:
            sent = other.sock.send(loop.view[:count])
        except BlockingIOError:
            sent = 0
        except OSError:
            self._take_last_words()
            self.abort()
            return
        if sent < count:
            self._stall(sent, count)
        elif count == self.limit and count < _LARGEST_READ and loop.kept < _BUDGET:
            self.limit = count * 4

    def _take_last_words(self) -> None:
        """The other end hears nothing any more. What it had said before is passed on: an answer to
        an upload that it did not want, for instance."""
        loop, other = self.loop, self.other
        if self.pending is not None:
            return
        try:
            for _ in range(_LAST_READS):
                count = other.sock.recv_into(loop.buffer, _FIRST_READ)
                if not count or self.sock.send(loop.view[:count]) < count:
                    return
        except OSError:
            return

    def _stall(self, sent: int, count: int) -> None:
        """The other end takes no more for now."""
        other = self.other
        other.pending = memoryview(bytes(self.loop.view[sent:count]))
        self.loop.kept += count - sent
        if self.loop.kept >= _BUDGET:
            self.limit = _FIRST_READ
        self._watch(0)
        other._watch(other.events | _OUT)

    def _flush(self) -> None:
        assert self.pending is not None
        try:
            sent = self.sock.send(self.pending)
        except BlockingIOError:
            return
        except OSError:
            self.abort()
            return
        self.loop.kept -= sent
        if sent < len(self.pending):
            self.pending = self.pending[sent:]
            return
        self.pending = None
        self._watch(self.events & ~_OUT)
        if self.other.ended:
            self.finish()
        else:
            self.other._watch(self.other.events | _IN)

    def finish(self) -> None:
        """The other end has said all: so have we, once it is sent."""
        if self.pending is not None:
            return
        if self.ended:
            self._close()
            return
        try:
            self.sock.shutdown(_socket.SHUT_WR)
        except OSError:
            self.abort()

    def _watch(self, events: int) -> None:
        if self.events == _GONE:
            if events:
                self.loop.epoll.register(self.fd, events)
                self.events = events
        elif events != self.events:
            self.loop.epoll.modify(self.fd, events)
            self.events = events

    def _hung_up(self) -> None:
        """Nothing was asked, so it is an error or the end of both directions."""
        if self.sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR):
            self.abort()
        elif self.events != _GONE and not self.events:
            # It would be told again and again, and there may be something to send the other way.
            self.loop.epoll.unregister(self.fd)
            self.events = _GONE

    def abort(self) -> None:
        """Pass a reset on: both ends get one."""
        reset(self.sock)
        reset(self.other.sock)
        self._close()

    def _close(self) -> None:
        loop, other = self.loop, self.other
        for half in (self, other):
            if half.pending is not None:
                loop.kept -= len(half.pending)
                half.pending = None
            loop.forget(half.fd)
            half.events = 0
            half.ended = True
            half.sock.close()
        # They hold one another, and a collector would have to find them.
        del self.other, other.other
        loop.connection_ended()


def reset(sock: _socket.socket) -> None:
    """Let the close of this socket be a reset."""
    try:
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, _RESET)
    except OSError:
        pass


def join(loop: Loop, client: _socket.socket, server: _socket.socket) -> None:
    """Copy between the two from now on."""
    one, two = Half(loop, client), Half(loop, server)
    one.other, two.other = two, one
    loop.watch(one.fd, _IN, one.ready)
    loop.watch(two.fd, _IN, two.ready)


class Opening:
    """A connection on its way to the server: each address in turn, with the client's own address if
    that is wanted. If that stays unanswered, the server may have no way back: it is tried
    without."""

    __slots__ = ("address", "attempts", "client", "loop", "plain", "port", "sock", "target", "ways")

    def __init__(
        self,
        loop: Loop,
        client: _socket.socket,
        address: tuple[str, int],
        target: Target,
        port: int,
    ) -> None:
        self.loop = loop
        self.client = client
        self.address = (unmapped(address[0]), address[1])
        self.target = target
        self.port = port
        self.ways = target.ways(self.address[0])
        self.sock: _socket.socket | None = None
        self.plain: _socket.socket | None = None
        self.attempts = 0

    def begin(self) -> None:
        """Try the next way; the client is reset when there is none left."""
        while self.ways:
            version, host, keep = self.ways.pop(0)
            try:
                sock, done = start(
                    self.loop, self.target, version, (host, self.port), self.address, keep
                )
            except OSError as error:
                if error.errno in _NO_ROOM and self.attempts < _PATIENCE:
                    # The client waits until another connection has ended.
                    self.attempts += 1
                    self.ways.insert(0, (version, host, keep))
                    self.loop.later(_PAUSE, self.begin)
                    return
                if error.errno == errno.ECONNREFUSED:
                    self.loop.refused(self.target, self.port)
                continue
            if done:
                self._joined(sock)
                return
            self.sock = sock
            self.loop.watch(sock.fileno(), _OUT, self._answered)
            if keep:
                patience = _SNAT_AFTER_LOCAL if self.target.local else _SNAT_AFTER
                self.loop.later(patience, partial(self._unanswered, sock, version, host))
            self.loop.later(_CONNECT_SECONDS, partial(self._give_up, sock))
            return
        reset(self.client)
        self.client.close()
        self.loop.connection_ended()

    def _joined(self, sock: _socket.socket) -> None:
        self.sock = None
        join(self.loop, self.client, sock)

    def _answered(self, mask: int) -> None:
        sock = self.sock
        assert sock is not None
        code = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        self.loop.forget(sock.fileno(), unregister=True)
        self._drop_plain()
        if code:
            self.sock = None
            sock.close()
            if code == errno.ECONNREFUSED:
                self.loop.refused(self.target, self.port)
            self.begin()
        else:
            self.target.strikes = 0
            self._joined(sock)

    def _unanswered(self, sock: _socket.socket, version: str, host: str) -> None:
        """The server has had a second: ask it again, from an address of this namespace."""
        if self.sock is not sock:
            return
        try:
            plain, done = start(
                self.loop, self.target, version, (host, self.port), self.address, False
            )
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                self._refused(sock)
            return
        self.plain = plain
        if done:
            self._plain_answered(0)
        else:
            self.loop.watch(plain.fileno(), _OUT, self._plain_answered)

    def _plain_answered(self, mask: int) -> None:
        plain, sock = self.plain, self.sock
        assert plain is not None and sock is not None
        self.loop.forget(plain.fileno(), unregister=bool(mask))
        code = plain.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if code:
            self.plain = None
            plain.close()
            if code == errno.ECONNREFUSED:
                self._refused(sock)
            return
        self.target.strikes += 1
        if self.target.strikes >= _STRIKES and not self.target.local:
            version = "6" if plain.family == _socket.AF_INET6 else "4"
            self.loop.lost_source(self.target, version, "the server has no way back to it")
        self.loop.forget(sock.fileno(), unregister=True)
        sock.close()
        self.plain = None
        self._joined(plain)

    def _refused(self, sock: _socket.socket) -> None:
        """Nothing listens there: whatever the first attempt is still waiting for."""
        self.loop.forget(sock.fileno(), unregister=True)
        sock.close()
        self.sock = None
        self.loop.refused(self.target, self.port)
        self.begin()

    def _drop_plain(self) -> None:
        if self.plain is not None:
            self.loop.forget(self.plain.fileno(), unregister=True)
            self.plain.close()
            self.plain = None

    def _give_up(self, sock: _socket.socket) -> None:
        if self.sock is not sock:
            return
        self.loop.forget(sock.fileno(), unregister=True)
        sock.close()
        self._drop_plain()
        self.sock = None
        self.begin()


def start(
    loop: Loop,
    target: Target,
    version: str,
    server: tuple[str, int],
    client: tuple[str, int],
    keep: bool,
) -> tuple[_socket.socket, bool]:
    """A socket that is connecting, and whether it is connected already. Raises OSError."""
    kind = target.kind("tcp", version)
    for source in (client, (client[0], 0), None) if keep else (None,):
        sock = loop.pool.take(kind)
        try:
            if source:
                sock.bind(source)
            code = sock.connect_ex(server)
            if code == errno.EINPROGRESS:
                # Without a wire in between the answer is there by now.
                code = sock.connect_ex(server)
            if not code or code == errno.EISCONN:
                return sock, True
            if code in (errno.EINPROGRESS, errno.EALREADY):
                return sock, False
            raise OSError(code, "connect")
        except OSError as error:
            sock.close()
            # The client's port may be a listener's in here, or in use a moment ago.
            if source and error.errno not in _FINAL:
                if source[1] == 0:
                    loop.lost_source(target, version, str(error.strerror))
                continue
            raise
    raise OSError(errno.EADDRNOTAVAIL, "no source address")


_FINAL = (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENFILE, errno.EMFILE)
