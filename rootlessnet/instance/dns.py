"""The name server of container networks, as far as an instance has to know it.

It is a process in the network namespace that uses nothing: without containers it is not a user but
a leftover, and is ended.
"""

from __future__ import annotations

import os

from rootlessnet.kernel import signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.instance.paths import Instance

PROGRAM = "aardvark-dns"
_WORK = "root/networks"


def work_directory(instance: Instance) -> str:
    """The directory for the files of netavark and aardvark-dns."""
    return instance.path(_WORK)


def pid_file(work: str) -> str:
    """Where the server's pid is."""
    return f"{work}/{PROGRAM}/aardvark.pid"


def running(work: str, netns: int) -> int | None:
    """The pid of the server that runs in the network namespace with this inode number."""
    try:
        with open(pid_file(work), "rb") as file:
            pid = int(file.read(32))
        with open(f"/proc/{pid}/comm", "rb") as file:
            name = file.read().strip()
        # The kernel keeps 15 bytes of a name.
        if name == PROGRAM.encode()[:15] and os.stat(f"/proc/{pid}/ns/net").st_ino == netns:
            return pid
    except (OSError, ValueError):
        pass
    return None


def end(instance: Instance, netns: int) -> None:
    """End a server that has outlived the last container."""
    work = work_directory(instance)
    pid = running(work, netns)
    if pid is None:
        return
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if running(work, netns) == pid:
            signals.send(pidfd, signals.SIGTERM)
    finally:
        os.close(pidfd)
