"""What both backends do to complete a new network and to refuse a wrong one, in podman's words.

The order of the checks is podman's too, so that of several mistakes the same one is named.
"""

from __future__ import annotations

from rootlessnet.config import network as config
from rootlessnet.errors import Error
from rootlessnet.networks import gojson, subnets
from rootlessnet.networks.network import NAME_RULE, Network, Subnet, is_name, timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from rootlessnet.networks.subnets import IPNetwork

HOST_LOCAL, DHCP, NONE = "host-local", "dhcp", "none"

MODES = {
    "macvlan": ("bridge", "private", "vepa", "passthru"),
    "ipvlan": ("l2", "l3", "l3s"),
}

_RESERVED = ("none", "host", "bridge", "private", "slirp4netns", "container", "ns")
_LONGEST_INTERFACE = 15
_MOST_BRIDGES = 1_000_000


def find(networks: Mapping[str, Network], name: str) -> Network:
    """The network of this name, or whose id begins so. Raises Error."""
    if name in networks:
        return networks[name]
    found = [network for network in networks.values() if network.id.startswith(name)]
    if len(found) > 1:
        raise Error(f"more than one result for network ID {name}")
    if not found:
        raise Error(f"unable to find network with name or ID {name}: network not found")
    return found[0]


def has(networks: Mapping[str, Network], name: str) -> bool:
    """Whether `find` finds one."""
    try:
        find(networks, name)
    except Error:
        return False
    return True


def default(prefix: str) -> Network:
    """The network that is always there, but for its id.

    It is not checked against what is used: it has to be there in any case.
    """
    import time

    network = Network(config.default_network(), interface=f"{prefix}0", dns=False)
    network.ipam_options["driver"] = HOST_LOCAL
    try:
        network.subnets.append(Subnet(subnets.parse_cidr(config.default_subnet())))
    except ValueError as error:
        raise Error(f"failed to parse default subnet: {error}") from None
    check_subnets(network, add_gateway=True, taken=[])
    network.created = timestamp(time.time_ns())
    return network


def check_reserved(name: str) -> None:
    """Raise Error for a name that podman's --network takes as something else."""
    if name in _RESERVED:
        raise Error(
            f"cannot create network with name {gojson.quote(name)} because it conflicts with a "
            "valid network mode"
        )


def name(new: Network, networks: Mapping[str, Network], prefix: str) -> None:
    """Check the name, or make one up that is also the bridge's."""
    if not new.name:
        new.name = _free_device(networks, prefix)
        if new.driver == "bridge" and not new.interface:
            new.interface = new.name
    elif not is_name(new.name):
        raise Error(f"network name {new.name} invalid: {NAME_RULE}")
    elif has(networks, new.name):
        raise Error(f"network name {new.name} already used: network already exists")
    # podman 4.3 leaves this to the kernel, which refuses when a container starts.
    if len(new.interface) > _LONGEST_INTERFACE:
        raise Error(
            f"network interface name {new.interface} invalid: interface name is too long: "
            f"interface names must be {_LONGEST_INTERFACE} characters or less: invalid argument"
        )


def _live_names() -> set[str]:
    import socket

    return {interface for _, interface in socket.if_nameindex()}


def _bridges(networks: Mapping[str, Network]) -> set[str]:
    return {item.interface for item in networks.values() if item.driver == "bridge"}


def _free_device(networks: Mapping[str, Network], prefix: str) -> str:
    taken = _bridges(networks) | set(networks) | _live_names()
    for number in range(1, _MOST_BRIDGES):
        if f"{prefix}{number}" not in taken:
            return f"{prefix}{number}"
    raise Error("could not find free device name, to many iterations")


def bridge(
    new: Network, networks: Mapping[str, Network], prefix: str, taken: list[IPNetwork]
) -> None:
    """Give a bridge network its interface and, unless it has or wants none, its subnets."""
    if not new.interface:
        new.interface = _free_device(networks, prefix)
    elif new.interface in _bridges(networks):
        raise Error(f"bridge name {new.interface} already in use")
    elif not is_name(new.interface):
        raise Error(f"bridge name {new.interface} invalid: {NAME_RULE}")
    if new.ipam_options.get("driver", "") not in ("", HOST_LOCAL):
        return
    if not new.subnets:
        new.subnets.append(Subnet(subnets.free_ipv4(taken, config.subnet_pools())))
    if new.ipv6:
        versions = {subnet.subnet.version for subnet in new.subnets}
        if 4 not in versions:
            new.subnets.append(Subnet(subnets.free_ipv4(taken, config.subnet_pools())))
        if 6 not in versions:
            new.subnets.append(Subnet(subnets.free_ipv6(taken)))
    new.ipam_options["driver"] = HOST_LOCAL


def parent(new: Network) -> None:
    """Check the interface below a macvlan or ipvlan."""
    if new.interface and new.interface not in _live_names():
        raise Error(f"parent interface {new.interface} does not exist")


def check_subnets(new: Network, *, add_gateway: bool, taken: list[IPNetwork]) -> None:
    """Check the subnets and what is said about each; with add_gateway give each a gateway."""
    for item in new.subnets:
        if subnets.overlaps(item.subnet, taken):
            raise Error(f"subnet {item.subnet} is already used on the host or by another config")
        if item.gateway is not None:
            if item.gateway not in item.subnet:
                raise Error(f"gateway {item.gateway} not in subnet {item.subnet}")
        elif add_gateway:
            item.gateway = subnets.first_address(item.subnet)
        for which, address in (("start", item.start), ("end", item.end)):
            if address is not None and address not in item.subnet:
                raise Error(f"lease range {which} ip {address} not in subnet {item.subnet}")
        if item.subnet.version == 6:
            new.ipv6 = True


def mtu(text: str) -> int:
    """The option mtu; 0 stands for the default."""
    value = _number(text)
    if value < 0:
        raise Error(f"mtu {value} is less than zero")
    return value


def vlan(text: str) -> int:
    """The option vlan; 0 stands for none."""
    value = _number(text)
    if not 0 <= value <= 4094:
        raise Error(f"vlan ID {value} must be between 0 and 4094")
    return value


def _number(text: str) -> int:
    if not text:
        return 0
    digits = text[1:] if text[0] in "+-" else text
    if not (digits.isascii() and digits.isdecimal()):
        raise Error(f"strconv.Atoi: parsing {gojson.quote(text)}: invalid syntax")
    value = int(text) if len(text) < 32 else 1 << 64
    if not -(1 << 63) <= value < 1 << 63:
        raise Error(f"strconv.Atoi: parsing {gojson.quote(text)}: value out of range")
    return value


def truth(text: str) -> bool:
    """A truth value as Go reads it."""
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise Error(f"strconv.ParseBool: parsing {gojson.quote(text)}: invalid syntax")


def mode(driver: str, text: str) -> str:
    """The option mode of macvlan and ipvlan."""
    if text not in MODES[driver]:
        raise Error(f"unknown {driver} mode {gojson.quote(text)}")
    return text
