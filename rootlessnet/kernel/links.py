"""The interfaces of a network namespace and the other ends of its veth pairs, by number.

One RTM_GETLINK dump, read with struct alone: a command that sets a container up asks for it each
time, and the real netlink library costs more to import than all else that it does.
"""

from __future__ import annotations

import os
import struct

_RTM_NEWLINK = 16
_RTM_DELLINK = 17
_RTM_GETLINK = 18
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_REQUEST_DUMP = 0x301
_IFLA_IFNAME = 3
_IFLA_LINK = 5
_IFLA_EXT_MASK = 29
_SKIP_STATS = 1 << 3
_HEADER = struct.Struct("=IHHII")
_INFO = struct.Struct("=BxHiII")
_ATTRIBUTE = struct.Struct("=HH")
_BUFFER = 1 << 18

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class Interface:
    """An interface: its name, its number, and the number of its other end (0 when it has none)."""

    __slots__ = ("index", "name", "peer")

    def __init__(self, name: str, index: int, peer: int) -> None:
        self.name = name
        self.index = index
        self.peer = peer


def all_of(namespace: int | None = None) -> dict[str, Interface]:
    """The interfaces of the network namespace (a descriptor), or of our own, by name.

    Raises OSError.
    """
    if namespace is None:
        return _dump()
    from rootlessnet.kernel import netns

    return netns.inside(namespace, _dump)


def _dump() -> dict[str, Interface]:
    import socket

    found: dict[str, Interface] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as asked:
        body = _INFO.pack(0, 0, 0, 0, 0) + struct.pack("=HHI", 8, _IFLA_EXT_MASK, _SKIP_STATS)
        length = _HEADER.size + len(body)
        asked.send(_HEADER.pack(length, _RTM_GETLINK, _REQUEST_DUMP, 1, 0) + body)
        while True:
            for kind, part in messages(asked.recv(_BUFFER)):
                if kind == _NLMSG_DONE:
                    return found
                if kind == _NLMSG_ERROR:
                    number = -struct.unpack_from("=i", part, 16)[0]
                    raise OSError(number, os.strerror(number))
                if kind == _RTM_NEWLINK:
                    link = _parse(part)
                    found[link.name] = link


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The netlink messages of a datagram: each one's type, and all of it."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, data[offset : offset + length]
        offset += (length + 3) & ~3


def deleted(data: bytes) -> list[int]:
    """The numbers of the interfaces that a datagram of link events says are gone.

    That a port has left its bridge is told in the same way, in the bridge's own address family.
    """
    found = []
    for kind, part in messages(data):
        if kind == _RTM_DELLINK and len(part) >= _HEADER.size + _INFO.size:
            family, _, index, _, _ = _INFO.unpack_from(part, _HEADER.size)
            if family == 0:
                found.append(index)
    return found


def _parse(part: bytes) -> Interface:
    index = _INFO.unpack_from(part, _HEADER.size)[2]
    name, peer = "", 0
    offset = _HEADER.size + _INFO.size
    while offset + 4 <= len(part):
        length, kind = _ATTRIBUTE.unpack_from(part, offset)
        if length < 4:
            break
        if kind == _IFLA_IFNAME:
            name = os.fsdecode(part[offset + 4 : offset + length].rstrip(b"\0"))
        elif kind == _IFLA_LINK:
            peer = struct.unpack_from("=I", part, offset + 4)[0]
        offset += (length + 3) & ~3
    return Interface(name, index, peer)
