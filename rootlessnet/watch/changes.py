"""What has happened between two looks at an instance, as events.

Documents are those of `status --json`, with `resolv_conf` (nameservers and search) beside. Only
what is different at the two moments is told: what came and went between them leaves no trace, and
what went and came again under another identity is told as both.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Document = dict[str, Any]

_LISTS = ("leases", "containers", "ports")
_PORT = ("proto", "host_ip", "host_port", "port", "target")
_LEASE = ("id", "kind", "pid", "command")
# A container that is being set up is told when it is ready.
_UNFINISHED = ("setup",)


class Event:
    """A name, as it is in the man page, and what is to say of it."""

    __slots__ = ("fields", "name")

    def __init__(self, name: str, **fields: Any) -> None:
        self.name = name
        self.fields = fields


def between(before: Document, after: Document) -> list[Event]:
    """The events that lead from one document to the other, in an order that makes sense."""
    if _identity(before) == _identity(after):
        return _changed(before, after) if _identity(after) else []
    found = []
    if _identity(before):
        empty = {**before, **dict.fromkeys(_LISTS, ())}
        found += [*_changed(before, empty), Event("instance-down")]
    if _identity(after):
        found.append(
            Event(
                "instance-up",
                state=after["state"],
                driver=after["driver"]["name"],
                supervisor=after["supervisor"]["pid"],
                holder=after["holder"]["pid"],
            )
        )
        found += _changed({**after, **dict.fromkeys(_LISTS, ())}, after)
    return found


def _identity(document: Document) -> int | None:
    """Tells one life of an instance from the next; none while it is down."""
    return int(document["netns"]["inode"]) if document["netns"] else None


def _changed(before: Document, after: Document) -> list[Event]:
    found = []
    for name in ("supervisor", "holder"):
        old, new = before[name]["pid"], after[name]["pid"]
        if new is not None and old != new:
            found.append(Event(f"{name}-replaced", pid=new, previous=old))
    found += _driver(before["driver"], after["driver"])
    if before["state"] != after["state"]:
        found.append(Event(f"instance-{after['state']}"))
    found += _ports(before, after)
    found += _containers(before, after)
    found += _leases(before, after)
    resolv_conf = after.get("resolv_conf")
    if resolv_conf and before.get("resolv_conf") != resolv_conf:
        found.append(Event("resolv-conf-changed", **resolv_conf))
    return found


def _driver(before: Document, after: Document) -> list[Event]:
    found = []
    old, new = before["pid"], after["pid"]
    if old is not None and old != new:
        reason = after.get("last_exit")
        found.append(Event("driver-died", driver=before["name"], pid=old, reason=reason))
    if new is not None and old != new:
        found.append(
            Event("driver-restarted", driver=after["name"], pid=new, restarts=after["restarts"])
        )
    return found


def _leases(before: Document, after: Document) -> list[Event]:
    def listed(document: Document) -> dict[Any, Document]:
        leases = (lease for lease in document["leases"] if lease["kind"] != "container")
        return {(lease["kind"], lease["id"]): lease for lease in leases}

    return _come_and_gone(listed(before), listed(after), "lease-returned", "lease-taken", _LEASE)


def _ports(before: Document, after: Document) -> list[Event]:
    def listed(document: Document) -> dict[Any, Document]:
        return {tuple(str(port.get(key)) for key in _PORT): port for port in document["ports"]}

    return _come_and_gone(listed(before), listed(after), "port-removed", "port-added", _PORT)


def _come_and_gone(
    before: dict[Any, Document], after: dict[Any, Document], gone: str, come: str, keys: Any
) -> list[Event]:
    found = []
    for name, old, new in ((gone, before, after), (come, after, before)):
        for key in old:
            if key not in new:
                found.append(Event(name, **{field: old[key].get(field) for field in keys}))
    return found


def _containers(before: Document, after: Document) -> list[Event]:
    def listed(document: Document) -> dict[str, Document]:
        containers = document["containers"]
        return {item["id"]: item for item in containers if item.get("state") not in _UNFINISHED}

    old, new = listed(before), listed(after)
    found = []
    for id in old:
        if id not in new:
            found.append(Event("container-teardown", container=id))
    for id, item in new.items():
        networks = _networks(item)
        known = _networks(old[id]) if id in old else {}
        if id not in old:
            found.append(Event("container-setup", container=id))
        for name in known:
            if name not in networks:
                found.append(Event("network-disconnected", container=id, network=name))
        for name, attachment in networks.items():
            if name not in known:
                found.append(
                    Event(
                        "network-connected",
                        container=id,
                        network=name,
                        interface=attachment.get("interface"),
                        addresses=attachment.get("addresses"),
                    )
                )
    return found


def _networks(item: Document) -> dict[str, Document]:
    """Those that a container is on; one that is being connected has no address of any kind yet."""
    networks: dict[str, Document] = item.get("networks") or {}
    return {
        name: each for name, each in networks.items() if each.get("mac") or each.get("addresses")
    }
