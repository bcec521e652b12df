"""Containers as `container inspect` and `container stats` show them."""

from __future__ import annotations

from rootlessnet.devices.stats import KEYS
from rootlessnet.errors import Error
from rootlessnet.instance import containers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_AF_INET = 2
_AF_INET6 = 10


def settings(record: dict[str, Any]) -> dict[str, Any]:
    """podman's NetworkSettings of a container that we set up."""
    if record.get("damaged"):
        raise Error(
            f"read the record of container {record['id']}: damaged",
            hint=f"rootlessnet container teardown {record['id']}",
        )
    found = _empty()
    found["SandboxKey"] = record["netns"]["path"]
    for port in containers.ports(record):
        there = found["Ports"].setdefault(f"{port['port']}/{port['proto']}", [])
        there.append({"HostIp": port["host_ip"], "HostPort": str(port["host_port"])})
    for name, item in sorted(record["networks"].items()):
        part = _addresses(containers.subnets(item))
        part.update(
            MacAddress=containers.mac(item),
            NetworkID=name,
            DriverOpts=None,
            IPAMConfig=None,
            Links=None,
            Aliases=list(item["aliases"]),
        )
        found["Networks"][name] = part
    return found


def joined(fd: int, path: str) -> dict[str, Any]:
    """The same of a network namespace that others have set up: all that its interfaces tell.

    As podman does it, the networks are unknown, and the addresses are those of the whole.
    """
    from rootlessnet.devices.links import Links
    from rootlessnet.networks import subnets

    found = _empty()
    found["SandboxKey"] = path
    listed: list[dict[str, str]] = []
    with Links(fd) as inside:
        gateways = _gateways(inside)
        for link in inside.all():
            if link.name == "lo":
                continue
            here = []
            for address in inside.addresses(link.index):
                if subnets.parse_address(address.local).is_link_local:
                    continue
                network = subnets.parse_cidr(str(address))
                gateway = next((g for g in gateways if subnets.parse_address(g) in network), "")
                here.append({"ipnet": str(address), "gateway": gateway})
            if here and not found["MacAddress"]:
                found["MacAddress"] = link.mac
            listed += here
    found.update(_addresses(listed))
    return found


def _gateways(links: Any) -> list[str]:
    found = []
    for link in links.all():
        for route in links.routes(link.index):
            gateway = route.get_attr("RTA_GATEWAY")
            if route["dst_len"] == 0 and gateway:
                found.append(gateway)
    return found


def _empty() -> dict[str, Any]:
    return {
        "EndpointID": "",
        "Gateway": "",
        "IPAddress": "",
        "IPPrefixLen": 0,
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "MacAddress": "",
        "Bridge": "",
        "SandboxID": "",
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "Ports": {},
        "SandboxKey": "",
        "Networks": {},
    }


def _addresses(subnets: list[dict[str, str]]) -> dict[str, Any]:
    """The first address of each family in podman's keys, and the others as secondary ones."""
    found: dict[str, Any] = {
        "EndpointID": "",
        "Gateway": "",
        "IPAddress": "",
        "IPPrefixLen": 0,
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
    }
    for each in subnets:
        address, _, length = each["ipnet"].partition("/")
        keys = ("IPAddress", "IPPrefixLen", "Gateway", "SecondaryIPAddresses")
        if ":" in address:
            keys = (
                "GlobalIPv6Address", "GlobalIPv6PrefixLen", "IPv6Gateway", "SecondaryIPv6Addresses"
            )  # fmt: skip
        if found[keys[0]]:
            found.setdefault(keys[3], []).append({"Addr": address, "PrefixLength": int(length)})
            continue
        found[keys[0]], found[keys[1]] = address, int(length)
        found[keys[2]] = each.get("gateway") or ""
    return found


def counters(id: str, fd: int) -> dict[str, Any]:
    """What went through each interface of a namespace but lo, as seen from inside, and the sum."""
    from rootlessnet.devices.links import Links

    interfaces: list[dict[str, Any]] = []
    with Links(fd) as links:
        for link in links.all(stats=True):
            if link.name != "lo":
                values = {key: link.stats.get(key, 0) for key in KEYS}
                interfaces.append({"name": link.name, **values})
    total = {key: sum(each[key] for each in interfaces) for key in KEYS}
    return {"id": id, "interfaces": interfaces, "sum": total}
