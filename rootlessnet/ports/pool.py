"""Sockets of the instance's network namespace, at hand before they are needed.

A helper process lives in the instance's user namespace and makes them; they come over in batches,
by SCM_RIGHTS, while the last ones are still being used. So a connection costs no message.

Only a thread of the helper is in the network namespace: whoever looks for the processes that use it
(rootlessnet.instance.look) goes by their main threads, and must not find this one.

    asked      "KIND COUNT", or "diag 1 [PATH]": a sock_diag(7) socket of the namespace PATH
    answered   "KIND", and the descriptors; "KIND" and none when it failed
"""

from __future__ import annotations

import _socket
import os

from rootlessnet.ports import inside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

BATCH = 120
SMALL_BATCH = 32
"""Where descriptors are few. A large batch disturbs fewer connections: while the helper makes the
sockets it takes a processor from somebody."""
_MAX_MESSAGE = 4096
_SECONDS = 5.0

DIAG = "diag"


# -- the helper ------------------------------------------------------------------------------------


def serve(userns: int, netns: int, channels: list[int]) -> NoReturn:
    """The helper's whole life: it ends when nobody is at the other end of any channel."""
    import threading

    try:
        inside.join_user(userns)
        thread = threading.Thread(target=_serve, args=(netns, channels))
        thread.start()
        thread.join()
    finally:
        os._exit(0)


def _serve(netns: int, channels: list[int]) -> None:
    import select
    import socket

    from rootlessnet.kernel import libc

    libc.setns(netns, libc.CLONE_NEWNET)
    ends = {fd: socket.socket(fileno=fd) for fd in channels}
    poll = select.poll()
    for fd in ends:
        poll.register(fd, select.POLLIN)
    while ends:
        for fd, _ in poll.poll():
            try:
                message = ends[fd].recv(_MAX_MESSAGE)
            except OSError:
                message = b""
            if not message:
                poll.unregister(fd)
                ends.pop(fd).close()
                continue
            kind, count, *rest = message.decode().split(" ", 2)
            made: list[_socket.socket] = []
            try:
                if kind == DIAG:
                    made.append(_diag(netns, rest[0] if rest else ""))
                else:
                    made += [inside.make(kind) for _ in range(int(count))]
            except OSError:
                pass  # fewer of them, or none
            try:
                socket.send_fds(ends[fd], [kind.encode()], [one.fileno() for one in made])
            except OSError:
                pass
            for one in made:
                one.close()


_NETLINK_SOCK_DIAG = 4


def _diag(netns: int, path: str) -> _socket.socket:
    import socket

    from rootlessnet.kernel import libc

    if not path:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        libc.setns(fd, libc.CLONE_NEWNET)
        try:
            return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
        finally:
            libc.setns(netns, libc.CLONE_NEWNET)
    finally:
        os.close(fd)


# -- its users -------------------------------------------------------------------------------------


class Pool:
    """The helper's sockets as a worker has them; `channel` is to be polled, for `receive`."""

    def __init__(self, channel: int, batch: int = BATCH) -> None:
        self.batch = batch
        self.channel = channel
        self._socket = _socket.socket(fileno=channel)
        self._socket.settimeout(_SECONDS)
        self._free: dict[str, list[_socket.socket]] = {}
        self._asked: set[str] = set()

    def take(self, kind: str) -> _socket.socket:
        """A new socket. Raises OSError when none can be had."""
        free = self._free.get(kind)
        if not free:
            free = self._fetch(kind)
        made = free.pop()
        if len(free) < self.batch // 2 and kind not in self._asked:
            self._ask(kind)
        return made

    def _ask(self, kind: str) -> None:
        self._socket.send(f"{kind} {self.batch}".encode())
        self._asked.add(kind)

    def _fetch(self, kind: str) -> list[_socket.socket]:
        import errno

        if kind not in self._asked:
            self._ask(kind)
        while kind in self._asked:
            self.receive()
        free = self._free.get(kind)
        if not free:
            raise OSError(errno.ENFILE, "no socket of the instance's network namespace")
        return free

    def receive(self, *, wait: bool = True) -> None:
        """Take what the helper has sent. Raises OSError when it is gone."""
        import errno
        import select

        if not wait:
            # Whoever was in a hurry may have taken it since epoll told of it.
            poll = select.poll()
            poll.register(self.channel, select.POLLIN)
            if not poll.poll(0):
                return
        kind, fds = receive(self._socket, BATCH)
        if not kind:
            raise OSError(errno.EPIPE, "the helper in the network namespace is gone")
        self._asked.discard(kind)
        free = self._free.setdefault(kind, [])
        for fd in fds:
            free.append(wrap(kind, fd))

    def close(self) -> None:
        for free in self._free.values():
            for made in free:
                made.close()
        self._free.clear()
        self._socket.close()


def wrap(kind: str, fd: int) -> _socket.socket:
    family = _socket.AF_INET if kind[1] == "4" else _socket.AF_INET6
    made = _socket.socket(
        family, _socket.SOCK_STREAM if kind[0] == "t" else _socket.SOCK_DGRAM, 0, fd
    )
    made.setblocking(False)
    return made


def receive(channel: _socket.socket, most: int) -> tuple[str, list[int]]:
    """One message and its descriptors; an empty one when the other end is gone."""
    import array

    fds = array.array("i")
    data, ancillary, _, _ = channel.recvmsg(
        _MAX_MESSAGE, _socket.CMSG_SPACE(most * fds.itemsize), _socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, content in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data.decode(), list(fds)
