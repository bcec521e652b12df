"""What the instance's network namespace needs so that a forwarded connection keeps its client's
address, and the sockets that are made in it.

A socket belongs to the namespace in which it was made, wherever it is used. One that is bound to
the client's own address (IP_TRANSPARENT) shows that to the server; what is left to do is to bring
the server's answers back to it, as in this namespace nobody has that address:

    a server in the namespace itself      the socket is marked; the kernel gives an accepted
                                          connection the mark of its first packet
                                          (tcp_fwmark_accept), and a refusal as well
                                          (fwmark_reflect); answers with the mark are delivered
                                          here (a rule and a table with one local route)
    the same by UDP                       connection tracking carries the mark instead
    a server behind a bridge              what arrives for a transparent socket gets the mark, and
                                          so does an ICMP error about what it has sent
    the same for a client on loopback     the socket is one of the container's own namespace, where
                                          loopback leads back by itself

TCP within the namespace needs nothing but the kernel's routing; each of the other two needs a chain
of nft(8). A chain costs every packet in the namespace, connection tracking most of all, so it is
made when the first rule needs it. It stays: connections outlive their rules.
"""

from __future__ import annotations

import os

from rootlessnet.errors import reason
from rootlessnet.kernel import libc, namespaces, spawn
from rootlessnet.ports import routing
from rootlessnet.ports.routing import LOOPBACK, MARK

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Iterable

_NFT_TABLE = "inet rootlessnet_ports"

ROUTES = "routes"
UDP = "udp"
BRIDGE = "bridge"
_CHAINS = {
    UDP: (
        "output",
        "type route hook output priority mangle; policy accept;",
        (
            f"meta l4proto udp meta mark {MARK} ct mark set {MARK}",
            f"meta l4proto udp ct direction reply ct mark {MARK} meta mark set {MARK}",
        ),
    ),
    BRIDGE: (
        "prerouting",
        "type filter hook prerouting priority mangle; policy accept;",
        (
            "meta l4proto { tcp, udp, icmp, ipv6-icmp } "
            f"socket transparent 1 meta mark set {MARK}",
        ),
    ),
}


def prepare(userns: int, netns: int, wanted: Iterable[str]) -> dict[str, str]:
    """Make answers come back: ROUTES for all, UDP for datagrams within the namespace, BRIDGE for
    servers behind one. What does not work, and why.

    userns and netns are descriptors; done in a child that joins them, and can be done again.
    """
    import json

    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        # --- child ---
        try:
            os.write(write, json.dumps(_prepare(userns, netns, wanted)).encode())
        finally:
            os._exit(0)
    # --- parent ---
    os.close(write)
    try:
        with os.fdopen(read, "rb") as file:
            text = file.read(65536)
    finally:
        os.waitpid(pid, 0)
    if not text:
        return dict.fromkeys(wanted, "the helper process died")
    return dict(json.loads(text))


def _prepare(userns: int, netns: int, wanted: Iterable[str]) -> dict[str, str]:
    try:
        join(userns, netns)
    except OSError as error:
        return dict.fromkeys(wanted, reason(error))
    problems = {}
    for what in wanted:
        try:
            if what == ROUTES:
                routing.bring_answers_back()
            else:
                _nft(_script(*_CHAINS[what]))
        except OSError as error:
            problems[what] = reason(error)
    return problems


def join(userns: int, netns: int) -> None:
    """Move this process, which has one thread, into the two namespaces. Raises OSError."""
    join_user(userns)
    libc.setns(netns, libc.CLONE_NEWNET)


def join_user(userns: int) -> None:
    """Move this process into the user namespace; nothing is done when it is there already."""
    if os.fstat(userns).st_ino != namespaces.inode("self", "user"):
        libc.setns(userns, libc.CLONE_NEWUSER)


def _script(chain: str, hook: str, rules: Iterable[str]) -> str:
    """For nft: the chain has these rules, whatever it had, and no other chain is touched."""
    name = f"{_NFT_TABLE} {chain}"
    lines = [f"add table {_NFT_TABLE}", f"add chain {name} {{ {hook} }}", f"flush chain {name}"]
    lines += [f"add rule {name} {rule}" for rule in rules]
    return "\n".join(lines) + "\n"


def _nft(script: str) -> None:
    import errno

    program = spawn.find("nft")
    if program is None:
        raise OSError(errno.ENOENT, "not found (Debian: apt install nftables)", "nft")
    read, write = os.pipe()
    out_read, out_write = os.pipe()
    pid = spawn.start([program, "-f", "-"], descriptors={0: read, 1: out_write, 2: out_write})
    os.close(read)
    os.close(out_write)
    try:
        os.write(write, script.encode())
    except BrokenPipeError:
        pass  # it has ended, and said why
    finally:
        os.close(write)
    with os.fdopen(out_read, "rb") as file:
        said = file.read(4096).decode(errors="replace")
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
        first = said.strip().partition("\n")[0] or "failed"
        raise OSError(errno.EOPNOTSUPP, first.removeprefix("/dev/stdin:"), "nft")


# -- sockets ---------------------------------------------------------------------------------------

_SOL_IP, _SOL_IPV6 = 0, 41
_IP_TRANSPARENT, _IPV6_TRANSPARENT = 19, 75
_SO_MARK = 36
_UDP_BUFFER = 4 << 20
_TCP_CONGESTION = 13
_SO_BINDTOIFINDEX = 62


def no_congestion(sock: _socket.socket) -> None:
    """Both ends are on this machine, so there is no wire to share. BBR, where it is the system's
    choice, would pace what is sent; reno, which every kernel has, does not."""
    import _socket

    try:
        sock.setsockopt(_socket.IPPROTO_TCP, _TCP_CONGESTION, b"reno")
    except OSError:
        pass  # slower only


def stay_on_loopback(sock: _socket.socket) -> None:
    """For a TCP socket with the address ::1 that connects to another address of the namespace.
    Raises OSError.

    The kernel sends a refusal or a reset to ::1 by the very interface that the segment counts as
    come by, and that is the one with the address that was asked for: tap0, which leads elsewhere
    (tcp_v6_send_response, rt6_need_strict). From a socket that is bound to lo the segment takes the
    marked route, which is lo's, and so does the answer.
    """
    import _socket

    sock.setsockopt(_socket.SOL_SOCKET, _SO_BINDTOIFINDEX, LOOPBACK)


def make(kind: str) -> _socket.socket:
    """A socket of this namespace: "t" or "u" for the protocol, "4" or "6", and "m" when it is
    marked ("-" when not). It may be bound to an address that nobody has here. Raises OSError.

    Only what needs privileges is done: it is made for others (`adopt`), many at a time, and who
    waits for a processor meanwhile should not wait long.
    """
    import _socket

    proto, version, mark = kind[0], kind[1], kind[2]
    made = _socket.socket(
        _socket.AF_INET if version == "4" else _socket.AF_INET6,
        (_socket.SOCK_STREAM if proto == "t" else _socket.SOCK_DGRAM)
        | _socket.SOCK_NONBLOCK
        | _socket.SOCK_CLOEXEC,
    )
    try:
        if version == "4":
            made.setsockopt(_SOL_IP, _IP_TRANSPARENT, 1)
        else:
            made.setsockopt(_SOL_IPV6, _IPV6_TRANSPARENT, 1)
        if mark == "m":
            made.setsockopt(_socket.SOL_SOCKET, _SO_MARK, MARK)
    except PermissionError:
        pass  # the client's address will not be kept, as binding to it fails
    except BaseException:
        made.close()
        raise
    return made


def adopt(kind: str, fd: int) -> _socket.socket:
    """The socket of a descriptor that came from `make`; the caller owns it. Raises OSError."""
    import _socket

    is_tcp = kind[0] == "t"
    made = _socket.socket(
        _socket.AF_INET if kind[1] == "4" else _socket.AF_INET6,
        _socket.SOCK_STREAM if is_tcp else _socket.SOCK_DGRAM,
        0,
        fd,
    )
    try:
        made.setblocking(False)
        made.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        if is_tcp:
            made.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            made.setsockopt(_socket.SOL_SOCKET, _socket.SO_KEEPALIVE, 1)
            no_congestion(made)
        else:
            made.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEPORT, 1)
            made.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVBUF, _UDP_BUFFER)
    except BaseException:
        made.close()
        raise
    return made
