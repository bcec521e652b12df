"""Namespaces as the kernel names them: inode numbers, owners, joining."""

from __future__ import annotations

import os

from rootlessnet.kernel import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_NS_GET_USERNS = 0xB701
"""ioctl_nsfs(2): a descriptor of the user namespace that owns a namespace."""

CAP_SYS_ADMIN = 21


def inode(pid: int | str, kind: str) -> int:
    """Inode number of the process's namespace of this kind ("net", "user", "mnt")."""
    return os.stat(f"/proc/{pid}/ns/{kind}").st_ino


def join(pidfd: int, flags: int) -> None:
    """Move this process into the namespaces of another one, in one step."""
    libc.setns(pidfd, flags)


def effective_capabilities() -> int:
    """The effective capability set of this process, as a bit mask."""
    with open("/proc/self/status", "rb", buffering=0) as status:
        text = status.read(8192)
    return int(text.partition(b"CapEff:")[2].split(None, 1)[0], 16)


def has_capability(capability: int) -> bool:
    """Whether this process has the capability in its own user namespace."""
    return bool(effective_capabilities() >> capability & 1)


class Pins:
    """Descriptors of the namespaces of a process: they live as long as these are open.

    The user namespace is the one that owns the network namespace, which for a process that has
    gone on into a user namespace of its own (--keep-id) is not its present one.
    """

    def __init__(self, pid: int) -> None:
        """Raises OSError when the process is gone or not ours to look at."""
        import fcntl

        self.mnt = self.user = -1
        self.net = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.mnt = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            self.user = fcntl.ioctl(self.net, _NS_GET_USERNS)
            os.set_inheritable(self.user, False)
        except BaseException:
            self.close()
            raise

    def join(self) -> None:
        """Move this process into them. Raises OSError."""
        if os.fstat(self.user).st_ino != inode("self", "user"):
            libc.setns(self.user, libc.CLONE_NEWUSER)
        libc.setns(self.mnt, libc.CLONE_NEWNS)
        libc.setns(self.net, libc.CLONE_NEWNET)

    def close(self) -> None:
        for fd in (self.net, self.mnt, self.user):
            if fd >= 0:
                os.close(fd)
        self.net = self.mnt = self.user = -1


def join_flags(userns: int) -> int:
    """The flags to join user, mount and network namespace of a process whose user namespace has
    this inode number; one's own user namespace cannot be joined again (EINVAL)."""
    from rootlessnet.kernel.libc import CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWUSER

    flags = CLONE_NEWNS | CLONE_NEWNET
    if userns != inode("self", "user"):
        flags |= CLONE_NEWUSER
    return flags


def run(action: Callable[[], None]) -> None:
    """Run the action in a child, which may join namespaces; raises Error with its failure."""
    from rootlessnet.errors import Error, reason

    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        # --- child ---
        status = 1
        try:
            try:
                action()
                status = 0
            except (Error, OSError) as error:
                os.write(write, reason(error).encode(errors="replace")[:4000])
        finally:
            os._exit(status)
    # --- parent ---
    os.close(write)
    try:
        text = os.read(read, 4096).decode(errors="replace")
    finally:
        os.close(read)
        status = os.waitpid(pid, 0)[1]
    if status:
        raise Error(text or "the helper process died")
