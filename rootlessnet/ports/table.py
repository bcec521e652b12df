"""The published ports of an instance: those that are in force, and those that wait to be.

A rule that is added has its ports, then its record, and then its connections: so whoever is told
that it is published finds it again after any end of the forwarder. What an earlier forwarder had is
read from the record, and taken again as soon as its ports can be had.
"""

from __future__ import annotations

import time

from rootlessnet.errors import Error, reason
from rootlessnet.instance.logfile import say
from rootlessnet.kernel.trace import trace
from rootlessnet.ports import files, listeners, machine, rules, slirp
from rootlessnet.ports.gate import Gate
from rootlessnet.ports.owners import Owners
from rootlessnet.ports.processes import Processes
from rootlessnet.ports.publication import Publication
from rootlessnet.ports.sources import Sources
from rootlessnet.ports.target import SNAT, from_dict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from rootlessnet.instance.paths import Instance
    from rootlessnet.kernel import inotify
    from rootlessnet.kernel.namespaces import Pins
    from rootlessnet.ports.processes import Watched
    from rootlessnet.ports.rules import Rule
    from rootlessnet.ports.running import Running
    from rootlessnet.ports.target import Target

_RETRY = 0.25
_RETRY_FIRST = 0.02


class Table:
    """All rules. `watched` is to be polled; when `due` has come, by the monotonic clock, `tick` is
    to be called."""

    def __init__(
        self, instance: Instance, running: Running, pins: Pins, watcher: inotify.Watcher
    ) -> None:
        self._instance = instance
        self._running = running
        self._publications: dict[int, Publication] = {}
        self._next_number = 1
        self._next_listener = 1
        self._pending: list[dict[str, Any]] = []
        self._retry_at = 0.0
        self._owners = Owners(instance, watcher, self._owner_ended)
        self._sources = Sources(pins)
        self._processes = Processes(instance, pins, self._heard)
        self._gate = Gate(
            self._processes.diag, self._processes.gate, self._processes.is_there, self._place_gone
        )
        self._slirp = slirp.Api(instance) if running.port_handler == "slirp4netns" else None

    # -- what it has -------------------------------------------------------------------------------

    def is_empty(self) -> bool:
        """Whether there is no rule."""
        return not (self._publications or self._pending)

    def is_busy(self) -> bool:
        """Whether connections are open, also of rules that are gone."""
        return self._processes.is_busy()

    def __iter__(self) -> Iterator[tuple[str, Rule, str]]:
        """(owner, rule, name of the target)."""
        for publication in self._publications.values():
            yield publication.owner, publication.rule, publication.target.name
        for record in self._pending:
            target = record["target"]
            name = target.get("name", "") if target else self._running.own.name
            yield record["owner"], record["rule"], name

    def connections(self) -> Iterator[tuple[Rule, list[int]]]:
        """(rule, open connections of each of its ports) where they are known."""
        for publication in self._publications.values():
            found = self._processes.connections(publication)
            if found is not None:
                yield publication.rule, found

    def lost(self) -> Iterator[tuple[Rule, dict[str, str]]]:
        """(rule, whose address is not kept though it should be, and why)."""
        for publication in self._publications.values():
            by_slirp = publication.by_slirp
            yield publication.rule, slirp.LOST if by_slirp else publication.clients.exceptions()

    # -- changes -----------------------------------------------------------------------------------

    def add(
        self, owner: str, asked: list[Rule], target: dict[str, Any] | None, source_ip: str
    ) -> tuple[list[Rule], list[str]]:
        """Publish all rules, or none; with their ports, and what there is to warn of. Raises Error
        or OSError."""
        self._drop_dead()
        rules.refuse_privileged(asked, "publish")
        for number, rule in enumerate(asked):
            taken = [(owner, other) for owner, other, _ in self]
            taken += [(owner, other) for other in asked[:number]]
            found = rules.conflict([rule], taken)
            if found:
                raise Error(
                    f"publish {rule}: it is published already: {found[1]}",
                    hint="see them all: rootlessnet port ls",
                )
        made: list[Publication] = []
        try:
            for rule in asked:
                record = {"owner": owner, "rule": rule, "target": target, "source_ip": source_ip}
                made.append(self._make(record))
            trace("ports:bound")
            self._owners.watch(owner)
            if not self._owners.lives(owner):
                raise Error(f"publish for {owner}: it has ended")
            self._record(made)
            trace("ports:recorded")
        except BaseException:
            for publication in made:
                self._unmake(publication)
            raise
        try:
            warnings = self._put_in_force(made)
            trace("ports:forwarding")
        except BaseException:
            self._withdraw(made)
            self._record_or_say()
            raise
        warnings += machine.announce(made)
        return [publication.rule for publication in made], warnings

    def remove(self, owner: str, which: list[Rule] | None) -> int:
        """Withdraw rules of an owner, all or those; how many."""
        gone = [
            publication
            for publication in self._publications.values()
            if publication.owner == owner and (which is None or publication.rule in which)
        ]
        kept = [
            record
            for record in self._pending
            if record["owner"] != owner or (which is not None and record["rule"] not in which)
        ]
        count = len(gone) + len(self._pending) - len(kept)
        self._pending = kept
        self._withdraw(gone)
        if which is None:
            self._owners.forget(owner)
        if count:
            self._gate.update(self._publications.values())
            self._record_or_say()
        return count

    def retarget(self, owner: str, target: Target) -> tuple[int, list[str]]:
        """Let an owner's rules lead elsewhere; how many, and what there is to warn of. Raises Error
        or OSError."""
        found = [one for one in self._publications.values() if one.owner == owner]
        if any(one.by_slirp for one in found):
            raise Error("port_handler=slirp4netns cannot lead a port elsewhere")
        warnings: list[str] = []
        for publication in found:
            publication.own = False
            publication.asked = target.as_dict()
            # Networks are set up anew, perhaps because everything was flushed.
            again = bool(publication.target.v4 or publication.target.v6)
            publication.target.update(target)
            publication.clients.begin()
            if publication.source_ip == SNAT:
                publication.target.keep4 = publication.target.keep6 = False
            warnings += self._sources.choose(publication, again=again)
            self._processes.retarget(publication)
            self._open_if_ungated(publication)
        for record in self._pending:
            if record["owner"] == owner:
                record["target"] = target.as_dict()
        self._gate.update(self._publications.values())
        self._record()
        return len(found), list(dict.fromkeys(warnings))

    def recover(self) -> None:
        """Take over what an earlier forwarder had."""
        self._pending = files.read(self._instance)
        self._retry(first=True)

    def own_has_changed(self) -> None:
        """The instance itself has other addresses."""
        for publication in self._publications.values():
            if publication.own:
                publication.target.v4 = self._running.own.v4
                publication.target.v6 = self._running.own.v6
                self._processes.retarget(publication)
        self._gate.update(self._publications.values())

    def driver_has_changed(self) -> None:
        """Another slirp4netns has none of the forwards."""
        if self._slirp is None:
            return
        mine = [one for one in self._publications.values() if one.by_slirp]
        try:
            failed = self._slirp.reconcile(mine, self._running.own.v4)
        except (Error, OSError) as error:
            say(f"publish again after the driver's restart: {reason(error)}")
            return
        for publication in failed:
            del self._publications[publication.number]
            self._pending.append(_waiting(publication))
            self._retry_at = time.monotonic() + _RETRY

    # -- steps of them -----------------------------------------------------------------------------

    def _make(self, record: dict[str, Any], *, adopt: bool = False) -> Publication:
        """Take a rule's ports. Raises Error, and has taken none then. adopt: those of slirp4netns
        are left for it to be reconciled with."""
        own = record["target"] is None
        target = self._running.own.copy() if own else from_dict(record["target"])
        rule = record["rule"]
        source_ip = record.get("source_ip") or self._running.source_ip
        made = Publication(
            self._next_number,
            record["owner"],
            rule,
            target,
            own=own,
            by_slirp=own and self._slirp is not None,
            source_ip=source_ip,
        )
        if not (self._slirp and made.by_slirp):
            made.bound = listeners.Bound(rule)
            if not rule.host_port and rule.count == 1:
                rule.host_port = made.bound.port()
        elif not adopt:
            self._slirp.add(made, self._running.own.v4)
        made.clients.awaits_ipv6 = own and self._running.due > 0
        if source_ip == SNAT:
            target.keep4 = target.keep6 = False
        made.first = self._next_listener
        self._next_number += 1
        self._next_listener += rule.count
        return made

    def _unmake(self, publication: Publication) -> None:
        """Undo `_make`."""
        if self._slirp and publication.by_slirp:
            try:
                self._slirp.remove(publication)
            except (Error, OSError) as error:
                say(f"withdraw {publication.rule}: {reason(error)}")
        publication.close()

    def _put_in_force(self, made: list[Publication]) -> list[str]:
        """Start forwarding; what there is to warn of."""
        if not all(publication.by_slirp for publication in made):
            self._start_processes()
            self._sources.try_again()
        warnings = []
        for publication in made:
            self._publications[publication.number] = publication
            if not publication.by_slirp:
                warnings += self._sources.choose(publication)
                self._processes.publish(publication)
                self._open_if_ungated(publication)
        self._gate.update(self._publications.values())
        return list(dict.fromkeys(warnings))

    def _withdraw(self, gone: list[Publication]) -> None:
        """Undo `_put_in_force` and `_make`."""
        for publication in gone:
            self._publications.pop(publication.number, None)
            self._processes.withdraw(publication)
            # A worker has the socket too, for a moment; it is not to accept anybody.
            for index in range(publication.rule.count):
                try:
                    publication.set_open(index, False)
                except OSError:
                    pass
            machine.withdraw([publication])
            self._unmake(publication)

    def _open_if_ungated(self, publication: Publication) -> None:
        """Let it listen for good, where nobody knows who listens inside."""
        if publication.rule.proto == "tcp" and not publication.is_gated:
            ports = range(publication.rule.count)
            opened = [(publication, n) for n in ports if publication.set_open(n, True)]
            self._processes.gate(opened, [])

    def _record(self, made: list[Publication] | None = None) -> None:
        """Write down what is in force, with what is about to be, and what waits. Raises OSError."""
        known = [*self._publications.values(), *(made or ())]
        files.write(self._instance, [one.as_record() for one in known] + self._pending)

    def _record_or_say(self) -> None:
        try:
            self._record()
        except OSError as error:
            say(f"record the ports: {reason(error)}")

    # -- what happens ------------------------------------------------------------------------------

    def watched(self) -> Iterator[Watched]:
        """What is to be polled."""
        yield from self._processes.watched()
        yield from self._owners.watched()
        yield from self._gate.watched()

    @property
    def due(self) -> float:
        """When to call `tick`; 0 for never."""
        moments = (self._processes.due, self._gate.due, self._retry_at)
        return min((when for when in moments if when), default=0.0)

    def tick(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        if self._processes.due and now >= self._processes.due:
            self._replace_processes()
        if self._gate.due and now >= self._gate.due:
            self._gate.tick()
        if self._retry_at and now >= self._retry_at:
            self._retry()

    def _retry(self, *, first: bool = False) -> None:
        """Rules of an earlier forwarder, whose ports somebody else may have at the moment."""
        self._retry_at = 0.0
        left, made = [], []
        for record in self._pending:
            if not self._owners.lives(record["owner"]):
                continue
            try:
                made.append(self._make(record, adopt=first))
            except (Error, OSError, ValueError) as error:
                if not record.get("told"):
                    say(f"not published again yet: {reason(error)}")
                left.append({**record, "told": not first})
        changed = len(left) != len(self._pending) or made
        self._pending = left
        try:
            for publication in made:
                self._owners.watch(publication.owner)
            if made:
                trace("ports:again")
                self._put_in_force(made)
                say(f"published again: {', '.join(str(one.rule) for one in made[:20])}")
        except Exception as error:
            self._withdraw(made)
            left += map(_waiting, made)
            self._retry_at = time.monotonic() + _RETRY
            if not isinstance(error, (Error, OSError)):
                raise
            say(f"not published again yet: {reason(error)}")
        if left:
            self._retry_at = time.monotonic() + (_RETRY_FIRST if first else _RETRY)
        if first:
            self.driver_has_changed()
        if changed:
            self._record_or_say()

    def file_changed(self, number: int) -> None:
        """The watcher tells this number."""
        self._owners.changed(number)

    def stir(self) -> None:
        """Something may begin to listen soon."""
        self._gate.stir()

    def _owner_ended(self, owner: str) -> None:
        if not owner:
            self._drop_dead()
        elif not self._owners.lives(owner):
            self.remove(owner, None)

    def _drop_dead(self) -> None:
        """Withdraw what belongs to nobody any more."""
        for owner in {owner for owner, _, _ in self}:
            if not self._owners.lives(owner):
                self.remove(owner, None)

    def _start_processes(self) -> bool:
        """What copies, once there is something to copy; whether there are others now."""
        workers, helper = self._processes.start()
        if helper:
            self._gate.forget()
        for number in workers:
            for publication in self._publications.values():
                self._processes.publish(publication, number)
        return helper

    def _replace_processes(self) -> None:
        try:
            if self._start_processes():
                self._gate.update(self._publications.values())
        except OSError as error:
            say(f"start the processes that forward: {reason(error)}")

    def _heard(self, message: list[Any]) -> None:
        what, number, *rest = message
        if what == "stuck":
            self._processes.replace_helper()
            return
        publication = self._publications.get(number)
        if publication is None:
            return
        if what == "refused" and publication.is_gated:
            self._gate.recheck(lambda one: one is publication, rest)
        elif what == "unkept":
            self._sources.unkept(publication, *rest)
        elif what == "lost":
            version, why = rest
            self._sources.lost(publication, version, why)
            self._processes.retarget(publication)

    def _place_gone(self, place: str) -> None:
        """The network namespace of a container is not there any more."""
        for publication in self._publications.values():
            if publication.target.place == place:
                self._processes.leave(publication)

    def end(self) -> None:
        """Everything is left as it is, but for those who have to be told."""
        machine.withdraw(list(self._publications.values()))
        self._processes.end()


def _waiting(publication: Publication) -> dict[str, Any]:
    """Its record, for another attempt; that it waits has been told."""
    return {**publication.as_record(), "told": True}
