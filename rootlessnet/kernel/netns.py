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

    Raises OSError. A thread that ends at once makes it, so that ours stays where it is.
    """
    import threading

    made: list[int] = []
    failures: list[OSError] = []

    def body() -> None:
        try:
            libc.unshare(libc.CLONE_NEWNET)
            made.append(open_own())
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return made[0]


def is_same(one: int, other: int) -> bool:
    """Whether two descriptors are of one namespace."""
    a, b = os.fstat(one), os.fstat(other)
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)


def inside(fd: int, function: Callable[[], T]) -> T:
    """What function returns when it runs in the network namespace fd; its exceptions too.

    It runs in a thread of its own that ends there. The calling thread never leaves its namespace:
    in a user namespace that does not own it there would be no way back.
    """
    import threading

    results: list[T] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            libc.setns(fd, libc.CLONE_NEWNET)
            results.append(function())
        except BaseException as e:
            failures.append(e)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]
