"""Addresses as podman reads and writes them, and the choice of a free subnet."""

from __future__ import annotations

import ipaddress  # noqa: TID253 - nothing on the warm path comes here

from rootlessnet.errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rootlessnet.networks.network import Network

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address
    IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_cidr(text: str) -> IPNetwork:
    """The network that address/length lies in. Raises ValueError with podman's words."""
    address, slash, length = text.partition("/")
    try:
        if not slash or not (length.isascii() and length.isdecimal()) or "%" in address:
            raise ValueError
        network = ipaddress.ip_network((address, int(length)), strict=False)
    except ValueError:
        raise ValueError(f"invalid CIDR address: {text}") from None
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


def parse_address(text: str) -> Address:
    """An address; ::ffff:a.b.c.d is IPv4. Raises ValueError."""
    if "%" in text:
        raise ValueError(f"invalid IP address: {text}")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"invalid IP address: {text}") from None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def first_address(network: IPNetwork) -> Address:
    """The one after the network's own: where podman puts the gateway."""
    if network.prefixlen == network.max_prefixlen:
        return network.network_address
    return network.network_address + 1


def last_address(network: IPNetwork) -> Address:
    """The last one, which podman takes as the end of a range though it is the broadcast address."""
    return network.broadcast_address


def overlaps(network: IPNetwork, others: Iterable[IPNetwork]) -> bool:
    """Whether it shares an address with one of the others."""
    return any(network.version == other.version and network.overlaps(other) for other in others)


def used(networks: Iterable[Network]) -> list[IPNetwork]:
    """The subnets of these networks and of the addresses of this network namespace."""
    found = [subnet.subnet for network in networks for subnet in network.subnets]
    from rootlessnet.devices.place import Place

    with Place.own() as place:
        for link in place.links.all():
            for address in place.links.addresses(link.index):
                found.append(parse_cidr(str(address)))
    return found


def free_ipv4(
    taken: Sequence[IPNetwork], pools: Iterable[tuple[ipaddress.IPv4Network, int]]
) -> ipaddress.IPv4Network:
    """The first free slice of the first pool that has one. Raises Error."""
    for base, size in pools:
        for candidate in base.subnets(new_prefix=size):
            if not overlaps(candidate, taken):
                return candidate
    raise Error("could not find free subnet from subnet pools")


def free_ipv6(taken: Sequence[IPNetwork]) -> ipaddress.IPv6Network:
    """A random unique local /64, as RFC 4193 wants it. Raises Error."""
    import os

    for _ in range(10000):
        candidate = ipaddress.IPv6Network((b"\xfd" + os.urandom(7) + bytes(8), 64))
        if not overlaps(candidate, taken):
            return candidate
    raise Error("failed to get random ipv6 subnet")
