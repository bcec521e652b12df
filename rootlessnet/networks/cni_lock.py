"""Who may work on an attachment: one runtime at a time; and on none while garbage is collected.

<cache directory>/rootlessnet.lock    stays; byte ranges of it are locked

An attachment is one byte, at an offset that is a hash of it; a garbage collection is all of them.
The locks are of the open file (F_OFD_SETLK) and the plugins inherit it, so that a plugin which goes
on after its runtime was killed still has the attachment to itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from rootlessnet.errors import Error

NAME = "rootlessnet.lock"
_PATIENCE = 60.0
_PAUSE = 0.01
# struct flock: l_type, l_whence, l_start, l_len, l_pid; native alignment puts l_start at 8.
_FLOCK = struct.Struct("@hhqqi")


class Lock:
    """The lock of one attachment, or of all; a context whose value is its descriptor."""

    def __init__(self, directory: str, key: str | None, *, patience: float = _PATIENCE) -> None:
        """key names the attachment, None stands for all of them."""
        self._path = f"{directory}/{NAME}"
        self._key = key
        self._patience = patience
        self._fd = -1

    def __enter__(self) -> int:
        try:
            os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
            self._fd = os.open(
                self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        except OSError as error:
            raise Error("open the lock of the CNI results") from error
        try:
            self._wait()
        except BaseException:
            os.close(self._fd)
            raise
        return self._fd

    def _wait(self) -> None:
        import time

        start, length = (0, 0) if self._key is None else (_offset(self._key), 1)
        request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        deadline = time.monotonic() + self._patience
        while True:
            try:
                fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, request)
                return
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise Error(f"lock {self._path}") from error
            if time.monotonic() > deadline:
                what = "the attachments are" if self._key is None else f"{self._key} is"
                raise Error(
                    f"lock {self._path}: {what} being worked on for more than {self._patience:g} s",
                    hint=f"fuser -v {self._path} shows by whom",
                )
            time.sleep(_PAUSE)

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _offset(key: str) -> int:
    import hashlib

    digest = hashlib.sha256(key.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") >> 2
