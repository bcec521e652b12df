"""Bridges in an instance: their MTU, and their end when no container is on them any more."""

from __future__ import annotations

from rootlessnet.drivers.choice import TAP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.instance.paths import Instance
    from rootlessnet.networks.network import Network


def chosen_mtu(network: Network) -> int:
    """The MTU for a container on this network where its file leaves that open, else 0. Called
    inside; raises OSError.

    It is that of the bridge when there is one, as what is larger would be dropped. A new bridge has
    the MTU of the way out: with the kernel's 1500 uploads have a tenth of the throughput. netavark
    from 1.16 on does the same, by the default route.
    """
    from rootlessnet.kernel import links

    if network.driver != "bridge" or network.options.get("mtu"):
        return 0
    present = links.all_of()
    found = present.get(network.interface) or present.get(TAP)
    return found.mtu if found else 0


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
