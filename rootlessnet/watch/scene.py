"""An instance as boxes and the lines between them: what every drawing shows.

Boxes stand in five columns, and lines go from a column to the next:

    host - driver - uplink (tap0) - networks (bridges, devices) - containers

A container may be on several networks. Of each of its rows that is about one network the box knows
which (`via`), so that a tree, which shows it below every network, need not show all of them there.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.watch.snapshot import Attachment, Container, Interface, Snapshot

HOST = 0
DRIVER = 1
UPLINK = 2
NETWORK = 3
CONTAINER = 4

_TUN = "tun"


class Box:
    """Something with a title and rows of text. `id` is made by us and safe in any language."""

    __slots__ = ("column", "id", "is_bad", "kind", "rows", "title", "via")

    def __init__(self, id: str, column: int, kind: str, title: str) -> None:
        self.id = id
        self.column = column
        self.kind = kind
        self.title = title
        self.rows: list[str] = []
        self.via: list[Box | None] = []
        self.is_bad = False

    def add(self, row: str, via: Box | None = None) -> None:
        """One more row; with via it is about the line from that box."""
        if row:
            self.rows.append(row)
            self.via.append(via)


class Scene:
    """The boxes in the order in which they are read, and the lines between them."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.name = snapshot.name
        self.state = str(snapshot.document["state"])
        self.static_dir = str(snapshot.document["static_dir"])
        self.boxes: list[Box] = []
        self.lines: list[tuple[Box, Box]] = []
        self._networks: dict[str, Box] = {}
        self._ports: list[dict[str, Any]] = list(snapshot.document["ports"])
        self.host = self._box(HOST, "host", "host")
        if not snapshot.is_down:
            self._draw(snapshot)

    @property
    def title(self) -> str:
        """What this is a picture of."""
        return f"{self.name}: {self.state}"

    def column(self, number: int) -> list[Box]:
        """The boxes of a column."""
        return [box for box in self.boxes if box.column == number]

    def after(self, box: Box) -> list[Box]:
        """The boxes to which a line leads from this one."""
        return [end for start, end in self.lines if start is box]

    def _box(self, column: int, kind: str, title: str, after: Box | None = None) -> Box:
        box = Box(f"n{len(self.boxes)}", column, kind, title)
        self.boxes.append(box)
        if after is not None:
            self.lines.append((after, box))
        return box

    def _draw(self, snapshot: Snapshot) -> None:
        document = snapshot.document
        driver = document["driver"]
        box = self._box(DRIVER, "driver", f"{driver['name']} {driver['version']}", self.host)
        box.is_bad = driver["pid"] is None
        box.add("not running" if box.is_bad else f"pid {driver['pid']}")
        if driver["restarts"]:
            box.add(f"restarts {driver['restarts']}")
        box.add(f"gateway {driver['gateway']}")
        box.add(f"DNS {driver['dns']}")

        taps = [each for each in snapshot.interfaces if each.kind == _TUN]
        uplink = self._box(UPLINK, "uplink", taps[0].name if taps else "no interface", box)
        uplink.is_bad = not taps or not taps[0].is_up
        for address in taps[0].addresses if taps else (f"{driver['address']} ({driver['cidr']})",):
            uplink.add(address)
        uplink.add(f"mtu {taps[0].mtu if taps else driver['mtu']}")
        self._uplink = uplink

        for each in snapshot.interfaces:
            if each.kind == "bridge":
                self._networks[each.name] = self._bridge(each)
        ids = {container.id for container in snapshot.containers}
        self._publish(self.host, self._ports, far=True)
        self._publish(uplink, [port for port in self._ports if port.get("target") not in ids])
        used = set(taps[:1])
        for container in snapshot.containers:
            used |= self._container(container)
        for each in snapshot.interfaces:
            if each not in used and each.kind != "bridge" and each.name != "lo":
                self._other(each, snapshot)

    def _bridge(self, interface: Interface) -> Box:
        box = self._box(NETWORK, "bridge", interface.name, self._uplink)
        box.is_bad = not interface.is_up
        box.add("down" if box.is_bad else "")
        for address in interface.addresses:
            box.add(address)
        return box

    def _network_of(self, attachment: Attachment) -> Box:
        """The bridge, or what stands for it: not every network has one."""
        box = self._networks.get(attachment.bridge)
        if box is None:
            key = f"network {attachment.network}"
            box = self._networks.get(key)
            if box is None:
                box = self._networks[key] = self._box(
                    NETWORK, "network", attachment.network, self._uplink
                )
        row = f"network {attachment.network}"
        if box.title != attachment.network and row not in box.rows:
            box.add(row)
        return box

    def _container(self, container: Container) -> set[Interface]:
        used = set()
        box = self._box(CONTAINER, "container", container.id)
        if container.state not in ("", "ready"):
            box.is_bad = True
            box.add(container.state)
        for each in container.attachments:
            network = self._network_of(each)
            if network not in [start for start, end in self.lines if end is box]:
                self.lines.append((network, box))
            inside = f" = {each.inside.name}" if each.inside else ""
            box.add(f"{each.interface}{inside}", network)
            for address in each.addresses:
                box.add(f"  {address}", network)
            if each.inside:
                used.add(each.inside)
        if not container.attachments:
            self.lines.append((self._uplink, box))
            box.column = NETWORK
        self._publish(box, [port for port in self._ports if port.get("target") == container.id])
        return used

    def _other(self, interface: Interface, snapshot: Snapshot) -> None:
        """A device that is no container's: on its bridge, or else beside the bridges."""
        bridges = {each.index: each.name for each in snapshot.interfaces if each.kind == "bridge"}
        master = self._networks.get(bridges.get(interface.master, ""))
        column = NETWORK if master is None else CONTAINER
        title = "another namespace" if interface.leads_out else interface.name
        box = self._box(column, "device", title, master or self._uplink)
        if interface.leads_out:
            box.add(f"= {interface.name}", master)
        elif interface.kind:
            box.add(interface.kind)
        box.is_bad = not interface.is_up
        box.add("down" if box.is_bad else "")
        for address in interface.addresses:
            box.add(address)

    def _publish(self, box: Box, ports: list[dict[str, Any]], *, far: bool = False) -> None:
        for port in ports:
            host_ip = str(port.get("host_ip") or "*")
            host_ip = f"[{host_ip}]" if ":" in host_ip else host_ip
            host = f"{host_ip}:{port.get('host_port')}"
            inner = f"{port.get('port')}/{port.get('proto')}"
            count = port.get("connections")
            tail = f", {count} open" if isinstance(count, int) and count and far else ""
            box.add(f"{host} > {inner}{tail}")
