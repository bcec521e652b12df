"""A worker: one process, one epoll, as many connections as there are descriptors.

All workers have all TCP listeners; who is idle accepts. One that has more connections than another
hands a new one over, so that a few that move much data do not end up in one process. A rule's UDP
socket belongs to one worker.

What the forwarder tells it, as JSON with descriptors:

    listen     new sockets of a publication (a rule), which all lead to one target
    gate       which listeners to watch, and which not, as they do not listen at the moment
    target     a publication leads elsewhere
    close      a publication is no more; connections go on
    pool       another helper makes the sockets inside

An exception that nobody foresaw ends the connection or the flow that it was about, and no other.
One that is about the worker itself ends its work: another worker takes its place, as if the
forwarder were gone.

When the forwarder is gone a worker closes all listeners at once, so that the next forwarder can
have the ports, and goes on with what is open until that has ended, or the instance has.
"""

from __future__ import annotations

import _socket
import heapq
import os
import resource
import select
import time

from rootlessnet.instance.logfile import say
from rootlessnet.kernel.trace import trace
from rootlessnet.ports import burst, tcp, udp
from rootlessnet.ports import pool as pools
from rootlessnet.ports.acceptor import Acceptor
from rootlessnet.ports.bugs import Bugs
from rootlessnet.ports.target import Target, from_dict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

BUFFER = 4 << 20
_RESERVE = 320
"""Descriptors for all that is no connection: pools, channels, a few on their way."""
_PAUSE = 0.05
_LET_GO_SECONDS = 2.0
_MAX_MESSAGE = 65536
MOST_DESCRIPTORS = 100
MOST_LISTENERS = 1 << 17
"""Whose open connections are counted: numbers are not used again."""

_IN = select.EPOLLIN


class Loop:
    """Everything of one worker."""

    def __init__(
        self, number: int, counts: memoryview, open_: memoryview, links: list[tuple[int, int]]
    ) -> None:
        """links has the two ends by which each worker is handed connections. counts is shared by
        all: the connections of each of n workers, and from n on for each pair how many connections
        the one has sent to the other; from n + n * n on how many of these have arrived. Each number
        is written by one worker only. open_ is for this worker's open connections of each listener,
        by its number."""
        self.number = number
        self.workers = len(links)
        self.others = [other for other in range(self.workers) if other != number]
        self.counts = counts
        counts[number] = 0
        self.open = open_
        self.epoll = select.epoll()
        self.table: dict[int, Callable[[int], None]] = {}
        self.buffer = bytearray(BUFFER)
        self.view = memoryview(self.buffer)
        self.kept = 0
        self.now = time.monotonic()
        self.full = False
        self.pool: pools.Pool
        self._has_pool = False
        self._bursts: burst.Bursts | None = None
        self._draining = False
        self._lets_go = False
        self._told_stuck = False
        self._beside: dict[str, set[tcp.Half]] = {}
        self.bugs = Bugs()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_number = 0
        self._listeners: dict[int, Acceptor] = {}
        self._publications: dict[int, tuple[Target, list[Acceptor | udp.Port]]] = {}
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._limit = limit
        self.most = max(8, (limit - _RESERVE) // 2)
        self._links = [_socket.socket(fileno=tx) for _, tx in links]
        self._handed = _socket.socket(fileno=links[number][0])
        for end in (*self._links, self._handed):
            end.setblocking(False)
        self.watch(self._handed.fileno(), _IN, self._receive_handed)

    # -- the loop ----------------------------------------------------------------------------------

    def watch(self, fd: int, events: int, ready: Callable[[int], None]) -> None:
        """Call ready with what happens on the descriptor."""
        self.table[fd] = ready
        self.epoll.register(fd, events)

    def forget(self, fd: int, *, unregister: bool = False) -> None:
        """No longer; a descriptor that is closed right after need not be unregistered."""
        self.table.pop(fd, None)
        if unregister:
            try:
                self.epoll.unregister(fd)
            except (OSError, ValueError):
                pass

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Once, after so long."""
        self._timer_number += 1
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._timer_number, action))

    def run(self, channel: _socket.socket, exit_pipe: int) -> NoReturn:
        """Until there is nothing more to do."""
        self._channel = channel
        channel.setblocking(False)
        self.watch(channel.fileno(), _IN, self._receive)
        self.watch(exit_pipe, 0, lambda mask: os._exit(0))
        poll, table, timers = self.epoll.poll, self.table, self._timers
        while True:
            wait = -1.0
            if timers:
                wait = max(0.0, timers[0][0] - time.monotonic())
            events = poll(wait, 256)
            self.now = time.monotonic()
            for fd, mask in events:
                ready = table.get(fd)
                if ready is not None:
                    try:
                        ready(mask)
                    except Exception:
                        self._end_failed(ready)
            while timers and timers[0][0] <= self.now:
                action = heapq.heappop(timers)[2]
                try:
                    action()
                except Exception:
                    self._end_failed(action)
            if self._draining and not self.counts[self.number]:
                os._exit(0)

    def _end_failed(self, action: Callable[..., None]) -> None:
        """Tell of an exception that nobody foresaw, and end what the action was for."""
        self.bugs.tell()
        owner = getattr(getattr(action, "func", action), "__self__", self)
        try:
            owner.failed()
        except Exception:
            self.bugs.tell()

    def failed(self) -> None:
        """What this worker knows of rules or of other workers may be wrong: another has to take its
        place, and what is open goes on until it ends."""
        if not self._draining:
            say("a port worker takes no more connections")
            # The memory is the other's from now on.
            self.counts = memoryview(bytearray(self.counts)).cast("I")
            self.open = memoryview(bytearray(self.open)).cast("I")
            self.forget(self._handed.fileno(), unregister=True)
            self._drain()

    # -- connections -------------------------------------------------------------------------------

    def accepted(
        self, listener: Acceptor, client: _socket.socket, address: tuple[str, int]
    ) -> None:
        count = self.counts[self.number] + 1
        self.counts[self.number] = count
        if count >= self.most and not self.full:
            self._close_doors()
        if listener.number < MOST_LISTENERS:
            self.open[listener.number] += 1
        opening = tcp.Opening(
            self, client, address, listener.target, listener.port, listener.number
        )
        try:
            opening.begin()
        except Exception:
            self._end_failed(opening.begin)

    def beside_began(self, half: tcp.Half, place: str) -> None:
        """It has a socket in the network namespace of this place."""
        self._beside.setdefault(place, set()).add(half)

    def beside_ended(self, half: tcp.Half, place: str) -> None:
        self._beside[place].discard(half)
        if not self._beside[place]:
            del self._beside[place]

    def connection_ended(self, listener: int) -> None:
        if listener < MOST_LISTENERS:
            self.open[listener] -= 1
        count = self.counts[self.number] - 1
        self.counts[self.number] = count
        if self.full and count < self.most - 8:
            self._open_doors()

    def pause(self) -> None:
        """Accept nothing for a moment: the machine has no room for another connection."""
        if not self.full:
            self._close_doors()
            self.later(_PAUSE, self._open_doors)

    def _close_doors(self) -> None:
        self.full = True
        for listener in self._listeners.values():
            listener.pause()

    def _open_doors(self) -> None:
        if self.counts[self.number] >= self.most:
            return
        self.full = False
        for listener in self._listeners.values():
            listener.go_on()

    def sockets(
        self, proto: str, target: Target, version: str, client: tuple[str, int], keep: bool
    ) -> Iterator[tuple[_socket.socket, tuple[str, int] | None]]:
        """Sockets to reach the target by, one after the other until one will do, each with the
        address that it is to have: the client's, that with another port, any (None). Raises OSError
        when none can be had."""
        beside = keep and target.is_beside(client[0])
        for source in (client, (client[0], 0)) if keep else ():
            try:
                sock = self._take(target.kind(proto, version, beside=beside))
            except OSError:
                if beside:
                    break
                raise
            yield sock, source
        yield self._take(target.kind(proto, version)), None

    def _take(self, kind: str) -> _socket.socket:
        if pools.has_path(kind) and not self._lets_go:
            self._lets_go = True
            self.later(_LET_GO_SECONDS, self._let_go)
        try:
            return self.pool.take(kind)
        except OSError:
            if self.pool.is_stuck and not self._told_stuck:
                self._told_stuck = True
                self._tell("stuck", 0)
            raise

    def _let_go(self) -> None:
        """Our sockets must not be what keeps a container's namespace."""
        self._lets_go = False
        if self.pool.let_go():
            self._lets_go = True
            self.later(_LET_GO_SECONDS, self._let_go)

    def bursts(self) -> burst.Bursts:
        """For many datagrams at once; they are in `buffer` meanwhile."""
        if self._bursts is None:
            self._bursts = burst.Bursts(self.buffer)
        return self._bursts

    def is_short_of_descriptors(self) -> bool:
        """Whether those that are left should be kept for what cannot do without."""
        return len(self.table) > self._limit // 2

    def hand_over(
        self, worker: int, listener: int, client: _socket.socket, address: tuple[str, int]
    ) -> bool:
        """Give a connection that was just accepted to another worker."""
        import json

        fds = client.fileno().to_bytes(4, "little")
        text = json.dumps([self.number, listener, address[0], address[1]]).encode()
        try:
            self._links[worker].sendmsg([text], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fds)])
        except OSError:
            return False
        client.close()
        self.counts[self._sent(self.number, worker)] += 1
        return True

    def _sent(self, sender: int, receiver: int) -> int:
        """Where it is counted what one has sent to another."""
        return self.workers + sender * self.workers + receiver

    def load(self, worker: int) -> int:
        """The connections of another worker, with those that are on their way from this one."""
        sent = self._sent(self.number, worker)
        arrived = sent + self.workers * self.workers
        return self.counts[worker] + self.counts[sent] - self.counts[arrived]

    def _receive_handed(self, mask: int) -> None:
        try:
            text, fds = pools.receive(self._handed, 1)
        except OSError:
            return
        import json

        sender, number, host, port = json.loads(text)
        arrived = self._sent(sender, self.number) + self.workers * self.workers
        self.counts[arrived] += 1
        if not fds:
            return
        listener = self._listeners.get(number)
        client = _socket.socket(fileno=fds[0])
        client.setblocking(False)
        if listener is None:
            tcp.reset(client)
            client.close()
        else:
            self.accepted(listener, client, (host, port))

    # -- the forwarder -----------------------------------------------------------------------------

    def _tell(self, *words: object) -> None:
        import json

        try:
            self._channel.send(json.dumps(words).encode())
        except OSError:
            pass  # it is gone, or will hear of it another time

    def refused(self, target: Target, port: int) -> None:
        """Nothing listens there."""
        self._tell("refused", target.number, port)

    def lost_source(self, target: Target, version: str, why: str) -> None:
        """The client's address cannot be kept on this way: it is not tried again."""
        setattr(target, f"keep{version}", False)
        self._tell("lost", target.number, version, why)

    def unkept(self, target: Target, kind: str) -> None:
        """There is a client of this kind, whose address is not kept (rootlessnet.ports.clients)."""
        if kind not in target.told:
            target.told.add(kind)
            self._tell("unkept", target.number, kind)

    def _receive(self, mask: int) -> None:
        try:
            data, fds = _message(self._channel)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._drain()
            return
        import json

        trace("worker:told")
        order = json.loads(data)
        action = getattr(self, f"_do_{order['do']}")
        action(order, fds)

    def _drain(self) -> None:
        self._draining = True
        self.forget(self._channel.fileno(), unregister=True)
        self._channel.close()
        for publication in list(self._publications):
            self._do_close({"publication": publication}, [])

    def _do_pool(self, order: dict[str, Any], fds: list[int]) -> None:
        if self._has_pool:
            self.forget(self.pool.channel, unregister=True)
            self.pool.close()
        self._has_pool = True
        self._told_stuck = False
        self.pool = pools.Pool(fds[0])
        self.watch(fds[0], _IN, self._refill)

    def _refill(self, mask: int) -> None:
        try:
            self.pool.receive(wait=False)
        except OSError:
            self.forget(self.pool.channel, unregister=True)

    def _do_listen(self, order: dict[str, Any], fds: list[int]) -> None:
        publication = order["publication"]
        if publication not in self._publications:
            target = from_dict(order["target"])
            target.number = publication
            self._publications[publication] = (target, [])
        target, members = self._publications[publication]
        kind = _socket.SOCK_STREAM if order["proto"] == "tcp" else _socket.SOCK_DGRAM
        family = _socket.AF_INET6 if order["version"] == 6 else _socket.AF_INET
        for (number, port), fd in zip(order["items"], fds, strict=True):
            sock = _socket.socket(family, kind, 0, fd)
            if kind == _socket.SOCK_DGRAM:
                members.append(udp.Port(self, sock, target, port))
            else:
                listener = Acceptor(self, number, sock, target, port)
                self._listeners[number] = listener
                members.append(listener)

    def _do_gate(self, order: dict[str, Any], fds: list[int]) -> None:
        for number in order["shut"]:
            if number in self._listeners:
                self._listeners[number].watch(False)
        for number in order["open"]:
            if number in self._listeners:
                self._listeners[number].target.told.clear()
                self._listeners[number].watch(True)

    def _do_target(self, order: dict[str, Any], fds: list[int]) -> None:
        found = self._publications.get(order["publication"])
        if found:
            found[0].update(from_dict(order["target"]))
            for member in found[1]:
                if isinstance(member, udp.Port):
                    member.retarget()

    def _do_leave(self, order: dict[str, Any], fds: list[int]) -> None:
        """End what has a socket in a container's network namespace, and make no more of them."""
        target, members = self._publications.get(order["publication"], (None, []))
        if target is None:
            return
        for half in list(self._beside.get(target.place, ())):
            half.abort()
        for member in members:
            if isinstance(member, udp.Port):
                member.leave()
        target.inode = 0

    def _do_close(self, order: dict[str, Any], fds: list[int]) -> None:
        _, members = self._publications.pop(order["publication"], (None, []))
        for member in members:
            if isinstance(member, Acceptor):
                self._listeners.pop(member.number, None)
            member.close()


def _message(channel: _socket.socket) -> tuple[bytes, list[int]]:
    import array

    fds = array.array("i")
    data, ancillary, _, _ = channel.recvmsg(
        _MAX_MESSAGE,
        _socket.CMSG_SPACE(MOST_DESCRIPTORS * fds.itemsize),
        _socket.MSG_CMSG_CLOEXEC,
    )
    for level, kind, content in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)


def main(
    number: int,
    counts: memoryview,
    open_: memoryview,
    links: list[tuple[int, int]],
    channel: int,
    exit_pipe: int,
) -> NoReturn:
    """The worker's whole life, in a fresh process."""
    try:
        Loop(number, counts, open_, links).run(_socket.socket(fileno=channel), exit_pipe)
    except BaseException:
        import traceback

        say("bug: " + traceback.format_exc())
    finally:
        os._exit(1)
