"""The routes by which answers come back to sockets that have a client's address, by rtnetlink(7).

All of it is about the network namespace of the calling thread.
"""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

MARK = 0x726E
TABLE = 0x726E
_PRIORITY = 0x726E
LOOPBACK = 1
"""The number of its interface in every network namespace (LOOPBACK_IFINDEX)."""

_RTM_NEWROUTE = 24
_RTM_NEWRULE = 32
_REQUEST_ACK_CREATE_EXCL = 0x1 | 0x4 | 0x400 | 0x200
_FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE = 6, 10, 15
_FR_ACT_TO_TBL = 1
_RTA_DST, _RTA_OIF, _RTA_PRIORITY, _RTA_TABLE = 1, 4, 6, 15
_RTN_LOCAL = 2
_RT_SCOPE_HOST = 254
_RT_TABLE_LOCAL = 255
_RTPROT_STATIC = 4
_HEADER = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HHI")


def bring_answers_back() -> None:
    """Deliver here whatever has the mark, and give it to answers. Raises OSError."""
    import socket

    with _netlink() as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                _ask(netlink, _RTM_NEWRULE, _rule(family))
                _ask(netlink, _RTM_NEWROUTE, _route(family))
            except OSError as error:
                if family == socket.AF_INET:
                    raise
                if error.errno != 97:  # EAFNOSUPPORT: a kernel without IPv6
                    raise
    _switch_on("ipv4/tcp_fwmark_accept")
    # Refusals belong to no socket; without this they would leave by the default route.
    _switch_on("ipv4/fwmark_reflect")
    if os.path.exists("/proc/sys/net/ipv6"):
        _switch_on("ipv6/fwmark_reflect")


def answer_to_loopback() -> None:
    """Let a client on ::1 hear refusals and resets, whichever of the addresses here it has asked.
    Raises OSError.

    The kernel sends these by the very interface that the segment counts as come by, and that is the
    one with the address that was asked (tcp_v6_send_response, rt6_need_strict). So each gets a
    local route to ::1, which nothing else takes.
    """
    import socket

    with _netlink() as netlink:
        for index, _ in socket.if_nameindex():
            if index != LOOPBACK:
                try:
                    _ask(netlink, _RTM_NEWROUTE, _route_to_loopback(index))
                except OSError:
                    pass  # the interface is down, or has no IPv6


def _netlink() -> socket.socket:
    import socket

    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    made.bind((0, 0))
    return made


def _switch_on(name: str) -> None:
    with open(f"/proc/sys/net/{name}", "w", encoding="ascii") as file:
        file.write("1")


def _rule(family: int) -> bytes:
    return _HEADER.pack(family, 0, 0, 0, 0, 0, 0, _FR_ACT_TO_TBL, 0) + b"".join(
        _ATTRIBUTE.pack(8, kind, value)
        for kind, value in ((_FRA_PRIORITY, _PRIORITY), (_FRA_FWMARK, MARK), (_FRA_TABLE, TABLE))
    )


def _route(family: int) -> bytes:
    header = _HEADER.pack(family, 0, 0, 0, 0, _RTPROT_STATIC, _RT_SCOPE_HOST, _RTN_LOCAL, 0)
    return header + b"".join(
        _ATTRIBUTE.pack(8, kind, value)
        for kind, value in ((_RTA_OIF, LOOPBACK), (_RTA_TABLE, TABLE))
    )


def _route_to_loopback(index: int) -> bytes:
    import socket

    address = socket.inet_pton(socket.AF_INET6, "::1")
    return (
        _HEADER.pack(
            socket.AF_INET6, 128, 0, 0, _RT_TABLE_LOCAL, _RTPROT_STATIC, _RT_SCOPE_HOST,
            _RTN_LOCAL, 0,
        )
        + struct.pack("=HH16s", 20, _RTA_DST, address)
        + _ATTRIBUTE.pack(8, _RTA_OIF, index)
        + _ATTRIBUTE.pack(8, _RTA_PRIORITY, _PRIORITY)
    )  # fmt: skip


def _ask(netlink: socket.socket, kind: int, body: bytes) -> None:
    """Send one request and wait for its answer. Raises OSError; EEXIST is as good as done."""
    netlink.send(struct.pack("=IHHII", 16 + len(body), kind, _REQUEST_ACK_CREATE_EXCL, 1, 0) + body)
    answer = netlink.recv(65536)
    (code,) = struct.unpack_from("=i", answer, 16)
    if code and -code != 17:  # EEXIST
        raise OSError(-code, os.strerror(-code), "policy routing")
