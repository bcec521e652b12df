"""Who is inside without a lease: looked at before an instance is given up.

A program that closed all its descriptors has no lease any more, and a container that is connected
by a veth was never inside; both use the network. Each kind comes with a descriptor that tells when
to look again, so that nobody has to ask on a timer.
"""

from __future__ import annotations

import os

from rootlessnet.instance import dns
from rootlessnet.kernel import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.instance.state import Holder
    from rootlessnet.kernel.namespaces import Pins

_RTMGRP_LINK = 1


def inside(holder: Holder) -> list[int]:
    """The processes in the network namespace, but for the holder, the name server and ourselves."""
    own = (holder.pid, os.getpid())
    found = process.inside_netns(holder.netns)
    return [pid for pid in found if pid not in own and not dns.is_server(pid)]


def watch(pids: list[int]) -> list[int]:
    """pidfds, readable when the process has ended; the caller owns them."""
    found = []
    for pid in pids:
        try:
            found.append(os.pidfd_open(pid))
        except ProcessLookupError:
            continue
    return found


def extra_interfaces(pid: int, usual: tuple[str, ...]) -> list[str]:
    """The interfaces of the process's network namespace that are none of the usual ones.

    When the process has just ended it cannot be told; then it is as if there were one.
    """
    try:
        with open(f"/proc/{pid}/net/dev", encoding="utf-8", errors="replace") as file:
            names = [line.partition(":")[0].strip() for line in file if ":" in line]
    except OSError:
        return ["unknown"]
    return [name for name in names if name not in usual]


def plugged_in(pins: Pins) -> list[str]:
    """The veth interfaces whose other end is in another network namespace, that of a container.

    When that namespace ends its end is destroyed and this one with it. Needs pyroute2 and runs in
    a child for that reason too; when it cannot tell, every interface counts.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        # --- child ---
        try:
            pins.join()
            from pyroute2 import IPRoute

            names = []
            with IPRoute() as route:
                for link in route.get_links():
                    info = link.get_attr("IFLA_LINKINFO")
                    kind = info.get_attr("IFLA_INFO_KIND") if info else None
                    if kind == "veth" and link.get_attr("IFLA_LINK_NETNSID") is not None:
                        names.append(link.get_attr("IFLA_IFNAME"))
            os.write(write, " ".join(["ok", *names]).encode())
        finally:
            os._exit(0)
    # --- parent ---
    os.close(write)
    try:
        words = os.read(read, 65536).decode(errors="replace").split()
    finally:
        os.close(read)
        os.waitpid(pid, 0)
    return words[1:] if words else ["unknown"]


def link_events(pins: Pins) -> int:
    """A netlink socket of the network namespace, readable when an interface comes or goes.

    A socket belongs to the namespace in which it was made, so a child makes it and hands it over.
    """
    import socket

    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        # --- child ---
        try:
            pins.join()
            events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
            events.bind((0, _RTMGRP_LINK))
            socket.send_fds(theirs, [b"1"], [events.fileno()])
        finally:
            os._exit(0)
    # --- parent ---
    theirs.close()
    try:
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    finally:
        ours.close()
        os.waitpid(pid, 0)
    if not fds:
        raise OSError("no netlink socket from inside")
    os.set_blocking(fds[0], False)
    return fds[0]
