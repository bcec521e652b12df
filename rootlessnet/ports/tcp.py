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

from rootlessnet.kernel.trace import trace
from rootlessnet.ports.clients import kind_of
from rootlessnet.ports.inside import no_congestion, stay_on_loopback
from rootlessnet.ports.target import is_loopback, unmapped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.ports.loop import Loop
    from rootlessnet.ports.target import Target

_FIRST_READ = 64 << 10
_LARGEST_READ = 4 << 20
_BUDGET = 64 << 20
"""Bytes that a worker keeps for slow readers before it reads in small pieces only."""

_IN, _OUT, _ERR, _HUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR, select.EPOLLHUP
_RESET = struct.pack("ii", 1, 0)
_RESETS = (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN, errno.ETIMEDOUT)
"""Errors after which what had been received is still there to be read, and ends."""
_SNAT_AFTER = 1.0
_STRIKES = 2
_NO_ROOM = (errno.ENFILE, errno.EMFILE)
_PAUSE = 0.05
_PATIENCE = 200
_CONNECT_SECONDS = 30.0


class Half:
    """One end of a connection. pending is what it has still to send; fd is -1 when it is closed.

    ended: it says nothing more. broken: it hears nothing more either, but what it had said before
    is passed on until it ends, and then the other end is reset.
    """

    __slots__ = (
        "broken",
        "ended",
        "events",
        "fd",
        "limit",
        "listener",
        "loop",
        "other",
        "pending",
        "place",
        "registered",
        "sock",
    )

    other: Half

    def __init__(self, loop: Loop, sock: _socket.socket, listener: int) -> None:
        self.loop = loop
        self.sock = sock
        self.listener = listener
        self.fd = sock.fileno()
        self.pending: memoryview | None = None
        self.limit = _FIRST_READ
        self.events = _IN
        self.registered = True
        self.ended = False
        self.broken = False
        self.place = ""

    def ready(self, mask: int) -> None:
        """What epoll says of this socket."""
        if mask & _OUT and self.pending is not None:
            self._flush()
        if mask & ~_OUT and self.fd >= 0:
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
            self.broken = True
            count = 0
        if not count:
            self._said_all()
            return
        try:
            sent = other.sock.send(loop.view[:count])
        except BlockingIOError:
            sent = 0
        except OSError as error:
            other._deaf(error)
            return
        if sent < count:
            self._stall(sent, count)
        elif count == self.limit and count < _LARGEST_READ and loop.kept < _BUDGET:
            if count == _FIRST_READ:
                other._hurry()
            self.limit = count * 4

    def _hurry(self) -> None:
        """There is much to be sent."""
        try:
            own, peer = self.sock.getsockname()[0], self.sock.getpeername()[0]
        except OSError:
            return
        if own == peer or is_loopback(unmapped(peer)):
            no_congestion(self.sock)

    def _said_all(self) -> None:
        self.ended = True
        if self.broken:
            # It would be told again and again.
            self._unregister()
            self._drop_pending()
            self.other._watch(self.other.events & ~_IN)
        else:
            self._watch(self.events & ~_IN)
        self.other.finish()

    def _deaf(self, error: OSError) -> None:
        """It hears nothing any more. What it had said before is passed on: an answer to an upload
        that it did not want, for instance."""
        if error.errno not in _RESETS:
            self.abort()
            return
        self.broken = True
        self._drop_pending()
        self.other._watch(self.other.events & ~_IN)
        if self.ended:
            self.other.finish()
        else:
            self._watch(_IN if self.other.pending is None else 0)

    def _stall(self, sent: int, count: int) -> None:
        """The other end takes no more for now."""
        other = self.other
        other.pending = memoryview(bytes(self.loop.view[sent:count]))
        self.loop.kept += count - sent
        if self.loop.kept >= _BUDGET:
            self.limit = _FIRST_READ
        self._watch(self.events & ~_IN)
        other._watch(other.events | _OUT)

    def _flush(self) -> None:
        assert self.pending is not None
        try:
            sent = self.sock.send(self.pending)
        except BlockingIOError:
            return
        except OSError as error:
            self._deaf(error)
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
        trace("tcp:finish")
        if self.pending is not None:
            return
        if self.other.broken:
            self.abort()
            return
        if self.ended:
            self._close()
            return
        try:
            self.sock.shutdown(_socket.SHUT_WR)
        except OSError as error:
            self._deaf(error)

    def _watch(self, events: int) -> None:
        if not self.registered:
            if events:
                self.loop.epoll.register(self.fd, events)
                self.registered = True
        elif events != self.events:
            self.loop.epoll.modify(self.fd, events)
        self.events = events

    def _unregister(self) -> None:
        if self.registered:
            self.loop.epoll.unregister(self.fd)
            self.registered = False
        self.events = 0

    def _hung_up(self) -> None:
        """Nothing was asked, so it is an error or the end of both directions."""
        if self.sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR):
            self.broken = True
            self._drop_pending()
            self.other._watch(self.other.events & ~_IN)
        if not self.events or self.broken:
            # It would be told again and again; and there may be something to send the other way.
            self._unregister()
        if self.broken and self.ended:
            self.other.finish()

    def _drop_pending(self) -> None:
        if self.pending is not None:
            self.loop.kept -= len(self.pending)
            self.pending = None

    def abort(self) -> None:
        """Pass a reset on: both ends get one."""
        reset(self.sock)
        reset(self.other.sock)
        self._close()

    def failed(self) -> None:
        """Something went wrong that nobody foresaw."""
        if self.fd >= 0:
            self.abort()

    def _close(self) -> None:
        loop, other = self.loop, self.other
        for half in (self, other):
            half._drop_pending()
            loop.forget(half.fd)
            half.events = 0
            half.fd = -1
            half.ended = True
            half.sock.close()
            if half.place:
                loop.beside_ended(half, half.place)
        # They hold one another, and a collector would have to find them.
        del self.other, other.other
        loop.connection_ended(self.listener)


def reset(sock: _socket.socket) -> None:
    """Let the close of this socket be a reset."""
    try:
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, _RESET)
    except OSError:
        pass


def join(
    loop: Loop, client: _socket.socket, server: _socket.socket, listener: int, place: str
) -> None:
    """Copy between the two from now on; place is that of a socket beside the server."""
    one, two = Half(loop, client, listener), Half(loop, server, listener)
    one.other, two.other = two, one
    if place:
        two.place = place
        loop.beside_began(two, place)
    try:
        loop.watch(one.fd, _IN, one.ready)
        loop.watch(two.fd, _IN, two.ready)
    except BaseException:
        one.abort()
        raise


class Opening:
    """A connection on its way to the server: each address in turn, with the client's own address if
    that is wanted. If that stays unanswered behind a bridge, the server may have no way back: it is
    tried without. In the namespace itself there is a way back, so a server that does not answer is
    busy, and the kernel asks again."""

    __slots__ = (
        "address",
        "attempts",
        "client",
        "listener",
        "loop",
        "place",
        "plain",
        "port",
        "sock",
        "target",
        "unkept",
        "ways",
    )

    def __init__(
        self,
        loop: Loop,
        client: _socket.socket,
        address: tuple[str, int],
        target: Target,
        port: int,
        listener: int,
    ) -> None:
        self.loop = loop
        self.listener = listener
        self.client = client
        self.address = (unmapped(address[0]), address[1])
        self.target = target
        self.port = port
        self.ways = target.ways(self.address[0])
        self.sock: _socket.socket | None = None
        self.plain: _socket.socket | None = None
        self.attempts = 0
        self.unkept = ""
        self.place = ""

    def begin(self) -> None:
        """Try the next way; the client is reset when there is none left."""
        trace("tcp:begin")
        while self.ways:
            version, host, keep = self.ways.pop(0)
            try:
                sock, done, kept = start(
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
            beside = kept and self.target.is_beside(self.address[0])
            self.place = self.target.place if beside else ""
            self.unkept = "" if kept else kind_of(self.address[0], version, self.target)
            if done:
                self._joined(sock)
                return
            self.sock = sock
            self.loop.watch(sock.fileno(), _OUT, self._answered)
            if kept and not (self.target.local or beside):
                self.loop.later(_SNAT_AFTER, partial(self._unanswered, sock, version, host))
            self.loop.later(_CONNECT_SECONDS, partial(self._give_up, sock))
            return
        self._end()

    def _end(self) -> None:
        reset(self.client)
        self.client.close()
        self.loop.connection_ended(self.listener)

    def failed(self) -> None:
        """Something went wrong that nobody foresaw."""
        self._drop_plain()
        if self.sock is not None:
            self.loop.forget(self.sock.fileno(), unregister=True)
            self.sock.close()
            self.sock = None
        if self.client.fileno() >= 0:
            self._end()

    def _joined(self, sock: _socket.socket) -> None:
        self.sock = None
        if self.unkept:
            self.loop.unkept(self.target, self.unkept)
        join(self.loop, self.client, sock, self.listener, self.place)

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
            plain, done, _ = start(
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
        if self.target.strikes >= _STRIKES:
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
) -> tuple[_socket.socket, bool, bool]:
    """A socket that is connecting, whether it is connected already, and whether the server sees the
    client's address. Raises OSError."""
    for sock, source in loop.sockets("tcp", target, version, client, keep):
        try:
            if source and not _bind(loop, target, version, sock, source):
                sock.close()
                continue
            code = sock.connect_ex(server)
            if code == errno.EINPROGRESS:
                # Without a wire in between the answer is there by now.
                code = sock.connect_ex(server)
            if not code or code == errno.EISCONN:
                return sock, True, source is not None
            if code in (errno.EINPROGRESS, errno.EALREADY):
                return sock, False, source is not None
            raise OSError(code, "connect")
        except OSError as error:
            sock.close()
            if source is None or error.errno in _FINAL:
                raise
    raise OSError(errno.EADDRNOTAVAIL, "no source address")


def _bind(
    loop: Loop, target: Target, version: str, sock: _socket.socket, source: tuple[str, int]
) -> bool:
    """Whether the socket has this address now. Raises OSError."""
    try:
        sock.bind(source)
    except OSError as error:
        # The port may be a listener's in here, or in use a moment ago; that all of them are is a
        # matter of that moment, too.
        if source[1] == 0 and error.errno in CANNOT_BIND and not target.is_beside(source[0]):
            loop.lost_source(target, version, str(error.strerror))
        return False
    if source[0] == "::1" and target.local:
        stay_on_loopback(sock)
    return True


_FINAL = (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENFILE, errno.EMFILE)
CANNOT_BIND = (errno.EADDRNOTAVAIL, errno.EPERM, errno.EACCES, errno.EINVAL)
"""The client's address cannot be had, and not only at the moment."""
