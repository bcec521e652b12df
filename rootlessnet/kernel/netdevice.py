"""netdevice(7): what is asked of one interface without rtnetlink, whose import takes a while.

All of it is about the network namespace of the calling thread (see netns.inside).
"""

from __future__ import annotations

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_IFNAMSIZ = 16
_SIZE = 40
"""sizeof(struct ifreq)"""


def exists(name: str) -> bool:
    """Whether there is an interface of this name."""
    import socket

    try:
        return socket.if_nametoindex(name) > 0
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.ENXIO, None):
            return False
        raise


def is_up(name: str) -> bool:
    """Whether an interface is up. Raises OSError."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return bool(_flags(sock, name)[0] & _IFF_UP)


def set_up(name: str) -> None:
    """Bring an interface up. Raises OSError."""
    import fcntl
    import socket
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        flags, answer = _flags(sock, name)
        if not flags & _IFF_UP:
            changed = struct.pack("=h", flags | _IFF_UP)
            fcntl.ioctl(
                sock,
                _SIOCSIFFLAGS,
                answer[:_IFNAMSIZ] + changed + answer[_IFNAMSIZ + len(changed) :],
            )


def _flags(sock: socket.socket, name: str) -> tuple[int, bytes]:
    """The flags, and the struct that they are in."""
    import fcntl
    import struct

    request = name.encode().ljust(_IFNAMSIZ, b"\0").ljust(_SIZE, b"\0")
    answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, request)
    return struct.unpack_from("=h", answer, _IFNAMSIZ)[0], answer
