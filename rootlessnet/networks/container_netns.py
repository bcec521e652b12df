"""The network namespace of a container: made, pinned, found again, let go. Called inside.

A file under $XDG_RUNTIME_DIR/netns is bound to a namespace that we made, or to that of a process,
so that it is there until the container is torn down; inside the instance everybody sees it there,
since what is mounted in XDG_RUNTIME_DIR is shared (rootlessnet.instance.mounts), and on the host it
is an empty file. A namespace given by its path is left to whoever has it.
"""

from __future__ import annotations

import errno
import os

from rootlessnet.errors import Error
from rootlessnet.instance import containers
from rootlessnet.kernel import libc, netns, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.instance.paths import Instance


class Wanted:
    """Which namespace a container has: a new one, a process's, or that of a path."""

    def __init__(self, kind: str, *, path: str = "", pid: int = 0) -> None:
        self.kind = kind
        self.path = f"/proc/{pid}/ns/net" if kind == containers.PID else path
        self.pid = pid
        self.started = 0
        if kind == containers.PID:
            try:
                self.started = process.start_time(pid)
            except (OSError, OverflowError):
                raise Error(f"--pid {pid}: there is no such process") from None


def open_wanted(wanted: Wanted) -> int:
    """A descriptor of the namespace; the caller owns it. Raises Error when it cannot be used."""
    attempt = f"use the network namespace {wanted.path}"
    try:
        if wanted.kind == containers.NEW:
            return netns.make()
        fd = netns.open_path(wanted.path)
    except netns.NotANamespace:
        raise Error(f"{attempt}: it is not a network namespace") from None
    except OSError as error:
        if wanted.kind == containers.NEW:
            raise Error("make a network namespace") from error
        if error.errno == errno.EACCES:
            _refuse(attempt)
        raise Error(f"{attempt}: {error.strerror}") from None
    try:
        if wanted.pid and process.start_time(wanted.pid) != wanted.started:
            raise Error(f"--pid {wanted.pid}: the process has ended")
        check(fd, attempt)
    except FileNotFoundError:
        os.close(fd)
        raise Error(f"--pid {wanted.pid}: the process has ended") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def check(fd: int, attempt: str) -> None:
    """Raise Error for a namespace that is none of a container in this instance."""
    own = netns.open_own()
    try:
        if netns.is_same(fd, own):
            raise Error(f"{attempt}: it is the instance's own")
    finally:
        os.close(own)
    if not netns.belongs_here(fd):
        _refuse(attempt)


def _refuse(attempt: str) -> None:
    raise Error(
        f"{attempt}: it does not belong to the instance's user namespace",
        hint="make it inside, with `rootlessnet enter` before the program, or use --new",
    )


def document(instance: Instance, id: str, wanted: Wanted, fd: int) -> dict[str, Any]:
    """What the record says about the namespace."""
    info = os.fstat(fd)
    is_pinned = wanted.kind != containers.PATH
    return {
        "path": containers.pin(instance, id) if is_pinned else wanted.path,
        "dev": info.st_dev,
        "inode": info.st_ino,
        "kind": wanted.kind,
        "pid": wanted.pid or None,
        "started": wanted.started or None,
    }


def bind(path: str, fd: int) -> None:
    """Bind the namespace to a file of that path. Raises Error."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        # What is there is left from an instance that was killed: the name is ours alone.
        release(path)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o600))
        libc.bind(f"/proc/self/fd/{fd}", path)
    except OSError as error:
        raise Error("pin the network namespace") from error


def release_all(directory: str) -> None:
    """Unbind whatever is bound in a directory, by whomever; the files stay. Raises OSError."""
    for name in os.listdir(directory):
        _unbind(f"{directory}/{name}")


def _unbind(path: str) -> None:
    for _ in range(16):
        try:
            libc.detach(path)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):
                raise
            break


def release(path: str) -> None:
    """Unbind it and remove the file; nothing there is no error. Raises OSError."""
    _unbind(path)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def open_again(record: dict[str, Any]) -> int | None:
    """A descriptor of a container's namespace, which the caller owns; None when it is gone.

    A path may lead nowhere by now while other processes keep the namespace.
    """
    known = (record["netns"]["dev"], record["netns"]["inode"])
    if not known[1]:
        return None
    for path in _paths(record):
        try:
            fd = netns.open_path(path)
        except OSError:
            continue
        info = os.fstat(fd)
        if (info.st_dev, info.st_ino) == known:
            return fd
        os.close(fd)
    return None


def _paths(record: dict[str, Any]) -> Any:
    yield record["netns"]["path"]
    for pid in process.inside_netns(record["netns"]["inode"]):
        yield f"/proc/{pid}/ns/net"
