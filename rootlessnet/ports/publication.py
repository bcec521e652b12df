"""A rule that is in force: its sockets at the host, its target, and which of its ports listen."""

from __future__ import annotations

from rootlessnet.ports import listeners
from rootlessnet.ports.clients import Clients

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Any

    from rootlessnet.ports.rules import Rule
    from rootlessnet.ports.target import Target


class Publication:
    """number names it to the workers; numbers are its listeners', in the order of its ports. own is
    true when it leads to the instance itself, whose addresses may change; by_slirp when slirp4netns
    forwards it, and has its sockets."""

    def __init__(
        self,
        number: int,
        owner: str,
        rule: Rule,
        target: Target,
        *,
        own: bool,
        by_slirp: bool,
        source_ip: str,
    ) -> None:
        self.number = number
        self.owner = owner
        self.rule = rule
        self.target = target
        self.own = own
        self.by_slirp = by_slirp
        self.source_ip = source_ip
        self.clients = Clients(rule, target, source_ip)
        self.asked = target.as_dict()
        """The target as it was asked for, before anything was found out about it."""
        self.bound: listeners.Bound | None = None
        self.first = 0
        self.open = bytearray(rule.count)
        self.forwards: list[int] = []
        """slirp4netns' numbers for them."""
        self.exposed = False
        """Whether the host of this virtual machine was told."""

    @property
    def is_gated(self) -> bool:
        """Whether it is known who listens inside."""
        return self.rule.proto == "tcp" and (self.target.local or bool(self.target.netns))

    @property
    def sockets(self) -> list[_socket.socket]:
        return self.bound.sockets if self.bound else []

    def number_of(self, index: int) -> int:
        """The listener of a port."""
        return self.first + index

    def has_port(self, port: int) -> bool:
        """Whether one of its ports leads to this port inside."""
        return self.rule.port <= port < self.rule.port + self.rule.count

    def set_open(self, index: int, wanted: bool) -> bool:
        """Let the port listen or not; whether that is a change. Raises OSError."""
        if bool(self.open[index]) == wanted or not self.sockets:
            return False
        if wanted:
            listeners.listen(self.sockets[index])
            self.clients.forget_seen()
        else:
            listeners.shut(self.sockets[index])
        self.open[index] = wanted
        return True

    def as_record(self) -> dict[str, Any]:
        """For rules.json: rootlessnet.ports.files."""
        return {
            "owner": self.owner,
            "rule": self.rule,
            "target": None if self.own else self.asked,
            "source_ip": self.source_ip,
        }

    def close(self) -> None:
        """Give the ports back."""
        if self.bound:
            self.bound.close()
            self.bound = None
