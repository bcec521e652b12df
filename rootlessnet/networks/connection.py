"""What is asked for when a container is to be connected to a network, and the check of it."""

from __future__ import annotations

from rootlessnet.errors import Error
from rootlessnet.networks import addresses, definition, gojson, netavark, subnets
from rootlessnet.networks.attachment import Attachment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rootlessnet.networks.network import Network

_ALIAS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
_MAX_ALIAS = 253


class Connection:
    """A network by name or id, and what is wanted there: addresses, a MAC address, names, and the
    name of the interface. What is empty is chosen."""

    def __init__(
        self,
        network: str,
        *,
        static_ips: Iterable[str] = (),
        static_mac: str = "",
        aliases: Iterable[str] = (),
        interface: str = "",
    ) -> None:
        self.network = network
        self.static_ips = list(static_ips)
        self.static_mac = static_mac
        self.aliases = list(aliases)
        self.interface = interface


def parse(text: str) -> Connection:
    """NAME[:ip=A,ip6=A,mac=M,alias=X,interface_name=I]; raises Error with podman's words."""
    name, _, rest = text.partition(":")
    found = Connection(name)
    for option in rest.split(",") if rest else ():
        key, _, value = option.partition("=")
        if key in ("ip", "ip6"):
            found.static_ips.append(value)
        elif key == "mac":
            if not value:
                raise Error("mac cannot be empty")
            found.static_mac = value
        elif key == "alias":
            found.aliases.append(value)
        elif key == "interface_name":
            if not value:
                raise Error("interface_name cannot be empty")
            found.interface = value
        else:
            raise Error(f"unknown bridge network option: {key}")
    return found


def resolve(wanted: Iterable[Connection], networks: Mapping[str, Network]) -> list[Attachment]:
    """The attachments that are asked for, all checked. Raises Error."""
    found: list[Attachment] = []
    for each in wanted:
        if not each.network:
            raise Error("the name of the network is empty")
        network = definition.find(networks, each.network)
        if any(other.network.name == network.name for other in found):
            raise Error(f"network {network.name} is given twice")
        if each.interface and any(other.interface == each.interface for other in found):
            raise Error(f"interface {each.interface} is given twice")
        found.append(_checked(each, network))
    return found


def _checked(wanted: Connection, network: Network) -> Attachment:
    try:
        static = [str(_address(text)) for text in wanted.static_ips]
    except ValueError as error:
        raise Error(str(error)) from None
    addresses.check_static(network, static)
    for subnet in network.subnets:
        inside = [text for text in static if subnets.parse_address(text) in subnet.subnet]
        if len(inside) > 1:
            raise Error(
                f"{' and '.join(inside)} are both in subnet {subnet.subnet}: one can be had"
            )
    for alias in wanted.aliases:
        check_alias(alias)
    if wanted.interface:
        from rootlessnet.devices import names

        problem = names.problem(wanted.interface)
        if problem or "%" in wanted.interface:
            raise Error(f"interface name {wanted.interface!r}: {problem or 'it contains %'}")
    return Attachment(
        network,
        wanted.interface,
        static_ips=static,
        static_mac=_mac(wanted.static_mac),
        aliases=wanted.aliases,
    )


def check_alias(alias: str) -> None:
    """Raise Error for what cannot be a container's name to others: it would break the name server's
    file, in which a blank or a comma ends a name."""
    if not alias:
        raise Error("alias cannot be empty")
    if len(alias) > _MAX_ALIAS or not _ALIAS.issuperset(alias):
        raise Error(f"{alias!r} is no name for a container", hint="letters, digits, dot, - and _")


def _address(text: str) -> subnets.Address:
    try:
        return subnets.parse_address(text)
    except ValueError:
        raise ValueError(f"invalid ip address {gojson.quote(text)}") from None


def _mac(text: str) -> str:
    """A MAC address in the usual form. Raises Error."""
    if not text:
        return ""
    parts = text.replace("-", ":").split(":")
    try:
        if len(parts) != 6 or not all(len(part) == 2 for part in parts):
            raise ValueError
        octets = bytes(int(part, 16) for part in parts if part.isalnum())
        if len(octets) != 6:
            raise ValueError
    except ValueError:
        raise Error(f"address {text}: invalid MAC address") from None
    if octets[0] & 1 or not any(octets):
        raise Error(f"address {text}: no interface can have this MAC address")
    return ":".join(f"{octet:02x}" for octet in octets)


def backend_limits(attachments: Iterable[Attachment], backend: str) -> None:
    """Raise Error for a network whose driver the backend does not have."""
    for each in attachments:
        driver = each.network.driver
        if backend == netavark.NAME and driver not in ("bridge", "macvlan"):
            raise Error(f"network {each.network.name}: unsupported driver {driver}")
