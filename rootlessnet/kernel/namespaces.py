"""Namespaces as the kernel names them: inode numbers, owners, joining."""

from __future__ import annotations

import os

from rootlessnet.kernel import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

INITIAL_USER_NAMESPACE = 0xEFFFFFFD
"""Inode number of the first user namespace: PROC_USER_INIT_INO, fixed in the kernel's ABI."""

CAP_SYS_ADMIN = 21
CAP_NET_ADMIN = 12


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


def join_flags(userns: int) -> int:
    """The flags to join user, mount and network namespace of a process whose user namespace has
    this inode number; one's own user namespace cannot be joined again (EINVAL)."""
    from rootlessnet.kernel.libc import CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWUSER

    flags = CLONE_NEWNS | CLONE_NEWNET
    if userns != inode("self", "user"):
        flags |= CLONE_NEWUSER
    return flags


def run_inside(pidfd: int, flags: int, action: Callable[[], None]) -> None:
    """Run the action in a child that has joined the namespaces; raises Error with its failure."""
    from rootlessnet.errors import Error, reason

    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        # --- child ---
        status = 1
        try:
            try:
                join(pidfd, flags)
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
