"""Files that are podman's as much as ours: written whole, and locked the way podman locks.

podman locks with fcntl (F_SETLKW), so flock would not keep it out. Such a lock belongs to the
process and is lost when it closes any descriptor of the file: nothing else here opens a lock file.
"""

from __future__ import annotations

import errno
import fcntl
import os

from rootlessnet.errors import Error

_PATIENCE = 10.0
"""Seconds that another program may hold a lock; podman holds it for milliseconds."""


def make_directory(path: str) -> None:
    """Make a directory and what is missing above it, for the user alone as podman does."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    if parent and parent != path:
        make_directory(parent)
    try:
        os.mkdir(path, 0o700)
        os.chmod(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise


def replace(path: str, data: bytes) -> None:
    """Write a file so that a reader, also one after a power cut, sees the old or the new one.

    The caller keeps others from writing the same file. Raises OSError.
    """
    directory, name = os.path.split(path)
    # The name must not end as those that are read.
    temporary = f"{directory}/.{name}.new"
    fd = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644
    )
    try:
        _let_the_owner_in(fd)
        written = 0
        while written < len(data):
            written += os.write(fd, data[written:])
        os.fsync(fd)
    except OSError:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    os.rename(temporary, path)


def _let_the_owner_in(fd: int) -> None:
    """Whatever the umask is: others may be kept out by it, we and podman may not."""
    mode = os.fstat(fd).st_mode
    if mode & 0o600 != 0o600:
        os.fchmod(fd, mode & 0o777 | 0o600)


class Lock:
    """podman's lock of a directory of networks, as a context.

    To change something, the file is made if need be. To read, a lock file that is not there is not
    made: then nobody has ever written there.
    """

    def __init__(self, path: str, *, to_change: bool) -> None:
        self._path = path
        self._to_change = to_change
        self._fd = -1

    def __enter__(self) -> Lock:
        flags = os.O_RDWR | os.O_CREAT if self._to_change else os.O_RDONLY
        try:
            self._fd = os.open(self._path, flags | os.O_CLOEXEC, 0o644)
            if self._to_change:
                _let_the_owner_in(self._fd)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR) and not self._to_change:
                return self
            raise Error("open the lock of the networks") from error
        try:
            self._wait(fcntl.LOCK_EX if self._to_change else fcntl.LOCK_SH)
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def _wait(self, kind: int) -> None:
        import time

        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.lockf(self._fd, kind | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise Error(f"lock {self._path}") from error
            if time.monotonic() > deadline:
                raise Error(
                    f"lock {self._path}: another program has held it for {_PATIENCE:g} s",
                    hint=f"fuser -v {self._path} shows which",
                )
            time.sleep(0.005)

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
