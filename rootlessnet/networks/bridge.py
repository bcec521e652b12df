"""Bridges in an instance that no container is on any more."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.instance.paths import Instance


def is_in(instance: Instance, name: str) -> bool:
    """Whether an instance that runs has an interface of this name; seen from outside."""
    from rootlessnet.instance import state

    holder = state.read_holder(instance)
    if holder is None:
        return False
    try:
        with open(f"/proc/{holder.pid}/net/dev", encoding="utf-8", errors="replace") as file:
            return any(line.partition(":")[0].strip() == name for line in file)
    except OSError:
        return False


def remove_unused(name: str) -> None:
    """Remove a bridge on which nothing is; called inside. Raises OSError."""
    from rootlessnet.devices.links import Links

    with Links() as links:
        found = links.get(name)
        if found is None or found.name != name or found.kind != "bridge":
            return
        if not any(link.master == found.index for link in links.all()):
            links.delete(found.index)
