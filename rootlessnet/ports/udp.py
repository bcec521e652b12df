"""UDP: a flow for each client, until it has been silent for a while.

A flow has a socket inside, bound to the client's address where that is kept, and connected to the
server. Datagrams of the client come by the rule's own socket first; a flow that goes on gets a
socket at the host too, connected to the client, so that both ways are read and written without an
address. What is sent back comes from the very address that the client had sent to.

A client on loopback that keeps its address is on loopback inside as well, and there a server that
listens on all addresses answers from its own loopback address, not from the one that was asked. So
such a flow is connected only after the first answer, to whom that came from.

A server that listens by one family only refuses what comes by the other. So a flow that is refused
before it was ever answered begins again by the other family, with its first datagram.
"""

from __future__ import annotations

import _socket
import errno
import select
import struct
import time

from rootlessnet.kernel.trace import trace
from rootlessnet.ports import burst
from rootlessnet.ports.clients import kind_of
from rootlessnet.ports.target import is_loopback, unmapped
from rootlessnet.ports.tcp import CANNOT_BIND

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.ports.loop import Loop
    from rootlessnet.ports.target import Target

    Way = tuple[str, str, bool]

_SHORT_SECONDS = 30.0
"""A question and its answer."""
_LONG_SECONDS = 120.0
_LONG_AFTER = 6
"""Datagrams of the client by which a flow is one that goes on."""
_AT_ONCE = 64
_MANY = 8
"""Datagrams at once, from which a flow is one that moves much."""
_REST, _SHORT_REST = 200_000, 100_000
"""Nanoseconds; the short one where more has arrived already."""
_BUFFER = 65536
_MAX_FLOWS = 8192
_FIRST_SIZE = 4096
_AGAIN_SECONDS = 0.01

SOL_IP, IP_PKTINFO = 0, 8
SOL_IPV6, IPV6_RECVPKTINFO, IPV6_PKTINFO = 41, 49, 50
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_IN = select.EPOLLIN


class Flow:
    """One client of one rule. ask is the server's address until the flow is connected to it. ways
    are those that are left to be tried, first is the datagram to try them with. was_refused: this
    is not the first way; unkept is what is to be told then, once there is an answer."""

    __slots__ = (
        "answer",
        "answers",
        "ask",
        "count",
        "first",
        "host",
        "inside",
        "key",
        "last",
        "port",
        "together",
        "unkept",
        "was_refused",
        "ways",
    )

    def __init__(self, port: Port, key: tuple[Any, ...], inside: _socket.socket) -> None:
        self.port = port
        self.key = key
        self.inside = inside
        self.ask: tuple[str, int] | None = None
        self.host: _socket.socket | None = None
        self.answer: list[tuple[int, int, bytes]] = []
        self.count = 0
        self.answers = 0
        self.together = [True, True]
        self.ways: list[Way] = []
        self.first = b""
        self.was_refused = False
        self.unkept = ""
        self.last = time.monotonic()

    def send(self, data: memoryview) -> None:
        """To the server. Raises OSError."""
        if self.ask:
            self.inside.sendto(data, self.ask)
        else:
            self.inside.send(data)

    def refused(self) -> None:
        """The server does not hear; maybe it does by the other family."""
        port = self.port
        if self.answers or self.host is not None or port.flows.get(self.key) is not self:
            return
        if self.ways:
            port.drop(self)
            other = port.open(self.key, self.answer, self.ways, again=True)
            if other is not None:
                other.count = self.count
                if self.first:
                    try:
                        other.send(memoryview(self.first))
                    except OSError:
                        pass
        elif self.was_refused and port.loop.now >= port.again_at:
            # By none: the next datagram begins with the client's own family. Not for each one of
            # somebody who sends many.
            port.again_at = port.loop.now + _AGAIN_SECONDS
            port.drop(self)

    def _heard(self) -> None:
        """The server answers."""
        self.ways, self.first = [], b""
        if self.unkept:
            self.port.loop.unkept(self.port.target, self.unkept)
            self.unkept = ""

    def _connect_back(self) -> bool:
        """Take the first answer for what tells the server's address; False when it is none."""
        assert self.ask is not None
        try:
            _, source = self.inside.recvfrom_into(self.port.loop.buffer, 1, _socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            self.refused()
            return False
        if source[1] == self.ask[1] and (source[0] == self.ask[0] or is_loopback(source[0])):
            self.inside.connect(source)
            _tell_errors(self.inside, False)
            self.ask = None
            return True
        self.inside.recv_into(self.port.loop.buffer, 1)
        return False

    def from_server(self, mask: int) -> None:
        if self.ask and not self._connect_back():
            return
        if self.host is not None:
            self._move(self.inside, self.host, 0)
            return
        loop = self.port.loop
        buffer, view, receive = loop.buffer, loop.view, self.inside.recv_into
        try:
            for _ in range(_AT_ONCE):
                count = receive(buffer, _BUFFER)
                if not self.answers:
                    self._heard()
                self.answers += 1
                self.port.sock.sendmsg([view[:count]], self.answer, 0, self.key)
                if self.answers == _LONG_AFTER:
                    self.port.settle(self)
                    break
        except BlockingIOError:
            pass
        except OSError:
            # By the server or the client: told for each datagram, and lost, like it.
            self.refused()
        self.last = loop.now

    def from_client(self, mask: int) -> None:
        """Of a flow with a socket of its own at the host."""
        assert self.host is not None
        if self.ask is None:
            self._move(self.host, self.inside, 1)
            return
        loop = self.port.loop
        buffer, view, receive, send = loop.buffer, loop.view, self.host.recv_into, self.send
        try:
            for _ in range(_AT_ONCE):
                send(view[: receive(buffer, _BUFFER)])
        except OSError:
            pass
        self.last = loop.now

    def _move(self, source: _socket.socket, to: _socket.socket, way: int) -> None:
        """What has arrived at the one is sent by the other; both are connected."""
        loop = self.port.loop
        self.last = loop.now
        bursts = loop.bursts()
        try:
            sizes = bursts.receive(source)
        except OSError:
            return  # nothing there, or refused: told for a datagram that is lost
        self.together[way] = bursts.send(to, sizes, together=self.together[way])
        if len(sizes) >= _MANY:
            self._rest(source, bursts, _SHORT_REST if len(sizes) == burst.MOST else _REST)

    def _rest(self, source: _socket.socket, bursts: burst.Bursts, nanoseconds: int) -> None:
        """Let more arrive before the next look; whatever else there is to do comes at once.

        The receiver's queue is shorter than ours, and it may wait for this very processor, which
        the kernel gives to it while we sleep. More at once is also less work for all.
        """
        epoll = self.port.loop.epoll
        epoll.modify(source.fileno(), 0)
        try:
            bursts.wait(epoll.fileno(), nanoseconds)
        finally:
            epoll.modify(source.fileno(), _IN)

    def failed(self) -> None:
        """Something went wrong that nobody foresaw."""
        if self.port.flows.get(self.key) is self:
            self.port.drop(self)

    def close(self) -> None:
        loop = self.port.loop
        loop.forget(self.inside.fileno())
        self.inside.close()
        if self.host is not None:
            loop.forget(self.host.fileno())
            self.host.close()


class Port:
    """A bound socket of the host, and the flows through it."""

    __slots__ = ("again_at", "flows", "loop", "port", "sock", "sweeping", "target")

    def __init__(self, loop: Loop, sock: _socket.socket, target: Target, port: int) -> None:
        self.loop = loop
        self.sock = sock
        self.target = target
        self.port = port
        self.flows: dict[tuple[Any, ...], Flow] = {}
        self.sweeping = False
        self.again_at = 0.0
        loop.watch(sock.fileno(), _IN, self.ready)

    def ready(self, mask: int) -> None:
        loop, client = self.loop, None
        try:
            for _ in range(_AT_ONCE):
                count, ancillary, _, client = self.sock.recvmsg_into([loop.buffer], 256)
                flow = self.flows.get(client)
                if flow is None:
                    ways = self.target.ways(unmapped(client[0]))
                    flow = self.open(client, _answer(ancillary), ways)
                    if flow is None:
                        continue
                flow.count += 1
                flow.last = loop.now
                if flow.count == _LONG_AFTER and flow.host is None:
                    self.settle(flow)
                if flow.ways and not flow.first and count <= _FIRST_SIZE:
                    flow.first = bytes(loop.view[:count])
                try:
                    flow.send(loop.view[:count])
                except OSError:
                    flow.refused()  # before: this one is lost, the next will be tried
        except BlockingIOError:
            pass
        except OSError:
            pass  # an error of an earlier answer
        except Exception:
            if client in self.flows:
                self.flows[client].failed()
            raise

    def failed(self) -> None:
        """A datagram is lost, with the flow that it belongs to; the others go on."""

    def open(
        self,
        client: tuple[Any, ...],
        answer: list[tuple[int, int, bytes]],
        ways: list[Way],
        *,
        again: bool = False,
    ) -> Flow | None:
        """A flow by the first of the ways that there is; again when another was refused."""
        if len(self.flows) >= _MAX_FLOWS:
            self.drop(min(self.flows.values(), key=lambda flow: flow.last))
        address = (unmapped(client[0]), client[1])
        while ways:
            version, host, keep = ways.pop(0)
            try:
                sock, kept = self._connect(version, host, address, keep)
            except OSError:
                continue
            flow = Flow(self, client, sock)
            flow.ways = ways
            if not _is_connected(sock):
                flow.ask = (host, self.port)
                _tell_errors(sock, bool(ways))
            flow.answer = answer
            self.flows[client] = flow
            flow.was_refused = again
            kind = "" if kept else kind_of(address[0], version, self.target)
            if again:
                flow.unkept = kind
            elif kind:
                self.loop.unkept(self.target, kind)
            trace("udp:open")
            self.loop.watch(sock.fileno(), _IN, flow.from_server)
            if not self.sweeping:
                self.sweeping = True
                self.loop.later(_SHORT_SECONDS / 4, self._sweep)
            return flow
        return None

    def _connect(
        self, version: str, host: str, client: tuple[str, int], keep: bool
    ) -> tuple[_socket.socket, bool]:
        """A socket inside, and whether the server sees the client's address. Raises OSError."""
        beside = keep and self.target.is_beside(client[0])
        for sock, source in self.loop.sockets("udp", self.target, version, client, keep):
            try:
                if source:
                    sock.bind(source)
                if source is None or not is_loopback(client[0]):
                    sock.connect((host, self.port))
                return sock, source is not None
            except OSError as error:
                sock.close()
                if source is None:
                    raise
                if source[1] == 0 and error.errno in CANNOT_BIND and not beside:
                    self.loop.lost_source(self.target, version, str(error.strerror))
        raise OSError(errno.EADDRNOTAVAIL, "no source address")

    def settle(self, flow: Flow) -> None:
        """Give a flow that goes on a socket of its own at the host."""
        trace("udp:settle")
        if self.loop.is_short_of_descriptors():
            return
        family = self.sock.family
        local = self.sock.getsockname()
        where = _address_of(flow.answer, family)
        sock = _socket.socket(family, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        try:
            sock.setblocking(False)
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEPORT, 1)
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVBUF, 4 << 20)
            sock.bind((where or local[0], *local[1:]))
            sock.connect(flow.key)
        except OSError:
            sock.close()
            return
        if flow.ask:
            _tell_errors(flow.inside, False)
        flow.ways, flow.first = [], b""
        flow.host = sock
        self.loop.watch(sock.fileno(), _IN, flow.from_client)

    def _sweep(self) -> None:
        self.sweeping = False
        now = self.loop.now
        for flow in list(self.flows.values()):
            limit = _LONG_SECONDS if flow.count >= _LONG_AFTER else _SHORT_SECONDS
            if now - flow.last > limit:
                self.drop(flow)
        if self.flows and self.sock.fileno() >= 0:
            self.sweeping = True
            self.loop.later(_SHORT_SECONDS / 4, self._sweep)

    def drop(self, flow: Flow) -> None:
        """End a flow."""
        del self.flows[flow.key]
        flow.close()

    def retarget(self) -> None:
        """The target has another address now: the flows begin again."""
        for flow in list(self.flows.values()):
            self.drop(flow)

    def leave(self) -> None:
        """End what may have a socket in a container's network namespace."""
        for flow in list(self.flows.values()):
            if self.target.is_beside(unmapped(flow.key[0])):
                self.drop(flow)

    def close(self) -> None:
        self.retarget()
        self.loop.forget(self.sock.fileno(), unregister=True)
        self.sock.close()


def _tell_errors(sock: _socket.socket, wanted: bool) -> None:
    """Whether a socket without a peer hears that a datagram was refused. It is told until it is
    closed, or wants to hear no more of it."""
    if sock.family == _socket.AF_INET6:
        sock.setsockopt(SOL_IPV6, _IPV6_RECVERR, int(wanted))
    else:
        sock.setsockopt(SOL_IP, _IP_RECVERR, int(wanted))


def _is_connected(sock: _socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _answer(ancillary: list[Any]) -> list[tuple[int, int, bytes]]:
    """The control message by which an answer comes from the address that was asked."""
    for level, kind, data in ancillary:
        if level == SOL_IP and kind == IP_PKTINFO:
            # ipi_ifindex, ipi_spec_dst, ipi_addr: the kernel takes the second.
            _, specific, _ = struct.unpack("=I4s4s", data[:12])
            return [(SOL_IP, IP_PKTINFO, struct.pack("=I4s4s", 0, specific, b"\0\0\0\0"))]
        if level == SOL_IPV6 and kind == IPV6_PKTINFO:
            address = data[:16]
            index = data[16:20] if address[:2] == b"\xfe\x80" else b"\0\0\0\0"
            return [(SOL_IPV6, IPV6_PKTINFO, address + index)]
    return []


def _address_of(answer: list[tuple[int, int, bytes]], family: int) -> str:
    for level, _, data in answer:
        if level == SOL_IP and family == _socket.AF_INET:
            return _socket.inet_ntop(_socket.AF_INET, data[4:8])
        if level == SOL_IPV6:
            return _socket.inet_ntop(_socket.AF_INET6, data[:16])
    return ""
