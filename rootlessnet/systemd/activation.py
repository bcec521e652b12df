"""Hand listening sockets to a command by the socket activation protocol: sd_listen_fds(3).

The sockets are made in the host's network namespace, where they stay bound whatever namespace the
command runs in: nothing is forwarded, and the command sees the client's real address.
"""

from __future__ import annotations

import os

from rootlessnet.errors import Error

FIRST_FD = 3
"""SD_LISTEN_FDS_START."""


def parse(text: str) -> tuple[str, int, str]:
    """[HOST_IP:]PORT[/tcp|udp] as (address, port, protocol); an IPv6 address stands in brackets.

    Without an address it is "", for all of both families. Raises Error.
    """
    where, slash, protocol = text.partition("/")
    address, _, port = where.rpartition(":")
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    elif ":" in address:
        raise Error(f"--listen {text}: an IPv6 address has to be in brackets: [{address}]:{port}")
    if slash and protocol not in ("tcp", "udp"):
        raise Error(f"--listen {text}: unknown protocol {protocol}", hint="tcp or udp")
    plain = port.isascii() and port.isdecimal() and len(port) <= 5
    if not (plain and 1 <= int(port) <= 65535):
        raise Error(f"--listen {text}: {port or 'nothing'} is not a port", hint="1 to 65535")
    return address, int(port), protocol or "tcp"


def listen(text: str) -> int:
    """A bound socket for one --listen, listening if it is TCP; the caller owns the descriptor."""
    import socket

    address, port, protocol = parse(text)
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    try:
        ((family, _, _, _, where), *_) = socket.getaddrinfo(
            address or "::", port, type=kind, flags=socket.AI_NUMERICHOST | socket.AI_PASSIVE
        )
    except socket.gaierror:
        raise Error(f"--listen {text}: {address} is not an IP address") from None
    try:
        try:
            made = socket.socket(family, kind | socket.SOCK_CLOEXEC)
        except OSError:
            if address:
                raise
            # A kernel without IPv6.
            family, where = socket.AF_INET, ("0.0.0.0", port)
            made = socket.socket(family, kind | socket.SOCK_CLOEXEC)
        with made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(protocol == "tcp"))
            if family == socket.AF_INET6:
                # Both families when no address was given, and only then.
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(bool(address)))
            made.bind(where)
            if protocol == "tcp":
                made.listen(socket.SOMAXCONN)
            return made.detach()
    except OSError as error:
        advice = ""
        if isinstance(error, PermissionError):
            advice = f"sudo sysctl net.ipv4.ip_unprivileged_port_start={port}"
        raise Error(f"--listen {text}: {error.strerror}", hint=advice) from None


def inherited() -> list[str]:
    """The names of the sockets that systemd handed to us; empty when there are none."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not (
        count.isdecimal() and len(count) <= 5
    ):
        return []
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    return [(names[n] if n < len(names) else "") or "unknown" for n in range(int(count))]


def hand_over(names: list[str], sockets: list[tuple[str, int]]) -> dict[str, str]:
    """Put the sockets (name, descriptor) after the inherited ones; the variables for the command.

    Called right before exec, in the process that becomes the command. Raises Error when another
    inherited descriptor is in the way.
    """
    import fcntl

    first = FIRST_FD + len(names)
    # Out of the way first: one of ours may stand where another one goes.
    above = first + len(sockets)
    lifted = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for _, fd in sockets]
    for _, fd in sockets:
        os.close(fd)
    for target, fd in enumerate(lifted, first):
        try:
            if os.get_inheritable(target):
                raise Error(
                    f"--listen: descriptor {target} is in use", hint=f"close it: {target}>&-"
                )
        except OSError:
            pass
        os.dup2(fd, target, inheritable=True)
        os.close(fd)
    every = [*names, *(name for name, _ in sockets)]
    return {
        "LISTEN_FDS": str(len(every)),
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDNAMES": ":".join(every),
    }
