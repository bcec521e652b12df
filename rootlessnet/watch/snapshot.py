"""All that can be seen of an instance at one moment: the one source of graph, metrics and top.

It is the document of `status --json` with the interfaces of the network namespace. What status
comes to tell, containers and ports for instance, is here at once.
"""

from __future__ import annotations

import os
import time

from rootlessnet.devices.stats import KEYS
from rootlessnet.errors import Error
from rootlessnet.instance import look, state
from rootlessnet.ports import view

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

    from rootlessnet.devices.links import Links
    from rootlessnet.instance.paths import Instance
    from rootlessnet.instance.state import Holder


class Interface:
    """An interface inside, with its counters as `devices.stats.KEYS` names them."""

    __slots__ = (
        "addresses", "counters", "index", "is_up", "kind", "leads_out", "mac", "master", "mtu",
        "name",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        index: int,
        *,
        kind: str = "",
        mac: str = "",
        mtu: int = 0,
        is_up: bool = True,
        master: int = 0,
        leads_out: bool = False,
        addresses: list[str] | None = None,
        counters: dict[str, int] | None = None,
    ) -> None:
        self.name = name
        self.index = index
        self.kind = kind
        self.mac = mac
        self.mtu = mtu
        self.is_up = is_up
        self.master = master
        self.leads_out = leads_out
        """Whether it is a veth whose other end is in another network namespace."""
        self.addresses = list(addresses or ())
        self.counters = {**dict.fromkeys(KEYS, 0), **(counters or {})}


class Attachment:
    """A container on a network: the bridge, the interface in the container and its other end."""

    __slots__ = ("addresses", "bridge", "inside", "interface", "network")

    def __init__(
        self, network: str, item: dict[str, Any], interfaces: dict[int, Interface]
    ) -> None:
        self.network = network
        self.interface = str(item.get("interface") or "")
        self.addresses = [str(address) for address in item.get("addresses") or ()]
        self.bridge = str(item.get("bridge") or "")
        number = item.get("peer")
        self.inside = interfaces.get(number) if isinstance(number, int) else None
        """The interface of the instance at the other end, when it is known."""

    @property
    def counters(self) -> dict[str, int] | None:
        """As the container counts: what the other end has sent, it has received."""
        if self.inside is None:
            return None
        swapped = {"rx": "tx", "tx": "rx"}
        counters = self.inside.counters
        return {key: counters[swapped[key[:2]] + key[2:]] for key in KEYS}


class Container:
    """A container of the document, tied to the interfaces that were seen."""

    __slots__ = ("attachments", "id", "state")

    def __init__(self, item: dict[str, Any], interfaces: dict[int, Interface]) -> None:
        self.id = str(item.get("id") or "")
        self.state = str(item.get("state") or "")
        networks = item.get("networks") or {}
        self.attachments = [
            Attachment(name, networks[name] or {}, interfaces) for name in sorted(networks)
        ]


class Snapshot:
    """What was seen, and when (`moment` is of the monotonic clock)."""

    __slots__ = ("containers", "document", "interfaces", "moment", "processes")

    def __init__(
        self,
        document: dict[str, Any],
        interfaces: list[Interface] | None = None,
        processes: int = 0,
        moment: float = 0.0,
    ) -> None:
        self.document = document
        self.interfaces = list(interfaces or ())
        self.processes = processes
        self.moment = moment
        by_index = {interface.index: interface for interface in self.interfaces}
        self.containers = [Container(item, by_index) for item in document["containers"]]

    @property
    def name(self) -> str:
        return str(self.document["name"])

    @property
    def is_down(self) -> bool:
        return bool(self.document["state"] == "down")


class Observer:
    """Takes snapshots of one instance; a netlink socket inside is kept from one to the next."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._links: Links | None = None
        self._netns = 0

    def close(self) -> None:
        """Close the socket."""
        if self._links is not None:
            self._links.close()
        self._links = None

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def look(self) -> Snapshot:
        """The instance as it is now. Raises Error."""
        document = view.status(self._instance)
        holder = state.read_holder(self._instance)
        if document["state"] == "down" or holder is None:
            self.close()
            return Snapshot(document, moment=time.monotonic())
        processes = len(look.inside(holder))
        try:
            if self._links is None or self._netns != holder.netns:
                self.close()
                self._links = _links_inside(holder)
                self._netns = holder.netns
            moment = time.monotonic()
            interfaces = _interfaces(self._links)
        except ProcessLookupError:
            # The holder went between the two looks: the next one tells what has become of it.
            document = view.status(self._instance)
            return Snapshot(document, moment=time.monotonic())
        except OSError as error:
            raise Error("read the interfaces of the instance", hint=_NEIGHBOUR) from error
        return Snapshot(document, interfaces, processes, moment)


_NEIGHBOUR = "run it in the user namespace that the instance was started in"


def _interfaces(links: Links) -> list[Interface]:
    addresses: dict[int, list[str]] = {}
    for address in links.all_addresses():
        if not address.is_link_local:
            addresses.setdefault(address.index, []).append(str(address))
    return [
        Interface(
            link.name,
            link.index,
            kind=link.kind,
            mac=link.mac,
            mtu=link.mtu,
            is_up=link.is_up,
            master=link.master,
            leads_out=link.kind == "veth" and link.peer_namespace is not None,
            addresses=addresses.get(link.index),
            counters={key: link.stats.get(key, 0) for key in KEYS},
        )
        for link in links.all(stats=True)
    ]


def _links_inside(holder: Holder) -> Links:
    """A netlink socket in the network namespace of the holder. Raises OSError.

    A socket belongs for life to the namespace in which it was made, and an ordinary user may enter
    that only through its user namespace, which a process cannot leave: so a child makes the socket
    and hands it over. Asking through it needs no rights.
    """
    import socket

    from rootlessnet.devices import netlink
    from rootlessnet.devices.links import Links
    from rootlessnet.kernel import libc, namespaces

    pidfd = holder.open()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pid = os.fork()
        if pid == 0:
            # --- child ---
            try:
                number = 0
                try:
                    if holder.netns != namespaces.inode("self", "net"):
                        flags = namespaces.join_flags(holder.userns) & ~libc.CLONE_NEWNS
                        namespaces.join(pidfd, flags)
                    made = netlink.open_socket()
                    socket.send_fds(theirs, [b"0"], [made.fileno()])
                except OSError as error:
                    number = error.errno or 5
                    theirs.send(str(number).encode())
            finally:
                os._exit(0)
        # --- parent ---
        os.close(pidfd)
        theirs.close()
        try:
            text, descriptors, _, _ = socket.recv_fds(ours, 16, 1)
        finally:
            os.waitpid(pid, 0)
    if not descriptors:
        number = int(text or b"5")
        raise OSError(number, os.strerror(number))
    return Links(socket=_adopted(descriptors[0]))


def _adopted(descriptor: int) -> socket.socket:
    import socket

    os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptor)
