"""What a network is: the object, and the JSON that podman's own structure has."""

from __future__ import annotations

from rootlessnet.networks import subnets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.networks.subnets import Address, IPNetwork

DRIVERS = ("bridge", "macvlan", "ipvlan")
NAME_RULE = "names must match [a-zA-Z0-9][a-zA-Z0-9_.-]*: invalid argument"
NEVER = "0001-01-01T00:00:00Z"

_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_OTHER = _FIRST | frozenset("_.-")


class Subnet:
    """A subnet, its gateway, and the first and last address to hand out; None is not said."""

    __slots__ = ("end", "gateway", "start", "subnet")

    def __init__(
        self,
        subnet: IPNetwork,
        gateway: Address | None = None,
        start: Address | None = None,
        end: Address | None = None,
    ) -> None:
        self.subnet = subnet
        self.gateway = gateway
        self.start = start
        self.end = end

    def document(self) -> dict[str, Any]:
        """As in podman's file."""
        result: dict[str, Any] = {"subnet": str(self.subnet)}
        if self.gateway is not None:
            result["gateway"] = str(self.gateway)
        if self.start is not None or self.end is not None:
            both = {"start_ip": self.start, "end_ip": self.end}
            result["lease_range"] = {k: str(v) for k, v in both.items() if v is not None}
        return result


class Network:
    """A network as podman describes it; what is not given is filled in when it is created.

    created is a time as in RFC 3339. interface is the bridge, or the parent of a macvlan or ipvlan.
    """

    def __init__(
        self,
        name: str = "",
        *,
        driver: str = "bridge",
        interface: str = "",
        ipv6: bool = False,
        internal: bool = False,
        dns: bool = True,
        dns_servers: list[str] | None = None,
        labels: dict[str, str] | None = None,
        options: dict[str, str] | None = None,
        ipam_options: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self.id = ""
        self.driver = driver
        self.interface = interface
        self.created = NEVER
        self.subnets: list[Subnet] = []
        self.routes: list[Any] = []
        self.ipv6 = ipv6
        self.internal = internal
        self.dns = dns
        self.dns_servers = list(dns_servers or ())
        self.labels = dict(labels or {})
        self.options = dict(options or {})
        self.ipam_options = dict(ipam_options or {})

    def document(self) -> dict[str, Any]:
        """As in podman's file: keys in its order, and what is empty left out where it does so."""
        result: dict[str, Any] = {"name": self.name, "id": self.id, "driver": self.driver}
        if self.interface:
            result["network_interface"] = self.interface
        result["created"] = self.created
        if self.subnets:
            result["subnets"] = [subnet.document() for subnet in self.subnets]
        if self.routes:
            result["routes"] = self.routes
        result["ipv6_enabled"] = self.ipv6
        result["internal"] = self.internal
        result["dns_enabled"] = self.dns
        if self.dns_servers:
            result["network_dns_servers"] = self.dns_servers
        for key, value in (
            ("labels", self.labels),
            ("options", self.options),
            ("ipam_options", self.ipam_options),
        ):
            if value:
                result[key] = dict(sorted(value.items()))
        return result


def from_document(value: Any) -> Network:
    """The network of podman's JSON. Raises ValueError for what has another type there."""
    keys = _Keys(value)
    network = Network(keys.text("name"), driver=keys.text("driver"))
    network.id = keys.text("id")
    network.interface = keys.text("network_interface")
    network.created = _time(keys.text("created") or NEVER)
    network.routes = keys.objects("routes")
    network.ipv6 = keys.flag("ipv6_enabled")
    network.internal = keys.flag("internal")
    network.dns = keys.flag("dns_enabled")
    network.dns_servers = keys.texts("network_dns_servers")
    network.labels = keys.map("labels")
    network.options = keys.map("options")
    network.ipam_options = keys.map("ipam_options")
    for item in keys.objects("subnets"):
        inner = _Keys(item)
        lease = _Keys(inner.any("lease_range") or {})
        addresses = (
            subnets.parse_address(text) if text else None
            for text in (inner.text("gateway"), lease.text("start_ip"), lease.text("end_ip"))
        )
        network.subnets.append(Subnet(subnets.parse_cidr(inner.text("subnet")), *addresses))
    return network


class _Keys:
    """A JSON object, read as Go reads it: keys in any case, null is nothing, types must fit."""

    def __init__(self, value: Any) -> None:
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
        self._values = {key.lower(): item for key, item in value.items()}

    def any(self, key: str) -> Any:
        return self._values.get(key)

    def _get(self, key: str, kind: type, name: str) -> Any:
        value = self._values.get(key)
        if value is None:
            return kind()
        if not isinstance(value, kind):
            raise ValueError(f"{key} is not {name}")
        return value

    def text(self, key: str) -> str:
        return str(self._get(key, str, "a string"))

    def flag(self, key: str) -> bool:
        return bool(self._get(key, bool, "true or false"))

    def objects(self, key: str) -> list[Any]:
        return list(self._get(key, list, "a list"))

    def texts(self, key: str) -> list[str]:
        items = self.objects(key)
        if not all(isinstance(item, str) for item in items):
            raise ValueError(f"{key} is not a list of strings")
        return items

    def map(self, key: str) -> dict[str, str]:
        value = self._get(key, dict, "an object")
        if not all(isinstance(item, str) for item in value.values()):
            raise ValueError(f"{key} is not an object of strings")
        return dict(value)


def _time(text: str) -> str:
    import re

    if not re.fullmatch(r"\d{4}(-\d\d){2}T(\d\d:){2}\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", text):
        raise ValueError(f"created is not a time: {text}")
    return text


def is_name(text: str) -> bool:
    """Whether podman takes it as the name of a network or a bridge."""
    return bool(text) and text[0] in _FIRST and _OTHER.issuperset(text)


def timestamp(nanoseconds: int) -> str:
    """A time since the epoch in RFC 3339, in the local zone, as Go writes it."""
    import time

    seconds, fraction = divmod(nanoseconds, 10**9)
    local = time.localtime(seconds)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", local)
    if fraction:
        text += f".{fraction:09}".rstrip("0")
    if not local.tm_gmtoff:
        return text + "Z"
    hours, minutes = divmod(abs(local.tm_gmtoff) // 60, 60)
    return f"{text}{'-' if local.tm_gmtoff < 0 else '+'}{hours:02}:{minutes:02}"
