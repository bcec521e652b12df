"""Whose address the server does not see although it should, and why.

    loopback      clients on 127.0.0.1 or ::1, of a container whose own network namespace is not
                  known, or cannot be used
    link-local    clients with an address that holds on one link only
    ipv4, ipv6    clients of a family that does not reach the server, or not with their address

Much of it can be told from a rule and where it leads, the rest by the first such client. Whoever
makes a rule whose clients are all concerned is warned at once. What may happen only, a client on
loopback of a rule for all addresses, is worth a word when it does, and then in the log.
"""

from __future__ import annotations

from rootlessnet.ports.target import PRESERVE, is_link_local, is_loopback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.ports.rules import Rule
    from rootlessnet.ports.target import Target

LOOPBACK = "loopback"
LINK_LOCAL = "link-local"
IPV4 = "ipv4"
IPV6 = "ipv6"

NO_WAY_BACK = "the server has no way back to it"
WANTED = "(-o source_ip=snat says that this is wanted)"

_CLIENTS = {
    LOOPBACK: "clients on loopback",
    LINK_LOCAL: "clients with a link-local address",
    IPV4: "IPv4 clients",
    IPV6: "IPv6 clients",
}
_WHY = {
    LOOPBACK: "loopback addresses do not leave their machine",
    LINK_LOCAL: "it means nothing in another network",
    IPV4: "the server is reached by IPv6 only",
    IPV6: "the server is reached by IPv4 only",
}
_EVERYWHERE = ("", "0.0.0.0", "::")


class Clients:
    """Those of one rule, as far as they are known. lost has those families whose addresses are not
    carried any more, and why; the rest of it is in the rule and its target. awaits_ipv6 is true
    while the instance may still get its address."""

    __slots__ = ("_rule", "_seen", "_target", "_told", "awaits_ipv6", "is_wanted", "lost")

    def __init__(self, rule: Rule, target: Target, how: str) -> None:
        self._rule = rule
        self._target = target
        self.is_wanted = how == PRESERVE
        self.awaits_ipv6 = False
        self._told: set[str] = set()
        self.begin()

    def begin(self) -> None:
        """The target is a new one, so nothing has been found out about it."""
        self._seen: set[str] = set()
        self.lost: dict[str, str] = {}

    def lose(self, why: str) -> bool:
        """The addresses of none are carried; whether that was not said yet."""
        self.lost = dict.fromkeys(self._families(), why)
        is_news = why not in self._told
        self._told.add(why)
        return is_news

    def forget_seen(self) -> None:
        """Another server listens, maybe on other addresses."""
        self._seen.clear()

    def exceptions(self) -> dict[str, str]:
        """The kinds of clients whose address is not kept though it should be, and why."""
        if not self.is_wanted:
            return {}
        if self.lost.keys() >= set(self._families()):
            return dict(self.lost)
        kinds = self._foreseen() | self._seen
        return {kind: _WHY[kind] for kind in _WHY if kind in kinds} | self.lost

    def foreseen_warnings(self) -> list[str]:
        """For those who made the rule: what concerns every client of it and was not said yet."""
        if not self.is_wanted:
            return []
        texts = [self._tell(kind) for kind in self._foreseen() if self._is_every(kind)]
        return [text for text in texts if text]

    def seen(self, kind: str) -> str:
        """There was such a client: a warning, once."""
        if not self.is_wanted or kind not in _WHY:
            return ""
        self._seen.add(kind)
        return self._tell(kind)

    def _tell(self, kind: str) -> str:
        if kind in self._told:
            return ""
        self._told.add(kind)
        return (
            f"{self._rule}: the address of {_CLIENTS[kind]} is not kept ({_WHY[kind]}): they "
            f"appear with an address of the instance {WANTED}"
        )

    def _families(self) -> tuple[str, ...]:
        """Those of its clients."""
        return {4: (IPV4,), 6: (IPV6,)}.get(self._rule.version, (IPV4, IPV6))

    def _foreseen(self) -> set[str]:
        rule, target = self._rule, self._target
        if not (target.v4 or target.v6):
            return set()  # it leads nowhere
        if is_loopback(rule.host_ip) and not target.keeps_loopback:
            return {LOOPBACK}
        found = set()
        if rule.version != 4 and not target.v6 and not self.awaits_ipv6:
            found.add(IPV6)
        if rule.version != 6 and not target.v4:
            found.add(IPV4)
        if rule.host_ip in _EVERYWHERE and not target.keeps_loopback:
            found.add(LOOPBACK)
        return found

    def _is_every(self, kind: str) -> bool:
        """Whether all clients of the rule are of this kind."""
        if kind == LOOPBACK:
            return is_loopback(self._rule.host_ip)
        return (kind, self._rule.version) in ((IPV4, 4), (IPV6, 6))


def kind_of(client: str, version: str, target: Target) -> str:
    """What a client is whose address should be kept but is not, on the way by this version; ""
    where it is not wanted, or known for all of its family."""
    own = "6" if ":" in client else "4"
    if not (target.keep6 if own == "6" else target.keep4):
        return ""
    if version != own:
        return IPV6 if own == "6" else IPV4
    if is_link_local(client):
        return LINK_LOCAL
    return LOOPBACK if is_loopback(client) and not target.local else ""
