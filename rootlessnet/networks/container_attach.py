"""A container gets its interfaces, its addresses and its names; also again, after they were lost.

Called with the right to change containers (rootlessnet.networks.container_session).
"""

from __future__ import annotations

import os

from rootlessnet.errors import Error
from rootlessnet.instance import containers, dns
from rootlessnet.kernel import links, netns
from rootlessnet.kernel.trace import trace
from rootlessnet.networks import aardvark, addresses, container_runtime, netavark, published

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.instance.paths import Instance
    from rootlessnet.networks.attachment import Attachment
    from rootlessnet.networks.network import Network


def check_bridges(instance: Instance, attachments: list[Attachment]) -> None:
    """Raise Error for a network whose bridge would be an interface of another kind: netavark would
    remove it with the last container, tap0 as well. And for one that has bridge or subnet of
    another network, which podman may have removed under its containers: both count addresses."""
    present = links.all_of()
    for record in containers.records(instance):
        for item in record["networks"].values():
            for each in attachments:
                _check_apart(each.network, item["network"], record["id"])
    for each in attachments:
        found = present.get(each.network.interface)
        if each.network.driver == "bridge" and found and found.kind != "bridge":
            raise Error(
                f"network {each.network.name}: its interface {found.name} is no bridge here",
                hint="create the network with another --interface-name",
            )


def _check_apart(network: Network, other: dict[str, Any], id: str) -> None:
    if network.driver != "bridge" or other.get("driver") != "bridge":
        return
    if other.get("name") == network.name:
        return
    taken = {subnet["subnet"] for subnet in other.get("subnets") or []}
    shared = [str(each.subnet) for each in network.subnets if str(each.subnet) in taken]
    if network.interface == other.get("network_interface"):
        shared.append(network.interface)
    if shared:
        raise Error(
            f"network {network.name}: container {id} has {shared[0]} by network {other['name']}",
            hint=f"rootlessnet container teardown {id}, or create the network with another "
            "--subnet and --interface-name",
        )


def name_interfaces(
    attachments: list[Attachment], present: dict[str, links.Interface], used: set[str]
) -> None:
    """Give those a name that have none, and raise Error for one that is taken."""
    taken = set(present) | used
    for attachment in attachments:
        if attachment.interface:
            if attachment.interface in taken:
                raise Error(f"interface {attachment.interface} is in the network namespace already")
            taken.add(attachment.interface)
    for attachment in attachments:
        if not attachment.interface:
            number = 0
            while f"eth{number}" in taken:
                number += 1
            attachment.interface = f"eth{number}"
            taken.add(attachment.interface)


def attach(
    instance: Instance, record: dict[str, Any], names: list[str], attachments: list[Attachment]
) -> None:
    """Addresses and interfaces on some of its networks; the record gets what came of it."""
    if record["backend"] == netavark.NAME:
        addresses.allocate(instance, record["id"], attachments)
        for name, attachment in zip(names, attachments, strict=True):
            record["networks"][name]["addresses"] = attachment.addresses
        trace("container:addressed")
        containers.write(instance, record)
    with container_runtime.Namespace(record) as path:
        if not path:
            raise Error(f"the network namespace of container {record['id']} is gone")
        container = container_runtime.as_container(record, path, attachments)
        try:
            statuses = container_runtime.module(record).setup(
                container, container_runtime.work(instance)
            )
        except BaseException:
            for name in names:
                record["networks"][name]["undone"] = True  # by the runtime itself
            raise
        trace("container:attached")
        _take_note(record, names, statuses, path)
    _keep_addresses(record, names)
    _settle_names(instance, record, names)


def restore(instance: Instance, record: dict[str, Any]) -> None:
    """Make again what belongs to a container outside its namespace. Raises Error."""
    try:
        with container_runtime.Namespace(record) as path:
            if not path:
                raise Error(f"the network namespace of container {record['id']} is gone")
            container = container_runtime.of_record(record, path)
            for attachment in container.attachments:
                item = record["networks"][attachment.network.name]
                attachment.static_mac = attachment.static_mac or containers.mac(item)
                if record["backend"] != netavark.NAME:
                    # Nobody but the plugins has the addresses.
                    own = [text.partition("/")[0] for text in containers.addresses(item)]
                    attachment.static_ips = own or attachment.static_ips
            statuses = container_runtime.module(record).reload(
                container, container_runtime.work(instance)
            )
            _take_note(record, list(record["networks"]), statuses, path)
        _keep_addresses(record, list(record["networks"]))
        _settle_names(instance, record, list(record["networks"]))
        published.follow(record)
    finally:
        # Also when that failed: it is a container still, and the next reload may mend it.
        record["phase"] = containers.READY
        containers.write(instance, record)


def _keep_addresses(record: dict[str, Any], names: list[str]) -> None:
    """Let the bridges keep their MAC addresses when other containers go."""
    present: dict[str, links.Interface] = {}
    for name in names:
        network = record["networks"][name]["network"]
        if network.get("driver") == "bridge":
            present = present or links.all_of()
            bridge = present.get(str(network.get("network_interface", "")))
            if bridge:
                links.keep_address(bridge)


def _take_note(
    record: dict[str, Any], names: list[str], statuses: dict[str, Any] | None, path: str
) -> None:
    """Enter what a runtime has answered, and where the interfaces lead to."""
    fd = netns.open_path(path)
    try:
        present = links.all_of(fd)
    finally:
        os.close(fd)
    for name in names:
        item = record["networks"][name]
        if statuses and name in statuses:
            item["status"] = statuses[name]
        found = present.get(item["interface"])
        # What a macvlan is on stays when it goes.
        is_pair = item["network"].get("driver") == "bridge"
        item["peer"] = found.peer if found and is_pair else 0
        item["phase"] = containers.READY


def _settle_names(instance: Instance, record: dict[str, Any], names: list[str]) -> None:
    """See that names are served, where netavark was asked for it."""
    if record["backend"] != netavark.NAME:
        return
    if any(record["networks"][name]["network"].get("dns_enabled") for name in names):
        aardvark.check(dns.work_directory(instance))
