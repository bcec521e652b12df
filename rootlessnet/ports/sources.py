"""Whether servers inside see the address of a client, or why not."""

from __future__ import annotations

from rootlessnet.instance.logfile import say
from rootlessnet.ports import inside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.kernel.namespaces import Pins
    from rootlessnet.ports.publication import Publication


class Sources:
    """Prepares the instance's network namespace, and warns once of what it lacks."""

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        self._problems: dict[str, str] | None = None
        self._warned: set[str] = set()

    def choose(self, publication: Publication) -> list[str]:
        """Keep the client's address where that can work; a warning where it cannot."""
        if self._problems is None:
            self._problems = inside.prepare(self._pins.user, self._pins.net)
        target = publication.target
        if not (target.keep4 or target.keep6):
            return []
        needed = [inside.LOCAL] if target.local else []
        if not target.local or publication.rule.proto == "udp":
            needed.append(inside.FILTER)
        problem = next((self._problems[what] for what in needed if what in self._problems), "")
        if not problem:
            return []
        target.keep4 = target.keep6 = False
        return [self._warning(problem)]

    def lost(self, publication: Publication, version: str, why: str) -> None:
        """It could not be kept on the way to this target."""
        setattr(publication.target, f"keep{version}", False)
        self._warning(why)

    def _warning(self, why: str) -> str:
        text = (
            f"the client's address is not kept ({why}): clients appear with an address of the "
            f"instance (-o source_ip=snat says that this is wanted)"
        )
        if text not in self._warned:
            self._warned.add(text)
            say(f"warning: {text}")
        return text
