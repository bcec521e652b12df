"""Files that are podman's as much as ours: written whole, and locked the way podman locks.

podman locks with fcntl (F_SETLKW), so flock would not keep it out. Such a lock belongs to the
process and is lost when it closes any descriptor of the file: nothing else here opens a lock file.
"""

from __future__ import annotations

import errno
import fcntl
import os

from rootlessnet.errors import Error
from rootlessnet.kernel import files as kernel_files

_TEMPORARY = (".json.new", ".conflist.new")
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

    Who may read it is as podman leaves it, to the umask. The caller keeps others from writing the
    same file. Raises OSError.
    """
    umask = os.umask(0o077)
    os.umask(umask)
    kernel_files.replace(path, data, mode=0o644 & ~umask | 0o600, durable=True)


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
            if self._to_change:
                self._sweep()
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def _sweep(self) -> None:
        """Remove what commands of ours left that were killed while they wrote a network."""
        directory = os.path.dirname(self._path)
        for name in os.listdir(directory):
            if name.startswith(".") and name.endswith(_TEMPORARY):
                os.unlink(f"{directory}/{name}")

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
