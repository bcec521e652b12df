"""The lock of an instance: a file beside the directory it guards, so that it is never deleted.

Shared: to become a user of a running instance. Exclusive: to make, repair or end one, and to change
a record of a lease. It follows its descriptor across fork, so no helper may inherit it.
"""

from __future__ import annotations

import errno
import fcntl
import os

from rootlessnet.errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.instance.paths import Instance

_HINTS = {
    errno.ELOOP: "remove the symbolic link in its place",
    errno.EISDIR: "remove the directory in its place",
}

SHARED = fcntl.LOCK_SH
EXCLUSIVE = fcntl.LOCK_EX


def open_file(instance: Instance) -> int:
    """A descriptor of the lock file, which is made if need be; nothing is locked yet."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        try:
            return os.open(instance.lock_path, flags)
        except FileNotFoundError:
            umask = os.umask(0o077)
            try:
                return os.open(instance.lock_path, flags | os.O_CREAT, 0o600)
            finally:
                os.umask(umask)
    except OSError as error:
        raise Error("open the lock", hint=_HINTS.get(error.errno or 0, "")) from error


def acquire(fd: int, kind: int, seconds: float) -> None:
    """Lock, waiting at most so long. Raises Error then."""
    if try_acquire(fd, kind):
        return
    import time

    deadline = time.monotonic() + seconds
    pause = 0.001
    while not try_acquire(fd, kind):
        if time.monotonic() > deadline:
            raise Error(
                f"lock the instance: another rootlessnet has held it for {seconds:g} s",
                hint="see what it is doing with: rootlessnet logs",
            )
        time.sleep(pause)
        pause = min(pause * 2, 0.01)


def try_acquire(fd: int, kind: int) -> bool:
    """Lock if that is possible at once."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def release(fd: int) -> None:
    """Unlock for every process that shares this descriptor."""
    fcntl.flock(fd, fcntl.LOCK_UN)
