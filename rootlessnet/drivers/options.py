"""The driver options that `-o KEY=VALUE` and containers.conf's network_cmd_options take.

Names and messages are podman's (4.3 libpod/networking_slirp4netns.go), byte for byte, so that a
user who searches for one finds podman's answers. What the driver itself would refuse later is
refused here too, before anything is started. pasta takes the same options.
"""

from __future__ import annotations

from rootlessnet.errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Options = dict[str, "str | int | bool"]

DEFAULT_CIDR = "10.0.2.0/24"
DEFAULT_MTU = 20000
"""Measured through this program (scripts/bench mtu): as fast as 65520, which is podman's, and no
download stalled, as now and then they did from 28000 on (see also slirp4netns issue 284). For pasta
too (scripts/bench drivers): with more, uploads through that of 2023 fall to a fifth."""

_MAX_MTU = {"slirp4netns": 65521, "pasta": 65520}
"""slirp4netns: 65535 less an Ethernet header, as its main.c has it. pasta: that rounded down to a
multiple of 4."""


def defaults() -> Options:
    """Every option with its default; an empty outbound address means that the kernel chooses."""
    return {
        "cidr": DEFAULT_CIDR,
        "mtu": DEFAULT_MTU,
        "enable_ipv6": True,
        "allow_host_loopback": False,
        "outbound_addr": "",
        "outbound_addr6": "",
        "port_handler": "rootlesskit",
        "dns_fallback": False,
        "source_ip": "preserve",
        "allow_ports_from_inside": False,
    }


CHOICES = {"port_handler": ("rootlesskit", "slirp4netns"), "source_ip": ("preserve", "snat")}
"""Options that are one of several words."""


def parse(pairs: Iterable[str], source: str = "-o", driver: str = "slirp4netns") -> Options:
    """The options that were given, checked and in their types; a later one wins.

    Raises Error with podman's message; source says where the option was, driver for whom.
    """
    result: Options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        check = _CHECKS.get(key)
        try:
            if not equals or check is None:
                raise ValueError(f"unknown option for {driver}: {quote(pair)}")
            result[key] = check(key, value, driver)
        except ValueError as error:
            advice = ""
            if check is None:
                advice = f"options are {', '.join(_CHECKS)}"
            elif not equals:
                advice = f"-o {key}=VALUE"
            elif key in _RIGHT:
                advice = f"{key} is {_RIGHT[key]}"
            raise Error(f"{source} {pair}: {error}", hint=advice) from None
    return result


def quote(text: str) -> str:
    """Go's %q, in which podman prints values."""
    import json

    return json.dumps(text, ensure_ascii=False)


def show(value: str | float | bool) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cidr(key: str, value: str, driver: str) -> str:
    import ipaddress

    try:
        if not value.rpartition("/")[2].isdecimal() or "/" not in value:
            raise ValueError
        network = ipaddress.IPv4Network(value, strict=False)
    except ValueError:
        raise ValueError(f"invalid cidr {quote(value)}") from None
    if network.network_address != ipaddress.IPv4Address(value.partition("/")[0]):
        raise ValueError(
            f"invalid cidr {quote(value)}: has to be a network address such as {network}"
        )
    if not 1 <= network.prefixlen <= 25:
        raise ValueError(
            f"invalid cidr {quote(value)}: {driver} needs a prefix length from 1 to 25"
        )
    if network.is_loopback or network.is_multicast or network.network_address.packed[0] == 0:
        raise ValueError(f"invalid cidr {quote(value)}: these addresses have another meaning")
    return str(network)


def _mtu(key: str, value: str, driver: str) -> int:
    digits = value[1:] if value[:1] in ("+", "-") else value
    if not (digits.isascii() and digits.isdecimal()) or int(value) < 68:
        raise ValueError(f"invalid mtu {quote(value)}")
    if int(value) > _MAX_MTU[driver]:
        raise ValueError(f"invalid mtu {quote(value)}: {driver} takes at most {_MAX_MTU[driver]}")
    if driver == "pasta" and int(value) < 1280:
        # A lower one ends IPv6 on the interface, and pasta with it.
        raise ValueError(f"invalid mtu {quote(value)}: pasta needs at least 1280")
    return int(value)


def _flag(key: str, value: str, driver: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError(f"invalid value of {key} for {driver}: {quote(value)}")
    return value == "true"


def _outbound_addr(key: str, value: str, driver: str) -> str:
    import ipaddress

    version: type = ipaddress.IPv6Address if key.endswith("6") else ipaddress.IPv4Address
    try:
        version(value)
    except ValueError:
        if not _is_interface(value):
            separator = ":" if key.endswith("6") else ""
            raise ValueError(f"invalid {key}{separator} {quote(value)}") from None
        if key.endswith("6") and driver == "slirp4netns":
            # slirp4netns looks the name up under its IPv4 option: peers call this one broken.
            raise ValueError(
                f"invalid {key}: {quote(value)}: slirp4netns takes an IPv6 address only here"
            ) from None
    return value


def _is_interface(name: str) -> bool:
    import socket

    try:
        socket.if_nametoindex(name)
    except (OSError, ValueError):
        return False
    return True


def _port_handler(key: str, value: str, driver: str) -> str:
    if value not in CHOICES[key]:
        raise ValueError(f"unknown port_handler for {driver}: {quote(value)}")
    if value != "rootlesskit" and driver != "slirp4netns":
        raise ValueError(f"port_handler {value} needs the driver slirp4netns, and this is {driver}")
    return value


def _source_ip(key: str, value: str, driver: str) -> str:
    if value not in CHOICES[key]:
        raise ValueError(f"unknown source_ip {quote(value)}: preserve or snat")
    return value


_CHECKS: dict[str, Callable[[str, str, str], str | int | bool]] = {
    "cidr": _cidr,
    "mtu": _mtu,
    "enable_ipv6": _flag,
    "allow_host_loopback": _flag,
    "outbound_addr": _outbound_addr,
    "outbound_addr6": _outbound_addr,
    "port_handler": _port_handler,
    "dns_fallback": _flag,
    "source_ip": _source_ip,
    "allow_ports_from_inside": _flag,
}


_FLAG = "true or false"
_RIGHT = {
    "cidr": f"an IPv4 network such as {DEFAULT_CIDR}",
    "mtu": f"a number such as {DEFAULT_MTU}",
    "enable_ipv6": _FLAG,
    "allow_host_loopback": _FLAG,
    "outbound_addr": "an IPv4 address of this machine, or the name of an interface",
    "outbound_addr6": "an IPv6 address of this machine",
    "port_handler": " or ".join(CHOICES["port_handler"]),
    "dns_fallback": _FLAG,
    "source_ip": " or ".join(CHOICES["source_ip"]),
    "allow_ports_from_inside": _FLAG,
}
"""What a value would be right: podman's messages do not say it."""


class Addressing:
    """The addresses of the instance, computed from the cidr: network +2, +3 and +100."""

    def __init__(self, cidr: str) -> None:
        import ipaddress

        network = ipaddress.IPv4Network(cidr)
        self.cidr = cidr
        self.gateway = str(network[2])
        self.dns = str(network[3])
        self.address = str(network[100])
        self.prefix = network.prefixlen
