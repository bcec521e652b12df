"""The name server of container networks, as far as an instance has to know it.

It is a process in the network namespace that belongs to the instance, as the driver does: it is no
user, and ends with the instance at the latest.
"""

from __future__ import annotations

import os

from rootlessnet.kernel import files, process, signals

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


def is_server(pid: int, work: str = "") -> bool:
    """Whether the process is a server that we started: of this work directory, or of any."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = os.fsdecode(file.read(8192)).split("\0")
    except OSError:
        return False
    if os.path.basename(words[0]) != PROGRAM or "--config" not in words[:-1]:
        return False
    directory = words[words.index("--config") + 1]
    return directory == f"{work}/{PROGRAM}" if work else directory.endswith(f"/{_WORK}/{PROGRAM}")


def running(work: str, netns: int) -> int | None:
    """The pid in the pid file, if that is a server in the network namespace with this inode."""
    try:
        pid = int(files.read(pid_file(work), 32))
        if os.stat(f"/proc/{pid}/ns/net").st_ino == netns and is_server(pid, work):
            return pid
    except (OSError, ValueError):
        pass
    return None


def end(instance: Instance, netns: int) -> None:
    """End every server of this instance in the network namespace. Its files may be gone."""
    work = work_directory(instance)
    for pid in process.inside_netns(netns):
        if not is_server(pid, work):
            continue
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if is_server(pid, work):
                signals.send(pidfd, signals.SIGKILL)
        finally:
            os.close(pidfd)
