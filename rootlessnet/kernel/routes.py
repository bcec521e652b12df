"""Which way the kernel sends what goes to an address: one request of rtnetlink."""

from __future__ import annotations

import os
import struct

from rootlessnet.kernel import links

_RTM_NEWROUTE = 24
_RTM_GETROUTE = 26
_NLMSG_ERROR = 2
_NLM_F_REQUEST = 0x1
_RTA_DST, _RTA_OIF = 1, 4
_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct("=BBBBBBBBI")


def interface_to(address: str) -> str:
    """The interface of our own network namespace by which an address is reached.

    Raises OSError when there is none.
    """
    import _socket

    family = _socket.AF_INET6 if ":" in address else _socket.AF_INET
    raw = _socket.inet_pton(family, address)
    body = _ROUTE.pack(family, 8 * len(raw), 0, 0, 0, 0, 0, 0, 0)
    body += struct.pack("=HH", 4 + len(raw), _RTA_DST) + raw
    head = _HEADER.pack(_HEADER.size + len(body), _RTM_GETROUTE, _NLM_F_REQUEST, 1, 0)
    asked = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, 0)
    try:
        asked.send(head + body)
        for kind, part in links.messages(asked.recv(65536)):
            if kind == _NLMSG_ERROR:
                number = -struct.unpack_from("=i", part, _HEADER.size)[0]
                raise OSError(number, os.strerror(number), address)
            if kind == _RTM_NEWROUTE:
                attributes = dict(links.attributes(part[_HEADER.size + _ROUTE.size :]))
                if _RTA_OIF in attributes:
                    return _socket.if_indextoname(struct.unpack("=I", attributes[_RTA_OIF])[0])
    finally:
        asked.close()
    return ""
