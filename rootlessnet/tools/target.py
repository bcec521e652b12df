"""Whether a network namespace is still of use to somebody, and what tells when that may change.

slirp4netns holds a descriptor of its tap, and the tap holds the namespace: it never disappears by
itself, and has to be looked for. A namespace counts as gone when the process or file that was named
is gone, no process is in it, and it is mounted nowhere. One that is kept by an open descriptor
alone cannot be found, and counts as gone too.
"""

from __future__ import annotations

import os

from rootlessnet.kernel import process

_MOUNT_SECONDS = 2.0


class Target:
    """A network namespace, by the path of a file; below /proc/PID, as long as that process runs.

    netns is a descriptor that pins it. After `is_gone` said no, it is to be asked again when one
    of `fds` is readable (mounts, which is always there, with POLLPRI), or after `seconds`.
    """

    def __init__(self, path: str) -> None:
        """Raises OSError when there is no such namespace."""
        self.path = path
        self.netns = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        # A change of the mounts of this mount namespace shows here: the file was unmounted, or
        # removed in another one, which unmounts it here too.
        self.mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self.fds: list[int] = []
        self.seconds: float | None = None
        info = os.fstat(self.netns)
        self._identity = (info.st_dev, info.st_ino)
        self.inode = info.st_ino
        self.pidfd = -1
        named = _pid_of(path)
        if named:
            self.pidfd = os.pidfd_open(named)

    def is_gone(self) -> bool:
        """Look at everything."""
        for fd in self.fds:
            if fd != self.pidfd:
                os.close(fd)
        self.fds, self.seconds = [], None
        if self.pidfd >= 0:
            if not process.has_ended(self.pidfd):
                self.fds = [self.pidfd]
                return False
            os.close(self.pidfd)
            self.pidfd = -1
        elif self._is_there():
            return False
        for pid in process.inside_netns(self.inode):
            try:
                self.fds.append(os.pidfd_open(pid))
            except OSError:
                continue
        if self.fds:
            return False
        if self._is_mounted():
            self.seconds = _MOUNT_SECONDS
            return False
        return True

    def _is_there(self) -> bool:
        try:
            info = os.stat(self.path)
        except OSError:
            return False
        return (info.st_dev, info.st_ino) == self._identity

    def _is_mounted(self) -> bool:
        """In any mount namespace that we may look at."""
        seen = set()
        text = f" net:[{self.inode}] "
        for pid in process.all_pids():
            try:
                mount_namespace = os.stat(f"/proc/{pid}/ns/mnt").st_ino
                if mount_namespace in seen:
                    continue
                seen.add(mount_namespace)
                with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="replace") as file:
                    if text in file.read():
                        return True
            except OSError:
                continue
        return False


def _pid_of(path: str) -> int:
    """The process of which a path below /proc tells, else 0."""
    parts = path.split("/")
    if len(parts) > 3 and parts[:2] == ["", "proc"] and parts[2].isdecimal():
        return int(parts[2])
    return 0
