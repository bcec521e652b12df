"""Where a rule leads to: the addresses inside, and how a client's address is carried there."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PRESERVE = "preserve"
SNAT = "snat"

_MAPPED = "::ffff:"


class Target:
    """Addresses by family ("" where there is none).

    local: they are the network namespace's own, not those of a container behind a bridge. keep4 and
    keep6: whether the server is to see the client's own address. name is what people are shown.
    netns is the path, inside the instance, of the container's network namespace, and inode is its
    inode number, where they are known: then the host's port listens only while something in it
    does, and clients on loopback are seen as such. number is the publication's; strikes counts the
    connections in a row that were answered only without the client's address; told has the kinds of
    clients of which the forwarder knows that their address is not kept (rootlessnet.ports.clients).
    """

    __slots__ = (
        "inode",
        "keep4",
        "keep6",
        "local",
        "name",
        "netns",
        "number",
        "strikes",
        "told",
        "v4",
        "v6",
    )
    _FIELDS = ("inode", "keep4", "keep6", "local", "name", "netns", "v4", "v6")

    def __init__(
        self,
        v4: str,
        v6: str,
        *,
        local: bool,
        name: str = "",
        netns: str = "",
        inode: int = 0,
    ) -> None:
        self.v4 = v4
        self.v6 = v6
        self.local = local
        self.keep4 = self.keep6 = True
        self.name = name or v4 or v6
        self.netns = netns
        self.inode = inode
        self.number = 0
        self.strikes = 0
        self.told: set[str] = set()

    def copy(self) -> Target:
        """Another one with the same addresses."""
        return Target(
            self.v4,
            self.v6,
            local=self.local,
            name=self.name,
            netns=self.netns,
            inode=self.inode,
        )

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._FIELDS}

    def update(self, other: Target) -> None:
        """Become the other one; whoever holds this object follows."""
        for name in self._FIELDS:
            setattr(self, name, getattr(other, name))
        self.told.clear()

    def ways(self, client: str) -> list[tuple[str, str, bool]]:
        """(version, address inside, keep the client's address) in the order to be tried: the
        client's own family first."""
        same = "6" if ":" in client else "4"
        found = []
        for version in (same, "4" if same == "6" else "6"):
            address = self.v4 if version == "4" else self.v6
            if address:
                keep = self.keep4 if version == "4" else self.keep6
                found.append(
                    (version, address, keep and version == same and self._can_keep(client))
                )
        return found

    def _can_keep(self, client: str) -> bool:
        """An address of one link means nothing in another network."""
        return not is_link_local(client) and (self.keeps_loopback or not is_loopback(client))

    @property
    def keeps_loopback(self) -> bool:
        """Whether clients on loopback can be seen as such."""
        return self.local or bool(self.netns and self.inode)

    @property
    def place(self) -> str:
        """INODE PATH of the container's network namespace; "" where it is not known, or ours."""
        return f"{self.inode} {self.netns}" if self.netns and not self.local else ""

    def is_beside(self, client: str) -> bool:
        """Whether this client is to be shown by a socket beside the server, in the container's own
        namespace: loopback addresses do not leave the namespace that they are in."""
        return not self.local and self.keeps_loopback and is_loopback(client)

    def kind(self, proto: str, version: str, *, beside: bool = False) -> str:
        """Of socket: rootlessnet.ports.inside.make, rootlessnet.ports.pool."""
        kind = ("t" if proto == "tcp" else "u") + version + ("m" if self.local else "-")
        return f"{kind} {self.place}" if beside else kind


def from_dict(fields: dict[str, Any]) -> Target:
    """What `as_dict` gave. Raises ValueError for anything else."""
    try:
        made = Target(
            str(fields["v4"]),
            str(fields["v6"]),
            local=bool(fields["local"]),
            name=str(fields["name"]),
            netns=str(fields.get("netns", "")),
            inode=int(fields.get("inode", 0)),
        )
        if made.netns and (made.netns[0] != "/" or "\0" in made.netns):
            raise ValueError(f"netns {made.netns!r} is no absolute path")
        made.keep4, made.keep6 = bool(fields.get("keep4", True)), bool(fields.get("keep6", True))
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a target: {fields!r}") from error
    return made


def unmapped(address: str) -> str:
    """An IPv4 address as such, also when it comes from a socket for both families."""
    return address[len(_MAPPED) :] if address.startswith(_MAPPED) else address


def is_link_local(address: str) -> bool:
    """Of IPv6; the only addresses that cannot be bound to without naming a link."""
    return address.startswith(("fe8", "fe9", "fea", "feb"))


def is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"
