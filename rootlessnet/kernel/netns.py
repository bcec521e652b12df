"""Network namespaces: opening, comparing and working in one without leaving ours."""

from __future__ import annotations

import errno
import fcntl
import os

from rootlessnet.kernel import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

# ioctl_nsfs(2)
NS_GET_USERNS = 0xB701
NS_GET_NSTYPE = 0xB703


CONGESTION_CONTROL = "/proc/sys/net/ipv4/tcp_congestion_control"


class NotANamespace(OSError):
    """The file is something else than a network namespace."""


def open_path(path: str) -> int:
    """A descriptor of the network namespace that the file stands for; the caller owns it.

    Raises OSError; NotANamespace for a file of another kind, as a bind mount that is gone leaves.
    """
    # O_NONBLOCK: a fifo of that name must not hang us.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        kind = fcntl.ioctl(fd, NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != libc.CLONE_NEWNET:
        os.close(fd)
        raise NotANamespace(errno.EINVAL, "not a network namespace", path)
    return fd


def belongs_here(fd: int) -> bool:
    """Whether the namespace belongs to our user namespace or to one below it: the kernel tells its
    owner to those alone."""
    try:
        os.close(fcntl.ioctl(fd, NS_GET_USERNS))
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        return False
    return True


def open_own() -> int:
    """A descriptor of the network namespace of the calling thread; the caller owns it."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def make() -> int:
    """A descriptor of a new network namespace; the caller owns it, and nothing else keeps it.

    Its TCP congestion control is that of ours, not the system's. Raises OSError. A thread that ends
    at once makes it, so that ours stays where it is.
    """
    made: list[int] = []

    def body() -> None:
        # /proc/sys/net is that of the thread which opens it.
        with open(CONGESTION_CONTROL, encoding="ascii") as file:
            ours = file.read()
        libc.unshare(libc.CLONE_NEWNET)
        made.append(open_own())
        choose_congestion_control(ours)

    _in_a_thread(body)
    return made[0]


def choose_congestion_control(name: str) -> None:
    """Let TCP in the network namespace of the calling thread have it, where that may be chosen."""
    try:
        with open(CONGESTION_CONTROL, "w", encoding="ascii") as file:
            file.write(name)
    except OSError:
        pass  # /proc/sys may be read-only: it is slower, and works


def _in_a_thread(body: Callable[[], None]) -> None:
    """Run body in a thread of its own, wait for its end, and raise what it raised.

    By the C half of the threading module: the other half costs 2 ms to import.
    """
    import _thread

    failures: list[BaseException] = []
    done = _thread.allocate_lock()
    done.acquire()

    def run() -> None:
        try:
            body()
        except BaseException as e:
            failures.append(e)
        finally:
            done.release()

    _thread.start_new_thread(run, ())
    done.acquire()
    if failures:
        raise failures[0]


def is_same(one: int, other: int) -> bool:
    """Whether two descriptors are of one namespace."""
    a, b = os.fstat(one), os.fstat(other)
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)


def inside(fd: int, function: Callable[[], T]) -> T:
    """What function returns when it runs in the network namespace fd; its exceptions too.

    It runs in a thread of its own that ends there. The calling thread never leaves its namespace:
    in a user namespace that does not own it there would be no way back.
    """
    results: list[T] = []

    def body() -> None:
        libc.setns(fd, libc.CLONE_NEWNET)
        results.append(function())

    _in_a_thread(body)
    return results[0]
