"""Whether servers inside see the address of a client, or why not."""

from __future__ import annotations

from rootlessnet.instance.logfile import say
from rootlessnet.ports import inside
from rootlessnet.ports.clients import NO_WAY_BACK, WANTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.kernel.namespaces import Pins
    from rootlessnet.ports.publication import Publication


class Sources:
    """Prepares the instance's network namespace for the rules that need it, and warns once of what
    it lacks."""

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        self._problems: dict[str, str] = {}
        """Of what was prepared; "" when all is well."""
        self._warned: set[str] = set()

    def choose(self, publication: Publication, *, again: bool = False) -> list[str]:
        """Keep the client's address where that can work; a warning where it cannot. again: somebody
        may have removed what was prepared."""
        target, clients = publication.target, publication.clients
        if not clients.is_wanted:
            return []
        if not (target.keep4 or target.keep6):
            return self._none_kept(publication, NO_WAY_BACK)
        needed = [inside.ROUTES]
        if not target.local:
            needed.append(inside.BRIDGE)
        elif publication.rule.proto == "udp":
            needed.append(inside.UDP)
        missing = needed if again else [what for what in needed if what not in self._problems]
        if missing:
            found = inside.prepare(self._pins.user, self._pins.net, missing)
            self._problems.update({what: found.get(what, "") for what in missing})
        problem = next((self._problems[what] for what in needed if self._problems[what]), "")
        if problem:
            target.keep4 = target.keep6 = False
            return self._none_kept(publication, problem)
        warnings = clients.foreseen_warnings()
        for text in warnings:
            say(f"warning: {text}")
        return warnings

    def try_again(self) -> None:
        """What failed is worth another attempt."""
        self._problems = {what: why for what, why in self._problems.items() if not why}

    def lost(self, publication: Publication, version: str, why: str) -> None:
        """It could not be kept on the way to this target."""
        setattr(publication.target, f"keep{version}", False)
        publication.clients.lost[f"ipv{version}"] = why
        self._warning(why)

    def unkept(self, publication: Publication, kind: str) -> None:
        """There was a client whose kind is seen with another address."""
        text = publication.clients.seen(kind)
        if text:
            say(f"warning: {text}")

    def _none_kept(self, publication: Publication, why: str) -> list[str]:
        return [self._warning(why)] if publication.clients.lose(why) else []

    def _warning(self, why: str) -> str:
        text = (
            f"the client's address is not kept ({why}): clients appear with an address of the "
            f"instance {WANTED}"
        )
        if text not in self._warned:
            self._warned.add(text)
            say(f"warning: {text}")
        return text
