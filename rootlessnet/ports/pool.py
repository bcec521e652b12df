"""Sockets of the instance's network namespace, at hand before they are needed.

A helper process lives in the instance's user namespace and makes them; they come over in batches,
by SCM_RIGHTS, while the last ones are still being used. So a connection costs no message.

Only a thread of the helper is in the network namespace: whoever looks for the processes that use it
(rootlessnet.instance.look) goes by their main threads, and must not find this one.

    asked      "COUNT KIND [INODE PATH]": sockets of the instance's network namespace, or of the
               one with this path inside the instance, if it still has that inode number (0: any)
    answered   "KIND [INODE PATH]", and the descriptors; none when it failed

KIND is one of rootlessnet.ports.inside.make, or "diag" for a sock_diag(7) socket. With a path the
socket is one of a container's own namespace, which it would keep: a stock of these is held for as
long as it is being used.
"""

from __future__ import annotations

import _socket
import os

from rootlessnet.ports import inside, routing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

BATCH = 32
"""While the helper makes them it takes a processor from somebody: a few connections in a hundred
wait a little. A large batch would let fewer of them wait, but so long that it is the 99th
percentile."""
BESIDE_BATCH = 8
"""Of a container's own namespace."""
_MAX_MESSAGE = 8192
_SECONDS = 5.0

DIAG = "diag"


# -- the helper ------------------------------------------------------------------------------------


def serve(userns: int, netns: int, channels: list[int], root: Callable[[], str]) -> NoReturn:
    """The helper's whole life: it ends when nobody is at the other end of any channel. root tells
    where what is mounted inside can be seen, at the moment."""
    import threading

    try:
        inside.join_user(userns)
        thread = threading.Thread(target=_serve, args=(netns, channels, root))
        thread.start()
        thread.join()
    finally:
        os._exit(0)


def _serve(netns: int, channels: list[int], root: Callable[[], str]) -> None:
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
            count, _, kind = message.decode().partition(" ")
            made: list[_socket.socket] = []
            try:
                if " " in kind:
                    _make_there(made, int(count), kind, netns, root())
                else:
                    _make(made, int(count), kind)
            except OSError:
                pass  # fewer of them, or none
            try:
                socket.send_fds(ends[fd], [kind.encode()], [one.fileno() for one in made])
            except OSError:
                pass
            for one in made:
                one.close()


_NETLINK_SOCK_DIAG = 4


def _make(made: list[_socket.socket], count: int, kind: str) -> None:
    import socket

    for _ in range(count):
        if kind == DIAG:
            made.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG))
        else:
            made.append(inside.make(kind))


def _make_there(made: list[_socket.socket], count: int, where: str, own: int, root: str) -> None:
    """The same in the namespace of a path."""
    import errno

    from rootlessnet.kernel import libc, netns

    kind, inode, path = where.split(" ", 2)
    fd = netns.open_path(root + path)
    try:
        if int(inode) not in (0, os.fstat(fd).st_ino):
            raise OSError(errno.ESTALE, "another network namespace", path)
        libc.setns(fd, libc.CLONE_NEWNET)
        try:
            if kind != DIAG:
                _check_loopback()
                if kind[1] == "6":
                    routing.answer_to_loopback()
            _make(made, count, kind)
        finally:
            libc.setns(own, libc.CLONE_NEWNET)
    finally:
        os.close(fd)


def _check_loopback() -> None:
    """Raise OSError where nothing that is sent to loopback would arrive."""
    import errno

    from rootlessnet.kernel import netdevice

    if not netdevice.is_up("lo"):
        raise OSError(errno.ENETDOWN, "it is down", "lo")


# -- its users -------------------------------------------------------------------------------------


class Pool:
    """The helper's sockets as a worker has them; `channel` is to be polled, for `receive`."""

    def __init__(self, channel: int) -> None:
        self.channel = channel
        self._socket = _socket.socket(fileno=channel)
        self._socket.settimeout(_SECONDS)
        self._free: dict[str, list[int]] = {}
        self._asked: set[str] = set()
        self._taken: set[str] = set()
        """Kinds with a path of which one was taken since `let_go`."""

    def take(self, kind: str) -> _socket.socket:
        """A new socket. Raises OSError when none can be had."""
        free = self._free.get(kind)
        if not free:
            free = self._fetch(kind)
        made = free.pop()
        if has_path(kind):
            self._taken.add(kind)
        if len(free) < _batch(kind) // 2 and kind not in self._asked:
            self._ask(kind)
        return inside.adopt(kind, made)

    def let_go(self) -> bool:
        """Close what is at hand of containers' own namespaces, but for those that were used since
        the last time; whether there is, or comes, anything to let go of later."""
        for kind in [kind for kind in self._free if has_path(kind) and kind not in self._taken]:
            for fd in self._free.pop(kind):
                os.close(fd)
        self._taken.clear()
        return any(map(has_path, (*self._free, *self._asked)))

    def _ask(self, kind: str) -> None:
        self._socket.send(f"{_batch(kind)} {kind}".encode())
        self._asked.add(kind)

    def _fetch(self, kind: str) -> list[int]:
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
        self._free.setdefault(kind, []).extend(fds)

    def close(self) -> None:
        for free in self._free.values():
            for fd in free:
                os.close(fd)
        self._free.clear()
        self._socket.close()


def has_path(kind: str) -> bool:
    """Whether sockets of this kind are of a container's own namespace."""
    return " " in kind


def _batch(kind: str) -> int:
    return BESIDE_BATCH if has_path(kind) else BATCH


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
