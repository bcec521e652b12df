"""The interfaces of a network namespace and the other ends of its veth pairs, by number.

A dump and a request of rtnetlink, with struct alone: whatever sets a container up asks for it, and
the real netlink library costs more to import than all else that it does.
"""

from __future__ import annotations

import os
import struct
import sys

_RTM_NEWLINK = 16
_RTM_DELLINK = 17
_RTM_GETLINK = 18
_RTM_SETLINK = 19
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_REQUEST_DUMP = 0x301
_REQUEST_ACK = 0x5
_IFLA_ADDRESS = 1
_IFLA_IFNAME = 3
_IFLA_MTU = 4
_IFLA_LINK = 5
_IFLA_LINKINFO = 18
_IFLA_INFO_KIND = 1
_IFLA_EXT_MASK = 29
_SKIP_STATS = 1 << 3
_HEADER = struct.Struct("=IHHII")
_INFO = struct.Struct("=BxHiII")
_ATTRIBUTE = struct.Struct("=HH")
_BUFFER = 1 << 18

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


class Interface:
    """An interface: its name, its number, its kind ("bridge", "veth"; "" for hardware and tap), its
    hardware address, its MTU, and the number of its other end (0 when it has none)."""

    __slots__ = ("address", "index", "kind", "mtu", "name", "peer")

    def __init__(self, index: int) -> None:
        self.index = index
        self.name = ""
        self.kind = ""
        self.peer = 0
        self.mtu = 0
        self.address = b""


def all_of(namespace: int | None = None) -> dict[str, Interface]:
    """The interfaces of the network namespace (a descriptor), or of our own, by name.

    Raises OSError.
    """
    if namespace is None:
        return _dump()
    from rootlessnet.kernel import netns

    return netns.inside(namespace, _dump)


def _dump() -> dict[str, Interface]:
    found: dict[str, Interface] = {}
    asked = _open()
    try:
        body = _INFO.pack(0, 0, 0, 0, 0) + struct.pack("=HHI", 8, _IFLA_EXT_MASK, _SKIP_STATS)
        asked.send(_message(_RTM_GETLINK, _REQUEST_DUMP, body))
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
    finally:
        asked.close()


def _open() -> Any:
    """A socket, by the C half of the socket module: the other half costs 10 ms to import."""
    import _socket

    return _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, 0)


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body


def keep_address(interface: Interface) -> None:
    """Let an interface of our own namespace have the hardware address that it has, for good.

    A bridge takes the address of one of its ports, and another one when that port goes: then what
    its neighbours know of it is wrong for a minute. Raises OSError.
    """
    length = 4 + len(interface.address)
    attribute = _ATTRIBUTE.pack(length, _IFLA_ADDRESS) + interface.address
    body = _INFO.pack(0, 0, interface.index, 0, 0) + attribute + bytes(-length % 4)
    asked = _open()
    try:
        asked.send(_message(_RTM_SETLINK, _REQUEST_ACK, body))
        for kind, part in messages(asked.recv(_BUFFER)):
            number = -struct.unpack_from("=i", part, 16)[0] if kind == _NLMSG_ERROR else 0
            if number:
                raise OSError(number, os.strerror(number), interface.name)
    finally:
        asked.close()


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
    found = Interface(_INFO.unpack_from(part, _HEADER.size)[2])
    for kind, value in attributes(part[_HEADER.size + _INFO.size :]):
        if kind == _IFLA_IFNAME:
            found.name = _text(value)
        elif kind == _IFLA_ADDRESS:
            found.address = value
        elif kind == _IFLA_MTU:
            found.mtu = int.from_bytes(value[:4], sys.byteorder)
        elif kind == _IFLA_LINK:
            found.peer = int.from_bytes(value[:4], sys.byteorder)
        elif kind == _IFLA_LINKINFO:
            found.kind = _text(dict(attributes(value)).get(_IFLA_INFO_KIND, b""))
    return found


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes of a message: each one's number and value."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def _text(value: bytes) -> str:
    return os.fsdecode(value.rstrip(b"\0"))
