"""What a driver is started with, besides its options: where to, and what it can do."""

from __future__ import annotations

from rootlessnet.kernel import namespaces


class Target:
    """The namespaces to connect: the holder, which the pidfd pins, and the instance's directory."""

    def __init__(self, pid: int, pidfd: int, userns: int, directory: str) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.userns = userns
        self.directory = directory

    @property
    def same_userns(self) -> bool:
        """Whether the namespace belongs to the user namespace that we are in."""
        return self.userns == namespaces.inode("self", "user")


class Features:
    """What the program at this path can do, by the command line options it knows."""

    def __init__(self, path: str, flags: frozenset[str], version: str) -> None:
        self.path = path
        self.flags = flags
        self.version = version
