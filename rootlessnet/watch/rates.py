"""How fast it goes: the counters of two snapshots, one after the other."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.watch.snapshot import Snapshot

CONTAINER = "container"
INTERFACE = "interface"


class Flow:
    """What goes through an interface, or through all those of a container as it counts itself.

    Without counters, as when the other ends of a container's interfaces are not known, `is_known`
    is false and all numbers are 0.
    """

    __slots__ = ("counters", "is_known", "kind", "name", "seconds", "start", "where")

    def __init__(self, kind: str, name: str, where: str, counters: dict[str, int] | None) -> None:
        self.kind = kind
        self.name = name
        self.where = where
        self.is_known = counters is not None
        self.counters = dict(counters or {})
        self.start = self.counters
        self.seconds = 0.0

    def total(self, counter: str) -> int:
        """The counter ("rx_bytes"), since the interface was made."""
        return self.counters.get(counter, 0)

    def rate(self, counter: str) -> float:
        """The counter's growth a second; 0 for what is new, or began again."""
        grown = self.total(counter) - self.start.get(counter, 0)
        return grown / self.seconds if grown > 0 and self.seconds > 0 else 0.0

    @property
    def speed(self) -> float:
        """Bytes a second in both directions."""
        return self.rate("rx_bytes") + self.rate("tx_bytes")


def flows(before: Snapshot | None, after: Snapshot) -> list[Flow]:
    """Containers and interfaces, the fastest first, and those that are at rest by name."""
    found = _flows(after)
    earlier = _flows(before) if before is not None else {}
    for key, flow in found.items():
        if before is not None and key in earlier:
            flow.start = earlier[key].counters
            flow.seconds = after.moment - before.moment
    return sorted(found.values(), key=lambda flow: (-flow.speed, flow.kind, flow.name))


def _flows(snapshot: Snapshot) -> dict[tuple[str, str, int], Flow]:
    found = {}
    netns = (snapshot.document["netns"] or {}).get("inode", 0)
    # The other end of a container's interface has the same traffic.
    ends = {each.inside for container in snapshot.containers for each in container.attachments}
    for each in snapshot.interfaces:
        if each in ends or (each.name == "lo" and not each.counters["rx_bytes"]):
            continue
        # By index too: one that was made again under its name counts from zero.
        key = (INTERFACE, f"{netns}/{each.name}", each.index)
        found[key] = Flow(INTERFACE, each.name, " ".join(each.addresses), each.counters)
    for container in snapshot.containers:
        known = [each.counters for each in container.attachments if each.counters is not None]
        total = None
        if known:
            total = {key: sum(counters[key] for counters in known) for key in known[0]}
        addresses = [address for each in container.attachments for address in each.addresses]
        key = (CONTAINER, f"{netns}/{container.id}", len(known))
        found[key] = Flow(CONTAINER, container.id, " ".join(addresses), total)
    return found
