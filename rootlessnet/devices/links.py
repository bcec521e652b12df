"""The links, addresses and routes of one network namespace.

`Links` is a thin layer: one method, one netlink request. It has no policy; callers decide what an
errno means. Objects are what the kernel said at that moment, and are not kept up to date; look a
link up again after it moved, since its index may have changed.
"""

from __future__ import annotations

import errno

from rootlessnet.devices import netlink
from rootlessnet.devices.netlink import LinkError, Netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

IFF_UP = 0x1

AF_UNSPEC = 0
AF_INET = 2
AF_INET6 = 10

IFA_F_TEMPORARY = 0x01
IFA_F_NODAD = 0x02
IFA_F_DADFAILED = 0x08
IFA_F_HOMEADDRESS = 0x10
IFA_F_TENTATIVE = 0x40
IFA_F_PERMANENT = 0x80
IFA_F_MANAGETEMPADDR = 0x100
IFA_F_NOPREFIXROUTE = 0x200
IFA_F_MCAUTOJOIN = 0x400
# The others are the kernel's to set: it refuses or ignores them in a request.
_SETTABLE = (
    IFA_F_NODAD | IFA_F_HOMEADDRESS | IFA_F_MANAGETEMPADDR | IFA_F_NOPREFIXROUTE | IFA_F_MCAUTOJOIN
)

RT_SCOPE_UNIVERSE = 0
RT_SCOPE_LINK = 253
RT_TABLE_MAIN = 254
RTPROT_REDIRECT = 1
RTPROT_KERNEL = 2
RTPROT_BOOT = 3
RTPROT_RA = 9
RTN_UNICAST = 1
_RTM_F_CLONED = 0x200

_RTEXT_FILTER_SKIP_STATS = 1 << 3
_IFNAMSIZ = 16


class Link:
    """A network device as the kernel describes it."""

    __slots__ = (
        "alias",
        "altnames",
        "flags",
        "index",
        "kind",
        "mac",
        "master",
        "mtu",
        "name",
        "parent",
        "peer",
        "peer_namespace",
        "state",
        "stats",
    )

    def __init__(self, message: Any) -> None:
        attribute = message.get_attr
        self.index: int = message["index"]
        self.flags: int = message["flags"]
        self.name: str = attribute("IFLA_IFNAME")
        self.mac: str = attribute("IFLA_ADDRESS") or ""
        self.mtu: int = attribute("IFLA_MTU") or 0
        self.alias: str = attribute("IFLA_IFALIAS") or ""
        self.master: int = attribute("IFLA_MASTER") or 0
        # The index of a veth's other end, and the number of its namespace when that is another one.
        self.peer: int = attribute("IFLA_LINK") or 0
        self.peer_namespace: int | None = attribute("IFLA_LINK_NETNSID")
        self.state: str = attribute("IFLA_OPERSTATE") or ""
        # The bus address of the device below: 0000:00:1f.6, virtio0. Since Linux 5.14.
        self.parent: str = attribute("IFLA_PARENT_DEV_NAME") or ""
        info = attribute("IFLA_LINKINFO")
        self.kind: str = (info.get_attr("IFLA_INFO_KIND") if info else "") or ""
        names = attribute("IFLA_PROP_LIST")
        self.altnames: list[str] = names.get_attrs("IFLA_ALT_IFNAME") if names else []
        self.stats: dict[str, int] = dict(attribute("IFLA_STATS64") or {})

    @property
    def is_up(self) -> bool:
        """Whether it is administratively up."""
        return bool(self.flags & IFF_UP)

    def is_named(self, name: str) -> bool:
        """Whether this is its name or one of its alternative names."""
        return name == self.name or name in self.altnames


class Address:
    """An address of a link, with all that is needed to add it again."""

    __slots__ = ("attributes", "family", "flags", "index", "prefixlen", "scope")

    def __init__(self, message: Any) -> None:
        self.index: int = message["index"]
        self.family: int = message["family"]
        self.prefixlen: int = message["prefixlen"]
        self.scope: int = message["scope"]
        # The 32 bits of the attribute; the header has room for eight.
        self.flags: int = message.get_attr("IFA_FLAGS") or message["flags"]
        self.attributes: dict[str, Any] = {
            name: message.get_attr(name)
            for name in (
                "IFA_ADDRESS",
                "IFA_LOCAL",
                "IFA_BROADCAST",
                "IFA_LABEL",
                "IFA_RT_PRIORITY",
                "IFA_CACHEINFO",
            )
            if message.get_attr(name) is not None
        }

    @property
    def local(self) -> str:
        """The address itself; IFA_ADDRESS of a point-to-point link is that of its peer."""
        return str(self.attributes.get("IFA_LOCAL") or self.attributes["IFA_ADDRESS"])

    @property
    def is_temporary(self) -> bool:
        """Whether the kernel made it up for privacy (RFC 8981): it makes another one."""
        return self.family == AF_INET6 and bool(self.flags & IFA_F_TEMPORARY)

    @property
    def is_permanent(self) -> bool:
        """Whether it has no lifetime: set by hand, not learnt."""
        return bool(self.flags & IFA_F_PERMANENT)

    @property
    def is_link_local(self) -> bool:
        """Whether it is of use on its own link alone, as every IPv6 interface has one."""
        return self.family == AF_INET6 and self.scope == RT_SCOPE_LINK

    def __str__(self) -> str:
        return f"{self.local}/{self.prefixlen}"


class Links:
    """The links of one network namespace: that of the descriptor, or of a netlink socket (which is
    closed with this), or our own."""

    def __init__(
        self, namespace: int | None = None, *, socket: socket.socket | None = None
    ) -> None:
        self._messages = netlink.messages()
        self._netlink = Netlink(namespace, socket=socket)

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def __enter__(self) -> Links:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- finding ---

    def get(self, name: str, *, stats: bool = False) -> Link | None:
        """The link with this name or alternative name, if there is one."""
        message = self._messages.ifinfmsg()
        try:
            length = len(name.encode())
        except UnicodeEncodeError:
            return None  # netlink's names are UTF-8 to us
        attribute = "IFLA_IFNAME" if length < _IFNAMSIZ else "IFLA_ALT_IFNAME"
        message["attrs"] = [(attribute, name)]
        return self._get(message, stats)

    def get_index(self, index: int) -> Link | None:
        """The link with this index, if there is one."""
        message = self._messages.ifinfmsg()
        message["index"] = index
        return self._get(message, False)

    def _get(self, message: Any, stats: bool) -> Link | None:
        if not stats:
            message["attrs"].append(("IFLA_EXT_MASK", _RTEXT_FILTER_SKIP_STATS))
        try:
            return Link(self._netlink.get(message, netlink.RTM_GETLINK))
        except LinkError as e:
            # ERANGE and EINVAL: no link can have such a name.
            if e.errno in (errno.ENODEV, errno.ERANGE, errno.EINVAL):
                return None
            raise

    def all(self, *, stats: bool = False) -> list[Link]:
        """Every link."""
        message = self._messages.ifinfmsg()
        if not stats:
            message["attrs"] = [("IFLA_EXT_MASK", _RTEXT_FILTER_SKIP_STATS)]
        return [Link(answer) for answer in self._netlink.dump(message, netlink.RTM_GETLINK)]

    def addresses(self, index: int) -> list[Address]:
        """The addresses of a link, in the order in which they were added."""
        message = self._messages.ifaddrmsg()
        message["index"] = index
        found = map(Address, self._netlink.dump(message, netlink.RTM_GETADDR))
        # A kernel without strict checking (before 4.20) sends them all.
        return [address for address in found if address.index == index]

    def all_addresses(self) -> list[Address]:
        """The addresses of every link."""
        return list(
            map(Address, self._netlink.dump(self._messages.ifaddrmsg(), netlink.RTM_GETADDR))
        )

    def routes(self, index: int) -> list[Any]:
        """The routes through a link that were added by others than the kernel, as messages."""
        found = []
        for family in (AF_INET, AF_INET6):
            message = self._messages.rtmsg()
            message["family"] = family
            message["attrs"] = [("RTA_OIF", index)]
            for route in self._netlink.dump(message, netlink.RTM_GETROUTE):
                if (
                    route.get_attr("RTA_OIF") == index
                    # Those the kernel makes or learns again.
                    and route["proto"] not in (RTPROT_REDIRECT, RTPROT_KERNEL, RTPROT_RA)
                    and not route["flags"] & _RTM_F_CLONED
                ):
                    found.append(route)
        return found

    def has_route(
        self, family: int, destination: str, prefixlen: int, table: int = RT_TABLE_MAIN
    ) -> bool:
        """Whether the table has a route for exactly this prefix."""
        message = self._messages.rtmsg()
        message["family"] = family
        message["attrs"] = [("RTA_TABLE", table)]
        for route in self._netlink.dump(message, netlink.RTM_GETROUTE):
            if route.get_attr("RTA_TABLE") != table or route["dst_len"] != prefixlen:
                continue
            if prefixlen == 0 or route.get_attr("RTA_DST") == destination:
                return True
        return False

    # --- changing ---

    def move(self, index: int, namespace: int, name: str) -> None:
        """Move a link to another namespace and give it this name there, in one request.

        Not atomic where it fails: if the name is taken there, but the old one free, the kernel
        answers EEXIST and the link *is* there, down, under its old name. It loses its addresses
        and is down afterwards in any case.
        """
        self._set(index, [("IFLA_NET_NS_FD", namespace), ("IFLA_IFNAME", name)])

    def rename(self, index: int, name: str) -> None:
        """Rename a link; it must be down on kernels before 6.2."""
        self._set(index, [("IFLA_IFNAME", name)])

    def set_alias(self, index: int, alias: str) -> None:
        """Set the alias, empty for none."""
        self._set(index, [("IFLA_IFALIAS", alias)])

    def set_master(self, index: int, master: int) -> None:
        """Make a link a port of a bridge or another master."""
        self._set(index, [("IFLA_MASTER", master)])

    def delete(self, index: int) -> None:
        """Delete a link."""
        message = self._messages.ifinfmsg()
        message["index"] = index
        self._netlink.request(message, netlink.RTM_DELLINK)

    def set_up(self, index: int) -> None:
        """Bring a link up."""
        self._set(index, [], IFF_UP, IFF_UP)

    def set_down(self, index: int) -> None:
        """Bring a link down."""
        self._set(index, [], 0, IFF_UP)

    def _set(
        self, index: int, attributes: list[tuple[str, Any]], flags: int = 0, change: int = 0
    ) -> None:
        message = self._messages.ifinfmsg()
        message["index"] = index
        message["flags"] = flags
        message["change"] = change
        message["attrs"] = attributes
        self._netlink.request(message, netlink.RTM_NEWLINK)

    def add_again(self, index: int, address: Address, *, label: bool, lifetime: bool) -> None:
        """Give a link an address that some link had: with its label and lifetime, or without.

        That it has the address already is no failure.
        """
        message = self._messages.ifaddrmsg()
        message["index"] = index
        message["family"] = address.family
        message["prefixlen"] = address.prefixlen
        message["scope"] = address.scope
        flags = address.flags & _SETTABLE
        message["attrs"] = [("IFA_FLAGS", flags)] if flags else []
        for name, value in address.attributes.items():
            if name == "IFA_LABEL" and not label:
                continue
            if name == "IFA_CACHEINFO":
                if not lifetime or address.is_permanent:
                    continue
                value = {key: value[key] for key in ("ifa_preferred", "ifa_valid")}
            message["attrs"].append((name, value))
        try:
            self._netlink.request(
                message, netlink.RTM_NEWADDR, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
            )
        except LinkError as e:
            if e.errno != errno.EEXIST:
                raise

    def add_address(
        self, index: int, family: int, address: str, prefixlen: int, broadcast: str
    ) -> None:
        """Give a link an address; no broadcast address when that is empty."""
        message = self._messages.ifaddrmsg()
        message["index"] = index
        message["family"] = family
        message["prefixlen"] = prefixlen
        message["attrs"] = [("IFA_LOCAL", address), ("IFA_ADDRESS", address)]
        if broadcast:
            message["attrs"].append(("IFA_BROADCAST", broadcast))
        self._netlink.request(
            message, netlink.RTM_NEWADDR, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
        )

    def add_route(
        self,
        index: int,
        family: int,
        destination: str,
        prefixlen: int,
        *,
        gateway: str = "",
        scope: int = RT_SCOPE_UNIVERSE,
        table: int = RT_TABLE_MAIN,
        priority: int = 0,
        metrics: dict[str, int] | None = None,
    ) -> None:
        """Add a route through a link; priority 0 leaves it to the kernel."""
        message = self._messages.rtmsg()
        message["family"] = family
        message["dst_len"] = prefixlen
        # A table above 255 is told by the attribute alone.
        message["table"] = table if table < 256 else 0
        message["proto"] = RTPROT_BOOT
        message["scope"] = scope
        message["type"] = RTN_UNICAST
        message["attrs"] = [("RTA_OIF", index), ("RTA_TABLE", table)]
        if prefixlen:
            message["attrs"].append(("RTA_DST", destination))
        if gateway:
            message["attrs"].append(("RTA_GATEWAY", gateway))
        if priority:
            message["attrs"].append(("RTA_PRIORITY", priority))
        if metrics:
            nested = {"attrs": [(f"RTAX_{name}", value) for name, value in metrics.items()]}
            message["attrs"].append(("RTA_METRICS", nested))
        self._netlink.request(message, netlink.RTM_NEWROUTE, netlink.NLM_F_CREATE)

    def add_route_again(self, index: int, route: Any) -> None:
        """Add a route that `routes` returned, through this link; it may be there already."""
        message = self._messages.rtmsg()
        for field, _ in message.fields:
            message[field] = route[field]
        message["flags"] = 0
        message["attrs"] = []
        for name, value in route["attrs"]:
            if name in ("RTA_CACHEINFO", "RTA_EXPIRES"):
                continue
            message["attrs"].append((name, index if name == "RTA_OIF" else value))
        try:
            self._netlink.request(
                message, netlink.RTM_NEWROUTE, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
            )
        except LinkError as e:
            if e.errno != errno.EEXIST:
                raise
