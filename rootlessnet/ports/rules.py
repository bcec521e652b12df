"""Rules: which port of the host leads to which port inside.

    [HOST_IP:][HOST_PORT:]PORT[-PORT][/tcp|udp]

    80                  a free port of the host, on all its addresses, to port 80 inside
    8080:80/udp         port 8080 of all addresses of both families
    127.0.0.1:8080:80   of one address; [::1]:8080:80 for IPv6
    127.0.0.1::80       a free port of one address; so does 127.0.0.1:80
    9000-9009:80-89     ten ports, each to its own

A rule of several ports is one rule all the way, so that thousands of ports stay affordable. Nothing
here opens a socket: what is wrong with rules by themselves, and with one another, is found here.
"""

from __future__ import annotations

import os

from rootlessnet.errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

SYNTAX = "[HOST_IP:][HOST_PORT:]PORT[-PORT][/tcp|udp]"
PROTOCOLS = ("tcp", "udp")
_SYSCTL = "net.ipv4.ip_unprivileged_port_start"
_CAP_NET_BIND_SERVICE = 10


class Rule:
    """count ports of the host, from host_port on, that lead to as many inside, from port on.

    host_ip is "" for all addresses of both families; host_port is 0 until a free one is chosen.
    """

    __slots__ = ("count", "host_ip", "host_port", "port", "proto")

    def __init__(self, proto: str, host_ip: str, host_port: int, port: int, count: int = 1) -> None:
        self.proto = proto
        self.host_ip = host_ip
        self.host_port = host_port
        self.port = port
        self.count = count

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rule) and self.as_list() == other.as_list()

    def __hash__(self) -> int:
        return hash(tuple(self.as_list()))

    def __repr__(self) -> str:
        return f"Rule({self})"

    def __str__(self) -> str:
        """As it is written on a command line."""
        address = f"[{self.host_ip}]:" if ":" in self.host_ip else f"{self.host_ip}:"
        host = _span(self.host_port, self.count) if self.host_port else ""
        where = f"{address}{host}:" if self.host_ip else f"{host}:" if host else ""
        return f"{where}{_span(self.port, self.count)}/{self.proto}"

    @property
    def version(self) -> int:
        """4 or 6; 0 for both."""
        return 0 if not self.host_ip else 6 if ":" in self.host_ip else 4

    def overlaps(self, other: Rule) -> bool:
        """Whether some socket would have to be both rules'."""
        if self.proto != other.proto or not self.host_port or not other.host_port:
            return False
        if (
            self.host_port + self.count <= other.host_port
            or other.host_port + other.count <= self.host_port
        ):
            return False
        if not self.host_ip or not other.host_ip:
            return True
        if self.version != other.version:
            return False
        return self.host_ip == other.host_ip or bool({self.host_ip, other.host_ip} & _WILDCARDS)

    def as_list(self) -> list[Any]:
        """For the wire and for records; `from_list` reads it."""
        return [self.proto, self.host_ip, self.host_port, self.port, self.count]

    def entries(self, target: str) -> list[dict[str, Any]]:
        """One object for each port, as `port ls --json` and `status --json` have them."""
        return [
            {
                "proto": self.proto,
                "host_ip": self.host_ip,
                "host_port": self.host_port + number if self.host_port else 0,
                "port": self.port + number,
                "target": target,
            }
            for number in range(self.count)
        ]


_WILDCARDS = frozenset(("0.0.0.0", "::"))


def _span(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first}-{first + count - 1}"


def from_list(fields: Sequence[Any]) -> Rule:
    """A rule from what `as_list` gave. Raises ValueError for anything else."""
    try:
        proto, host_ip, host_port, port, count = fields
        numbers = (host_port, port, count)
        if proto not in PROTOCOLS or not all(type(number) is int for number in numbers):
            raise ValueError(f"not a rule: {fields!r}")
        if not isinstance(host_ip, str) or (host_ip and _address(host_ip) != host_ip):
            raise ValueError(f"not an address: {host_ip!r}")
    except (TypeError, ValueError) as error:
        raise ValueError(f"not a rule: {fields!r}") from error
    if not (0 <= host_port <= 65536 - count and 1 <= port <= 65536 - count and count >= 1):
        raise ValueError(f"not a rule: {fields!r}")
    return Rule(proto, host_ip, host_port, port, count)


def parse(text: str, option: str = "--publish") -> Rule:
    """The rule that a command line asks for. Raises Error."""
    try:
        return _parse(text)
    except ValueError as error:
        raise Error(f"{option} {text}: {error}", hint=SYNTAX) from None


def parse_all(texts: Iterable[str], option: str = "--publish") -> list[Rule]:
    """The rules that a command line asks for, none of which may overlap another. Raises Error."""
    found: list[Rule] = []
    for text in texts:
        rule = parse(text, option)
        for other in found:
            if rule.overlaps(other):
                raise Error(f"{option} {text}: overlaps {other}")
        found.append(rule)
    refuse_privileged(found, option)
    return found


def _parse(text: str) -> Rule:
    where, slash, proto = text.partition("/")
    proto = proto.lower() if slash else "tcp"
    if proto == "sctp":
        raise ValueError("sctp is not supported: tcp or udp")
    if proto not in PROTOCOLS:
        raise ValueError(f"unknown protocol {proto or 'of no name'}: tcp or udp")
    address, ports = _split_address(where)
    host, colon, inside = ports.rpartition(":")
    if ":" in host:
        raise ValueError("too many colons; an IPv6 address has to be in brackets, as [::1]:8080:80")
    port, count = _ports(inside)
    host_port = 0
    if colon and host:
        host_port, host_count = _ports(host, least=0)
        if host_port == 0 and host_count > 1:
            raise ValueError(f"{host} is not a range of ports")
        if host_port and host_count != count:
            raise ValueError(
                f"{host_count} port{'s' * (host_count > 1)} of the host for {count} inside"
            )
    elif colon and not address:
        raise ValueError("nothing before the colon")
    return Rule(proto, address, host_port, port, count)


def _split_address(text: str) -> tuple[str, str]:
    """The address, if there is one, and what follows it."""
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise ValueError("the brackets have to hold an address and be followed by a colon")
        return _address(address, 6), rest[1:]
    first, colon, rest = text.partition(":")
    if colon and "." in first:
        return _address(first, 4), rest
    if colon and rest.count(":") == 1 and not first:
        return "", rest  # as podman has it: an empty address is no address
    return "", text


def _address(text: str, version: int = 0) -> str:
    """In its usual form. Raises ValueError."""
    import ipaddress

    if "%" in text:
        raise ValueError(f"{text}: an address with a zone is not supported")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"{text or 'nothing'} is not an IP address") from None
    if version and address.version != version:
        raise ValueError(f"{text} is not an IPv{version} address")
    if address.version == 6 and address.ipv4_mapped:
        raise ValueError(f"{text} is an IPv4 address: write {address.ipv4_mapped}")
    if address.is_multicast:
        raise ValueError(f"{text} is a multicast address")
    return str(address)


def _ports(text: str, least: int = 1) -> tuple[int, int]:
    """The first of a port or range, and how many."""
    first, dash, last = text.partition("-")
    start = _port(first, text, least)
    end = _port(last, text, least) if dash else start
    if end < start:
        raise ValueError(f"{text}: the range is the wrong way round")
    return start, end - start + 1


def _port(text: str, whole: str, least: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5):
        raise ValueError(f"{whole or 'nothing'} is not a port")
    if not least <= int(text) <= 65535:
        raise ValueError(f"{text} is not a port: 1 to 65535")
    return int(text)


def conflict(rules: Iterable[Rule], taken: Iterable[tuple[str, Rule]]) -> tuple[Rule, str] | None:
    """The first of the rules that overlaps one that is taken, and who has that."""
    present = list(taken)
    for rule in rules:
        for owner, other in present:
            if rule.overlaps(other):
                return rule, f"{other} of {owner}"
    return None


def refuse_privileged(rules: Iterable[Rule], option: str = "--publish") -> None:
    """Raise Error for a port of the host that is for root alone. Called in the host's namespaces,
    or else it is the limit of others that is looked at."""
    first = first_unprivileged()
    for rule in rules:
        if 0 < rule.host_port < first:
            raise Error(
                f"{option} {rule}: port {rule.host_port} of the host is privileged: "
                f"{_SYSCTL} is {first}",
                hint=f"as root: sysctl {_SYSCTL}={rule.host_port}",
            )


def first_unprivileged() -> int:
    """The first port that this process may take."""
    from rootlessnet.kernel import namespaces

    try:
        with open("/proc/sys/" + _SYSCTL.replace(".", "/"), encoding="ascii") as file:
            first = int(file.read())
    except FileNotFoundError:
        first = 1024
    if os.stat("/proc/self/ns/user").st_ino == _INITIAL_USERNS and namespaces.has_capability(
        _CAP_NET_BIND_SERVICE
    ):
        return 0
    return first


_INITIAL_USERNS = 0xEFFFFFFD
"""Inode number of the first user namespace (PROC_USER_INIT_INO); capabilities of another one do not
reach the host's network."""
