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
import time

from rootlessnet.ports import inside, routing

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import NoReturn

BATCH = 32
"""While the helper makes them it takes a processor from somebody: a few connections in a hundred
wait a little. A large batch would let fewer of them wait, but so long that it is the 99th
percentile."""
BESIDE_BATCH = 8
"""Of a container's own namespace."""
_MAX_MESSAGE = 8192
SECONDS = 2.0
"""How long the helper may take over an answer."""
_BESIDE_SECONDS = 0.5

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
    import threading

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
            count, _, kind = os.fsdecode(message).partition(" ")
            if has_path(kind):
                # It has places to go to, and the path may lead to a file system that does not
                # answer.
                words = (ends[fd], int(count), kind, root)
                threading.Thread(target=_answer_from_there, args=words, daemon=True).start()
            else:
                _answer(ends[fd], int(count), kind, kind)


def _answer(end: socket.socket, count: int, kind: str, name: str) -> None:
    """Make so many, or fewer when something is in the way, and send them by the name."""
    import socket

    made: list[_socket.socket] = []
    try:
        for _ in range(count):
            if kind == DIAG:
                made.append(_socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG))
            else:
                made.append(inside.make(kind))
    except OSError:
        pass
    try:
        socket.send_fds(end, [os.fsencode(name)], [one.fileno() for one in made])
    except OSError:
        pass
    for one in made:
        one.close()


_NETLINK_SOCK_DIAG = 4


def _answer_from_there(end: socket.socket, count: int, where: str, root: Callable[[], str]) -> None:
    """The same from the namespace of a path, to which this thread moves."""
    kind, inode, path = where.split(" ", 2)
    try:
        _go(int(inode), path, root())
        if kind != DIAG:
            _check_loopback()
            if kind[1] == "6":
                routing.answer_to_loopback()
    except (OSError, ValueError):
        count = 0
    _answer(end, count, kind, where)


def _go(inode: int, path: str, root: str) -> None:
    """Into the namespace of a path inside the instance, if it still has that inode number (0: any).
    Raises OSError."""
    import errno

    from rootlessnet.kernel import libc, netns

    libc.unshare(libc.CLONE_FS)
    os.chroot(root)
    fd = netns.open_path(path)
    try:
        if inode not in (0, os.fstat(fd).st_ino):
            raise OSError(errno.ESTALE, "another network namespace", path)
        libc.setns(fd, libc.CLONE_NEWNET)
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
        self._socket.settimeout(SECONDS)
        self.is_stuck = False
        """Whether the helper did not answer in time."""
        self._free: dict[str, list[int]] = {}
        self._asked: set[str] = set()
        self._taken: set[str] = set()
        """Kinds with a path of which one was taken since `let_go`."""
        self._late: set[str] = set()
        """Kinds with a path that were asked for, and did not come in time."""

    def take(self, kind: str) -> _socket.socket:
        """A new socket. Raises OSError when none can be had: ENFILE for one of the instance's own
        namespace."""
        free = self._free.get(kind)
        if not free:
            free = self._fetch(kind)
        made = free.pop()
        if has_path(kind):
            self._taken.add(kind)
        if len(free) < _batch(kind) // 2 and kind not in self._asked:
            try:
                self._ask(kind)
            except OSError:
                pass  # the helper is gone, and another one will come
        return inside.adopt(kind, made)

    def let_go(self) -> bool:
        """Close what is at hand of containers' own namespaces, but for those that were used since
        the last time; whether there is, or comes, anything to let go of later."""
        for kind in [kind for kind in self._free if has_path(kind) and kind not in self._taken]:
            for fd in self._free.pop(kind):
                os.close(fd)
        self._taken.clear()
        return any(map(has_path, (*self._free, *(self._asked - self._late))))

    def _ask(self, kind: str) -> None:
        self._socket.send(f"{_batch(kind)} ".encode() + os.fsencode(kind))
        self._asked.add(kind)

    def _fetch(self, kind: str) -> list[int]:
        """Those that are free of a kind, at least one. Whoever did not answer in time is not waited
        for again."""
        import errno

        seconds = SECONDS if not has_path(kind) else _BESIDE_SECONDS
        deadline = time.monotonic() + seconds
        try:
            if self.is_stuck or kind in self._late:
                raise TimeoutError
            if kind not in self._asked:
                self._ask(kind)
            while kind in self._asked:
                self._socket.settimeout(max(0.001, deadline - time.monotonic()))
                self.receive()
        except TimeoutError:
            if has_path(kind):
                self._late.add(kind)
            else:
                self.is_stuck = True
        except OSError:
            pass  # it is gone
        free = self._free.get(kind)
        if not free:
            raise OSError(errno.ENFILE, "no socket of the network namespace")
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
        is_late = kind in self._late
        self._late.discard(kind)
        if is_late:
            for fd in fds:
                os.close(fd)
        else:
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
    return os.fsdecode(data), list(fds)
