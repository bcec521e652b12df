"""How the forwarder is asked: one line of JSON, answered by one, on a socket in the instance's
directory.

Who is at the other end is what the kernel says: another user is turned away, and whoever is not in
the host's network namespace, so all that runs inside, may look but not publish anything, unless the
instance was made with `-o allow_ports_from_inside=true`; only the ports that a container has may
follow it from there, and be withdrawn.
"""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

MAX_LINE = 4 << 20
MAX_CLIENTS = 64
SECONDS = 10.0


class Peer:
    """Who is connected."""

    def __init__(self, connection: socket.socket) -> None:
        import socket

        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.pid, self.uid, _ = struct.unpack("3i", data)

    def is_ours(self) -> bool:
        """Whether it has our uid."""
        return bool(self.uid == os.geteuid())

    def is_outside(self) -> bool:
        """Whether it is in our own network namespace, the host's."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except OSError:
            return False
        try:
            from rootlessnet.kernel import process

            theirs = os.stat(f"/proc/{self.pid}/ns/net")
            ours = os.stat("/proc/self/ns/net")
            return theirs.st_ino == ours.st_ino and not process.has_ended(pidfd)
        except OSError:
            return False
        finally:
            os.close(pidfd)


def listen(path: str) -> socket.socket:
    """The socket, for our uid alone. Raises OSError. What was there is replaced."""
    import socket

    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        new = f"{path}.new"
        try:
            os.unlink(new)
        except FileNotFoundError:
            pass
        with _Near(new) as name:
            made.bind(name)
        os.chmod(new, 0o600)
        made.listen(MAX_CLIENTS)
        os.rename(new, path)
    except BaseException:
        made.close()
        raise
    return made


def connect(path: str, seconds: float) -> socket.socket:
    """Raises OSError when nobody listens."""
    import socket

    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.settimeout(seconds)
        with _Near(path) as name:
            made.connect(name)
    except BaseException:
        made.close()
        raise
    return made


class _Near:
    """A short name of a path: that of a socket may have 107 bytes, a directory many more."""

    def __init__(self, path: str) -> None:
        self._directory, self._name = os.path.split(path)

    def __enter__(self) -> str:
        self._fd = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._fd}/{self._name}"

    def __exit__(self, *exception: object) -> None:
        os.close(self._fd)
