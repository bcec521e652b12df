"""Lets a port of the host listen while something inside does.

So a client is refused by the kernel when nobody would answer it, instead of being accepted and
reset. That a listener inside has ended the kernel tells (rootlessnet.ports.diag); that a new one is
there it does not, so as long as a port is shut it is looked after: often at first, and after
somebody has entered, more seldom when nothing comes of it. While all ports are open nothing is
done.

Behind a bridge this needs the path of the container's namespace; without it the port always
listens.
"""

from __future__ import annotations

import select
import time
from functools import partial

from rootlessnet.instance.logfile import say
from rootlessnet.ports.diag import Diag, Ends

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rootlessnet.ports.processes import Watched
    from rootlessnet.ports.publication import Publication

_FAST, _SLOW, _IDLE = 0.002, 0.01, 0.05
_FAST_SECONDS, _SLOW_SECONDS = 10.0, 120.0
_SHARE = 50
"""Of the time at most one part in so many goes into looking."""
_LET_GO_SECONDS = 2.0
_MANY = 12
"""Ports from which one look at all listeners is cheaper than one at each."""


class _Place:
    """One network namespace: `where` is a target's place."""

    def __init__(self, where: str, fetch: Callable[[str], int]) -> None:
        self.diag = Diag(fetch(where))
        self.ends = Ends(fetch(where))

    def close(self) -> None:
        self.diag.close()
        self.ends.close()


class Gate:
    """fetch gives a sock_diag socket of a target's place ("" for the instance); changed is told
    which ports of a publication now listen and which do not any more. is_there says whether a place
    still is, and gone is told which is not."""

    def __init__(
        self,
        fetch: Callable[[str], int],
        changed: Callable[[list[tuple[Publication, int]], list[tuple[Publication, int]]], None],
        is_there: Callable[[str], bool],
        gone: Callable[[str], None],
    ) -> None:
        self._fetch = fetch
        self._changed = changed
        self._is_there = is_there
        self._tell_gone = gone
        self._places: dict[str, _Place | None] = {}
        self._since = time.monotonic()
        self._let_go_at = 0.0
        self._gated: list[Publication] = []
        self._gone: set[str] = set()
        self._shut: list[Publication] = []
        self.due = 0.0

    def watched(self) -> Iterator[Watched]:
        """What is to be polled."""
        for where, place in self._places.items():
            if place:
                yield place.ends.fd, select.POLLIN, partial(self._ended, where, place)

    def stir(self) -> None:
        """Something may begin to listen soon."""
        self._since = time.monotonic()
        if self._shut:
            self.due = min(self.due or self._since, self._since + _FAST)

    def update(self, publications: Iterable[Publication]) -> None:
        """Look at all rules, as some are new, gone, or lead elsewhere."""
        gated = [
            publication
            for publication in publications
            if publication.is_gated and publication.sockets
        ]
        wanted = {publication.target.place for publication in gated}
        # Who sends datagrams on may be what keeps a container's namespace.
        wanted |= {place for each in publications if (place := each.target.place)}
        for where in set(self._places) - wanted:
            gone = self._places.pop(where)
            self._gone.discard(where)
            if gone:
                gone.close()
        for where in wanted - {where for where, place in self._places.items() if place}:
            if where in self._gone:
                continue
            try:
                self._places[where] = _Place(where, self._fetch)
            except OSError as error:
                say(f"see who listens in {where or 'the instance'}: {error.strerror or error}")
                self._places[where] = None
        self._gated = gated
        self._look(
            [
                (publication, n)
                for publication in gated
                for n in range(len(publication.open))
                if publication.open[n]
            ]
        )
        self._since = time.monotonic()
        self.tick()

    def forget(self) -> None:
        """The sockets are of a helper that is gone: begin again with `update`."""
        for place in self._places.values():
            if place:
                place.close()
        self._places.clear()

    def _ended(self, where: str, place: _Place) -> None:
        """Listeners inside have gone."""
        if self._places.get(where) is not place:
            return
        ports = place.ends.read()
        if ports:
            self.recheck(lambda publication: publication.target.place == where, ports)

    def recheck(self, which: Callable[[Publication], bool], ports: Iterable[int]) -> None:
        """Look again at who leads to these ports."""
        chosen = [
            (publication, port - publication.rule.port)
            for publication in self._gated
            if which(publication)
            for port in ports
            if publication.has_port(port)
        ]
        if chosen:
            self._look(chosen)
            self.stir()

    def tick(self) -> None:
        """Look whether something listens by now on what is shut."""
        began = time.monotonic()
        self._let_go()
        self._shut = [publication for publication in self._gated if not all(publication.open)]
        self._look(self._candidates())
        self._schedule(time.monotonic() - began)

    def _let_go(self) -> None:
        """Our sockets must not be what keeps a container's namespace: where its path has gone, they
        are closed, and the ports are shut for good."""
        now = time.monotonic()
        if now < self._let_go_at:
            return
        self._let_go_at = now + _LET_GO_SECONDS
        for where, place in self._places.items():
            if where and where not in self._gone and not self._is_there(where):
                if place:
                    place.close()
                self._places[where] = None
                self._gone.add(where)
                self._tell_gone(where)
                self._look(
                    [
                        (publication, index)
                        for publication in self._gated
                        if publication.target.place == where
                        for index in range(publication.rule.count)
                    ]
                )

    def _candidates(self) -> list[tuple[Publication, int]]:
        """The ports that are shut; of many only those on which something listens somewhere."""
        if sum(publication.rule.count for publication in self._shut) <= _MANY:
            return [
                (publication, index)
                for publication in self._shut
                for index in range(publication.rule.count)
                if not publication.open[index]
            ]
        found = []
        ports: dict[str, set[int]] = {}
        for publication in self._shut:
            where = publication.target.place
            place = self._places.get(where)
            if place is None:
                found += [(publication, index) for index in range(publication.rule.count)]
                continue
            if where not in ports:
                try:
                    ports[where] = place.diag.listening()
                except OSError:
                    ports[where] = set()
            first = publication.rule.port
            found += [
                (publication, port - first)
                for port in ports[where]
                if publication.has_port(port) and not publication.open[port - first]
            ]
        return found

    def _schedule(self, cost: float) -> None:
        self._shut = [publication for publication in self._gated if not all(publication.open)]
        now = time.monotonic()
        shut = [
            publication for publication in self._shut if publication.target.place not in self._gone
        ]
        if not shut:
            watched = any(where and where not in self._gone for where in self._places)
            self.due = now + _LET_GO_SECONDS if watched else 0.0
            return
        age = now - self._since
        pause = _FAST if age < _FAST_SECONDS else _SLOW if age < _SLOW_SECONDS else _IDLE
        self.due = now + max(pause, cost * _SHARE)

    def _look(self, ports: list[tuple[Publication, int]]) -> None:
        opened: list[tuple[Publication, int]] = []
        shut: list[tuple[Publication, int]] = []
        for publication, index in ports:
            try:
                wanted = self._listens(publication, index)
                if publication.set_open(index, wanted):
                    (opened if wanted else shut).append((publication, index))
            except OSError as error:
                say(f"let {publication.rule} listen: {error.strerror}")
        if opened or shut:
            self._changed(opened, shut)
        self._shut = [publication for publication in self._gated if not all(publication.open)]

    def _listens(self, publication: Publication, index: int) -> bool:
        addresses = [each for each in (publication.target.v4, publication.target.v6) if each]
        if not addresses:
            return False
        place = self._places.get(publication.target.place)
        if place is None:
            return publication.target.place not in self._gone
        port = publication.rule.port + index
        return any(place.diag.is_listening(address, port) for address in addresses)
