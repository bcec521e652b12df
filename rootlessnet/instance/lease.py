"""Who uses the instance: counted by the kernel.

`lease.fifo` in the state directory. A user opens it for writing and keeps the descriptor across
exec; the supervisor holds the reading end. The last writing end gone, whatever ended its owner, is
an event for the supervisor (POLLHUP), and children that outlive the command count too, since they
inherited the descriptor. Opening it for writing fails while nobody reads it: no supervisor, no
instance. No number is stored, so none can be wrong.

A user opens it under the shared lock of the instance, and the supervisor tears down only under the
exclusive lock after one more look, so nobody slips in between.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.instance.paths import Instance

FIFO = "lease.fifo"

# No reader; or nothing there, or something that is none of ours.
_NOBODY_READS = (errno.ENXIO, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES)

# Out of the way of the descriptors that shells and their scripts use by number.
_HIGH = 200


def take(instance: Instance) -> int | None:
    """Become a user of the running instance; the descriptor is the lease.

    None when there is no supervisor. The caller holds the instance's lock, shared or exclusive.
    """
    try:
        fd = os.open(
            instance.path(FIFO), os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        )
    except OSError as error:
        if error.errno in _NOBODY_READS:
            return None
        raise
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    return fd


def keep_across_exec(fd: int) -> int:
    """Move the lease to a high descriptor that programs inherit; it stays open from then on."""
    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD, _HIGH)
    except OSError:
        # RLIMIT_NOFILE is lower than that.
        os.set_inheritable(fd, True)
        return fd
    os.close(fd)
    return high


def open_reader(instance: Instance) -> int:
    """The supervisor's end."""
    return os.open(instance.path(FIFO), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)


def has_users(reader: int) -> bool:
    """Whether anybody holds a lease; what a user wrote into the fifo is thrown away."""
    for _ in range(16):
        try:
            if not os.read(reader, 65536):
                return False
        except BlockingIOError:
            return True
    return True  # somebody keeps writing


def holders(instance: Instance) -> list[int]:
    """The processes that hold a lease, for people to look at: found in /proc, never counted."""
    from rootlessnet.kernel import process

    return [pid for pid in process.all_pids() if is_holder(instance, pid)]


def is_holder(instance: Instance, pid: int) -> bool:
    """Whether the process has a writing end of the fifo, as far as we may look."""
    try:
        fifo = os.stat(instance.path(FIFO))
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for name in names:
        path = f"/proc/{pid}/fd/{name}"
        try:
            info = os.stat(path)
            if (info.st_dev, info.st_ino) != (fifo.st_dev, fifo.st_ino):
                continue
            # The permission bits of the link tell a writing end from the supervisor's.
            if os.lstat(path).st_mode & stat.S_IWUSR:
                return True
        except OSError:
            continue
    return False
