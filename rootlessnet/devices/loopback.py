"""Network strategies of the OCI runtime: what a container with a network of its own starts with.

There is one, "loopback", and all it does is to bring lo up; to create, attach and detach it there
is nothing to do.
"""

from __future__ import annotations

from rootlessnet.devices.place import Place
from rootlessnet.errors import Error


class Loopback:
    """The strategy of a container that has only itself to talk to."""

    def create(self, place: Place) -> None:
        """Nothing: the kernel makes lo."""

    def initialize(self, place: Place) -> None:
        """Bring lo up; raises Error."""
        lo = place.links.get("lo")
        try:
            if lo is not None:
                place.links.set_up(lo.index)
        except OSError as e:
            raise Error("bring lo up") from e

    def attach(self, place: Place) -> None:
        """Nothing."""

    def detach(self, place: Place) -> None:
        """Nothing."""


def strategy(kind: str) -> Loopback:
    """The strategy of this name; raises Error."""
    if kind != "loopback":
        raise Error(f'unknown strategy type "{kind}"')
    return Loopback()
