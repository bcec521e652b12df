"""Whether a container's networks still are what they were set up as.

Looked at are interfaces, addresses, and the bridge with the gateway's address, whatever the
backend. CNI plugins are asked as well (CHECK), which know of firewall rules.
"""

from __future__ import annotations

import os

from rootlessnet.errors import Error, reason
from rootlessnet.instance import containers
from rootlessnet.kernel import netns
from rootlessnet.networks import cni, container_runtime

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from rootlessnet.devices.links import Link, Links
    from rootlessnet.instance.paths import Instance


def check(instance: Instance, record: dict[str, Any]) -> list[str]:
    """What is not as it was set up, in words. Called inside; nothing is changed. Raises OSError."""
    with container_runtime.Namespace(record) as path:
        if not path:
            return ["its network namespace is gone"]
        found = list(_differences(record, path))
        if not found and record["backend"] == cni.NAME:
            from rootlessnet.networks import cni_run

            try:
                known = container_runtime.of_record(record, path)
                cni_run.check(known, container_runtime.work(instance))
            except Error as error:
                found.append(reason(error))
    return found


def _differences(record: dict[str, Any], path: str) -> Iterator[str]:
    from rootlessnet.devices.links import Links

    fd = netns.open_path(path)
    try:
        with Links(fd) as theirs, Links() as ours:
            for name, item in record["networks"].items():
                for text in (*_of_interface(item, theirs), *_of_bridge(item, theirs, ours)):
                    yield f"network {name}: {item['interface']} {text}"
    finally:
        os.close(fd)


def _interface(item: dict[str, Any], theirs: Links) -> Link | None:
    found = theirs.get(item["interface"])
    return found if found and found.name == item["interface"] else None


def _of_interface(item: dict[str, Any], theirs: Links) -> Iterator[str]:
    link = _interface(item, theirs)
    if link is None:
        yield "is gone"
        return
    if not link.is_up:
        yield "is down"
    mac = containers.mac(item)
    if mac and link.mac.lower() != mac.lower():
        yield f"has the MAC address {link.mac} instead of {mac}"
    present = {str(address) for address in theirs.addresses(link.index)}
    for address in containers.addresses(item):
        if address not in present:
            yield f"has not the address {address} any more"


def _of_bridge(item: dict[str, Any], theirs: Links, ours: Links) -> Iterator[str]:
    network = item["network"]
    link = _interface(item, theirs)
    if link is None or network.get("driver") != "bridge":
        return
    name = str(network.get("network_interface", ""))
    bridge = ours.get(name)
    if bridge is None:
        yield f"leads nowhere: the bridge {name} is gone"
        return
    if not bridge.is_up:
        yield f"leads nowhere: the bridge {name} is down"
    end = ours.get_index(link.peer)
    if end is None or end.master != bridge.index:
        yield f"is not plugged into the bridge {name} any more"
    elif not end.is_up:
        yield f"leads nowhere: its other end {end.name} is down"
    if network.get("internal"):
        return  # CNI gives the bridge of such a network no address
    present = {address.local for address in ours.addresses(bridge.index)}
    for subnet in containers.subnets(item):
        gateway = subnet.get("gateway")
        if gateway and gateway not in present:
            yield f"has no gateway: {name} has not the address {gateway} any more"
