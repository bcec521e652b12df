"""Files that others read, write or put in place meanwhile: read whole, and replaced whole."""

from __future__ import annotations

import errno
import os
import stat

from rootlessnet.kernel.trace import trace


def open_regular(path: str, flags: int, mode: int = 0o600, *, follow: bool = False) -> int:
    """A descriptor of a regular file, which the caller owns. Raises OSError that names the path.

    Anything else in its place is refused: a fifo would make us wait for its other end, a device has
    no end, and a symbolic link leads to somebody else's file (but with follow).
    """
    flags |= os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags, mode)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV):  # a socket; a fifo that nobody reads
            raise _not_regular(path) from None
        raise
    kind = os.fstat(fd).st_mode
    if stat.S_ISREG(kind):
        return fd
    os.close(fd)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise _not_regular(path)


def _not_regular(path: str) -> OSError:
    return OSError(errno.EINVAL, "not a regular file", path)


def read(path: str, limit: int, *, follow: bool = False) -> bytes:
    """What is in a regular file, up to so many bytes. Raises OSError as `open_regular` does."""
    with open(open_regular(path, os.O_RDONLY, follow=follow), "rb") as file:
        return file.read(limit)


def replace(
    path: str, data: bytes, *, mode: int = 0o600, durable: bool = False, temporary: str = ""
) -> None:
    """Write a file so that a reader sees the old or the new one, whole. Raises OSError.

    With durable that holds after a power cut, too. The caller keeps others from writing the same
    file meanwhile. Somebody who is killed leaves the temporary file, `.NAME.new` beside it unless
    it is given, at most; the next one removes it.
    """
    directory, name = os.path.split(path)
    temporary = temporary or f"{directory}/.{name}.new"
    fd = _make(temporary)
    try:
        try:
            written = 0
            while written < len(data):
                written += os.write(fd, data[written:])
            os.fchmod(fd, mode)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        trace("files:written")
        os.rename(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)  # on a full disk it would hold room that others need
        except FileNotFoundError:
            pass
        raise


def _make(path: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileExistsError:
        os.unlink(path)  # of somebody who was killed
        return os.open(path, flags, 0o600)
