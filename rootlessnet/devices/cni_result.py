"""CNI results: read in any version of the specification, printed in the configuration's.

Within the program a result is in the form of the newest version.
"""

from __future__ import annotations

from rootlessnet.devices.cni_main import VERSIONS
from rootlessnet.devices.cni_plugin import INTERNAL, CniError, unexpected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

AF_INET = 2
AF_INET6 = 10

_DNS = ("nameservers", "domain", "search", "options")
# What a route may say beside dst and gw since 1.1.0.
_ROUTE_EXTRAS = ("mtu", "advmss", "priority", "table", "scope")
_LISTS = VERSIONS.index("0.3.0")
_NO_FAMILY = VERSIONS.index("1.0.0")
_ROUTE_EXTRAS_SINCE = VERSIONS.index("1.1.0")


class Prefix:
    """An address and the length of its prefix."""

    __slots__ = ("address", "family", "length")

    def __init__(self, text: str) -> None:
        import socket

        address, slash, length = text.partition("/")
        self.family = AF_INET6 if ":" in address else AF_INET
        bits = 128 if self.family == AF_INET6 else 32
        try:
            packed = socket.inet_pton(self.family, address)
            self.length = int(length)
        except (OSError, ValueError):
            self.length = -1
        if not slash or not 0 <= self.length <= bits or not length.isdecimal():
            raise CniError(INTERNAL, f"invalid CIDR address: {text}")
        self.address: str = socket.inet_ntop(self.family, packed)

    def network(self) -> str:
        """The address with the bits of the host cleared."""
        return self._with_host_bits(0)

    def broadcast(self) -> str:
        """The broadcast address of an IPv4 network; empty where there is none."""
        return self._with_host_bits(1) if self.family == AF_INET and self.length < 31 else ""

    def _with_host_bits(self, bit: int) -> str:
        import socket

        packed = socket.inet_pton(self.family, self.address)
        free = len(packed) * 8 - self.length
        number = int.from_bytes(packed, "big") >> free << free
        if bit:
            number |= (1 << free) - 1
        return socket.inet_ntop(self.family, number.to_bytes(len(packed), "big"))

    def __str__(self) -> str:
        return f"{self.address}/{self.length}"


def normal_address(text: str) -> str:
    """An address without prefix in its usual form; raises CniError."""
    import socket

    family = AF_INET6 if ":" in text else AF_INET
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, text))
    except OSError as e:
        raise CniError(INTERNAL, f"invalid IP address: {text}") from e


class Address:
    """One entry of `ips`."""

    __slots__ = ("gateway", "interface", "prefix")

    def __init__(self, prefix: Prefix, gateway: str, interface: int | None) -> None:
        self.prefix = prefix
        self.gateway = gateway
        self.interface = interface


class Route:
    """One entry of `routes`."""

    __slots__ = ("extras", "gateway", "prefix")

    def __init__(self, prefix: Prefix, gateway: str, extras: dict[str, int]) -> None:
        self.prefix = prefix
        self.gateway = gateway
        self.extras = extras


class Result:
    """What a plugin has to say: interfaces, addresses, routes, DNS."""

    def __init__(self) -> None:
        self.interfaces: list[dict[str, Any]] = []
        self.addresses: list[Address] = []
        self.routes: list[Route] = []
        self.dns: dict[str, Any] = {}


def parse(document: Any, default_version: str) -> Result:
    """A result that a plugin printed; raises CniError."""
    result = Result()
    document = _object(document, "result")
    version = _string(document, "cniVersion") or default_version
    if version not in VERSIONS:
        raise CniError(INTERNAL, f'unsupported CNI result version "{version}"')
    if VERSIONS.index(version) < _LISTS:
        for family in ("ip4", "ip6"):
            if document.get(family) is None:
                continue
            one = _object(document[family], family)
            gateway = _gateway(one, "gateway")
            result.addresses.append(Address(Prefix(_string(one, "ip")), gateway, None))
            result.routes += map(_parse_route, _list(one, "routes"))
        return result
    result.interfaces = [_object(each, "interfaces") for each in _list(document, "interfaces")]
    for each in _list(document, "ips"):
        one = _object(each, "ips")
        interface = one.get("interface")
        if interface is not None and not isinstance(interface, int):
            raise CniError(INTERNAL, unexpected(interface, "Go struct field .interface", "int"))
        prefix = Prefix(_string(one, "address"))
        result.addresses.append(Address(prefix, _gateway(one, "gateway"), interface))
    result.routes = [_parse_route(each) for each in _list(document, "routes")]
    return result


def dns_of(config: dict[str, Any]) -> dict[str, Any]:
    """The dns section of a configuration, without what is empty."""
    dns = config.get("dns")
    if dns is None:
        return {}
    if not isinstance(dns, dict):
        what = unexpected(dns, "Go struct field NetConf.dns", "types.DNS")
        raise CniError(INTERNAL, f"failed to load netconf: {what}")
    return {key: dns[key] for key in _DNS if dns.get(key)}


def check_printable(version: str, will_have_addresses: bool) -> None:
    """Raise CniError when the version cannot say what there is to say."""
    if VERSIONS.index(version) < _LISTS and not will_have_addresses:
        raise CniError(INTERNAL, "cannot convert: no valid IP addresses")


def render(result: Result, version: str) -> dict[str, Any]:
    """The document of a result in a version of the specification; raises CniError."""
    number = VERSIONS.index(version)
    document: dict[str, Any] = {"cniVersion": version}
    if number < _LISTS:
        check_printable(version, bool(result.addresses))
        for address in result.addresses:
            key = "ip6" if address.prefix.family == AF_INET6 else "ip4"
            if key in document:
                continue
            routes = [
                _render_route(route, number)
                for route in result.routes
                if route.prefix.family == address.prefix.family
            ]
            document[key] = {
                "ip": str(address.prefix),
                **({"gateway": address.gateway} if address.gateway else {}),
                **({"routes": routes} if routes else {}),
            }
        # ip4 comes first, whatever the order of the addresses.
        document = {key: document[key] for key in ("cniVersion", "ip4", "ip6") if key in document}
        document["dns"] = result.dns
        return document
    if result.interfaces:
        document["interfaces"] = result.interfaces
    if result.addresses:
        document["ips"] = [
            {
                **({"version": _family(address)} if number < _NO_FAMILY else {}),
                **({} if address.interface is None else {"interface": address.interface}),
                "address": str(address.prefix),
                **({"gateway": address.gateway} if address.gateway else {}),
            }
            for address in result.addresses
        ]
    if result.routes:
        document["routes"] = [_render_route(route, number) for route in result.routes]
    document["dns"] = result.dns
    return document


def _family(address: Address) -> str:
    return "6" if address.prefix.family == AF_INET6 else "4"


def _parse_route(value: Any) -> Route:
    one = _object(value, "routes")
    extras = {}
    for key in _ROUTE_EXTRAS:
        if one.get(key) is None:
            continue
        if not isinstance(one[key], int) or isinstance(one[key], bool):
            raise CniError(INTERNAL, unexpected(one[key], f"Go struct field .{key}", "int"))
        extras[key] = one[key]
    return Route(Prefix(_string(one, "dst")), _gateway(one, "gw"), extras)


def _render_route(route: Route, number: int) -> dict[str, Any]:
    return {
        "dst": str(route.prefix),
        **({"gw": route.gateway} if route.gateway else {}),
        **(route.extras if number >= _ROUTE_EXTRAS_SINCE else {}),
    }


def _gateway(one: dict[str, Any], key: str) -> str:
    text = _string(one, key)
    return normal_address(text) if text else ""


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CniError(INTERNAL, unexpected(value, f"Go struct field .{what}", "object"))
    return value


def _list(one: dict[str, Any], key: str) -> list[Any]:
    value = one.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise CniError(INTERNAL, unexpected(value, f"Go struct field .{key}", "array"))
    return value


def _string(one: dict[str, Any], key: str) -> str:
    value = one.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CniError(INTERNAL, unexpected(value, f"Go struct field .{key}", "string"))
    return value
