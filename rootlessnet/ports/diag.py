"""Who listens inside: asked of the kernel by sock_diag(7), on a socket of that network
namespace."""

from __future__ import annotations

import _socket
import struct

_SOCK_DIAG_BY_FAMILY = 20
_REQUEST = 0x1
_DUMP = 0x300
_DONE, _ERROR = 3, 2
_LISTEN = 10
_HEADER = struct.Struct("=IHHII")
_ID = struct.Struct("!HH16s16s")
_SECONDS = 2.0
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_DESTROYED = (1, 3)
"""SKNLGRP_INET_TCP_DESTROY and its IPv6 sibling."""


class Diag:
    """A sock_diag socket; the namespace is the one it was made in. Methods raise OSError."""

    def __init__(self, fd: int) -> None:
        self._socket = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW, 4, fd)
        self._socket.settimeout(_SECONDS)
        self._number = 0

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def is_listening(self, address: str, port: int) -> bool:
        """Whether a connection to the address would find a TCP listener."""
        family, packed = _packed(address)
        answer = self._ask(family, _REQUEST, 1 << _LISTEN, packed, port)
        return bool(_HEADER.unpack_from(answer)[1] == _SOCK_DIAG_BY_FAMILY)

    def listening(self) -> set[int]:
        """Every port on which something listens, on whatever address."""
        found: set[int] = set()
        for family in (_socket.AF_INET, _socket.AF_INET6):
            data = self._ask(family, _REQUEST | _DUMP, 1 << _LISTEN, bytes(4), 0)
            while True:
                offset = 0
                while offset < len(data):
                    length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
                    if kind in (_DONE, _ERROR):
                        break
                    found.add(struct.unpack_from("!H", data, offset + 16 + 4)[0])
                    offset += (length + 3) & ~3
                else:
                    data = self._socket.recv(1 << 16)
                    continue
                break
        return found

    def _ask(self, family: int, flags: int, states: int, source: bytes, port: int) -> bytes:
        self._number += 1
        identity = _ID.pack(port, 0, source, b"") + struct.pack("=I", 0) + b"\xff" * 8
        body = struct.pack("=BBBBI", family, _socket.IPPROTO_TCP, 0, 0, states) + identity
        self._socket.send(
            _HEADER.pack(16 + len(body), _SOCK_DIAG_BY_FAMILY, flags, self._number, 0) + body
        )
        while True:
            answer = self._socket.recv(1 << 16)
            if _HEADER.unpack_from(answer)[3] == self._number:
                return answer


class Ends:
    """Tells when a listening socket of the namespace is gone: `fd` is readable then.

    The kernel tells of every TCP socket that ends; a filter lets pass those with a port of their
    own and without a peer.
    """

    def __init__(self, fd: int) -> None:
        """Raises OSError."""
        import array

        self._socket = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW, 4, fd)
        self._socket.setblocking(False)
        # After 16 bytes of header and 4 of inet_diag_msg come the own port and the peer's: a
        # classic BPF program that loads each and keeps the message when the one is not 0 and the
        # other is.
        program = array.array("B")
        for code, true, false, value in (
            (0x28, 0, 0, 16 + 4),
            (0x15, 3, 0, 0),
            (0x28, 0, 0, 16 + 4 + 2),
            (0x15, 0, 1, 0),
            (0x06, 0, 0, 0xFFFF),
            (0x06, 0, 0, 0),
        ):
            program.frombytes(struct.pack("=HBBI", code, true, false, value))
        address, _ = program.buffer_info()
        attach = struct.pack("@HP", len(program) // 8, address)
        self._socket.setsockopt(_socket.SOL_SOCKET, 26, attach)  # SO_ATTACH_FILTER
        self._socket.bind((0, 0))
        for group in _DESTROYED:
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)

    @property
    def fd(self) -> int:
        return self._socket.fileno()

    def read(self) -> set[int]:
        """The ports of the listeners that have ended."""
        found: set[int] = set()
        try:
            while True:
                data = self._socket.recv(1 << 16)
                found.add(struct.unpack_from("!H", data, 16 + 4)[0])
        except OSError:
            return found

    def close(self) -> None:
        self._socket.close()


def _packed(address: str) -> tuple[int, bytes]:
    if ":" in address:
        return _socket.AF_INET6, _socket.inet_pton(_socket.AF_INET6, address)
    return _socket.AF_INET, _socket.inet_pton(_socket.AF_INET, address)
