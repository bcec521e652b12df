"""The sockets of the host behind a rule: bound all or none, and listening while something inside
does.

A port that nobody listens on inside is bound but does not listen, so a client is refused by the
kernel, as it would be inside. shutdown(2) takes a listening socket back to that state and listen(2)
brings it out again; the port stays ours all the time. For that SO_REUSEADDR is off while it does
not listen, or another program that has it set could take the port too.
"""

from __future__ import annotations

import errno
import os

from rootlessnet.errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from rootlessnet.ports.rules import Rule

BACKLOG = 4096
_UDP_BUFFER = 4 << 20


class Bound:
    """The sockets of a rule, one for each port; version is 6 also for those of both families."""

    def __init__(self, rule: Rule) -> None:
        """Bind all of them. Raises Error, and none is bound then. A host_port of 0 is replaced."""
        self.sockets: list[_socket.socket] = []
        self.version = 4 if rule.version == 4 or not _has_ipv6() else 6
        try:
            for number in range(rule.count):
                self.sockets.append(_bind(rule, number, self.version))
        except BaseException:
            self.close()
            raise

    def port(self) -> int:
        """The first one's."""
        number: int = self.sockets[0].getsockname()[1]
        return number

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        self.sockets.clear()


def _has_ipv6() -> bool:
    return os.path.exists("/proc/net/if_inet6")


def _bind(rule: Rule, number: int, version: int) -> _socket.socket:
    if rule.host_port:
        return _bind_to(rule, rule.host_port + number, version)
    # The kernel chooses. It would take a port back that was not asked for by its number, once the
    # socket does not listen.
    for _ in range(_ATTEMPTS):
        chosen = _bind_to(rule, 0, version)
        try:
            port = chosen.getsockname()[1]
            if rule.proto == "udp":
                chosen.close()
            return _bind_to(rule, port, version)
        except Error:
            continue  # somebody was faster
        finally:
            chosen.close()
    raise Error(f"publish {rule}: there is no free port")


_ATTEMPTS = 20


def _bind_to(rule: Rule, host_port: int, version: int) -> _socket.socket:
    import socket

    tcp = rule.proto == "tcp"
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    try:
        made = socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
        try:
            made.setblocking(False)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(bool(rule.host_ip)))
            if tcp:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                # Accepted connections have these from the listener.
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            made.bind((rule.host_ip or ("::" if version == 6 else "0.0.0.0"), host_port))
            if tcp and host_port:
                # Only this tells whether the port is really ours.
                made.listen(BACKLOG)
                shut(made)
            elif not tcp:
                _prepare_udp(made, version, wildcard=rule.host_ip in ("", "0.0.0.0", "::"))
        except BaseException:
            made.close()
            raise
    except OSError as error:
        raise refusal(rule, host_port, error) from None
    return made


def _prepare_udp(sock: _socket.socket, version: int, *, wildcard: bool) -> None:
    import socket

    from rootlessnet.ports import udp

    # After bind(2): the port has to be free, and only our own sockets may share it from now on.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _UDP_BUFFER)
    if wildcard and version == 6:
        sock.setsockopt(udp.SOL_IPV6, udp.IPV6_RECVPKTINFO, 1)
    elif wildcard:
        sock.setsockopt(udp.SOL_IP, udp.IP_PKTINFO, 1)


def refusal(rule: Rule, port: int, error: OSError) -> Error:
    """What is wrong, in one line."""
    where = f"publish {rule}"
    if error.errno == errno.EADDRINUSE:
        option = "-ltnp" if rule.proto == "tcp" else "-lunp"
        return Error(
            f"{where}: port {port} of the host is in use",
            hint=f"see by whom: ss {option} 'sport = :{port}'",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return Error(
            f"{where}: {rule.host_ip} is no address of this machine", hint="see them: ip address"
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return Error(
            f"{where}: {error.strerror}: each port needs a descriptor",
            hint="raise the hard limit of open files (ulimit -Hn, LimitNOFILE=)",
        )
    return Error(f"{where}: {error.strerror}")


def listen(sock: _socket.socket) -> None:
    """Let clients in. Raises OSError."""
    import socket

    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.listen(BACKLOG)


def shut(sock: _socket.socket) -> None:
    """Let the kernel refuse clients; those who were not accepted yet are reset."""
    import socket

    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    sock.shutdown(socket.SHUT_RDWR)
