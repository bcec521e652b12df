"""Waits for something to happen to an instance, and tells what.

Nothing is looked at while nothing happens: there is no timer. What wakes it is

    a change in the directories of the instance     state, leases, containers, ports, resolv.conf
    lease.fifo opened, or closed by a writer        a process that uses the instance comes or goes
    the end of the supervisor                       which leaves no trace in any file

Then it waits until all has been quiet for a moment, and compares what it finds with what it found
the last time (rootlessnet.watch.changes). Watches are set before the look, so that nothing falls
between.
The look itself replaces a supervisor that was killed, as every command does.
"""

from __future__ import annotations

import errno
import os
import select
import time

from rootlessnet.errors import Error, reason, warn
from rootlessnet.instance import lease, mounts, resolvconf, state
from rootlessnet.kernel import inotify, process
from rootlessnet.ports import view
from rootlessnet.watch import changes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from rootlessnet.instance.paths import Instance
    from rootlessnet.watch.changes import Event

QUIET = 0.05
"""Seconds without a change after which it looks."""
LONGEST = 0.25
"""Seconds after which it looks in any case."""

_ENTRIES = (
    inotify.IN_CREATE
    | inotify.IN_DELETE
    | inotify.IN_MOVED_TO
    | inotify.IN_MOVED_FROM
    | inotify.IN_DELETE_SELF
    | inotify.IN_ONLYDIR
)
_DIRECTORIES = (state.LEASES, "containers", "ports", state.ROOT)


class Stream:
    """The events of one instance, over its ends and new beginnings."""

    def __init__(self, instance: Instance, output: int) -> None:
        """output is where they are written to: its end is noticed while nothing happens too.
        Raises Error."""
        self._instance = instance
        self._output = output
        self._watcher = inotify.Watcher()
        self._base = -1
        self._numbers: dict[int, str] = {}
        self._supervisor = -1
        self._is_late = False
        self._complaint = ""
        self._document: dict[str, Any] | None = None

    def close(self) -> None:
        """Close what is open."""
        self._watcher.close()
        self._watch_supervisor(None)

    def begin(self) -> str:
        """Start to watch; the instance's state now. Raises Error."""
        self._watch()
        self._document = self._look()
        return str(self._document["state"])

    def events(self) -> Iterator[Event]:
        """What happens after `begin`, without end. Raises BrokenPipeError when nobody reads it any
        more, and Error when the instance cannot be watched any more."""
        assert self._document is not None
        while True:
            self._wait()
            gone = None
            try:
                self._watch()
            except Error as error:
                gone = error  # after what is to be told of it
            try:
                document = self._look()
            except Error as error:
                # It may be between two states; and if not there is more to come.
                if reason(error) != self._complaint:
                    self._complaint = reason(error)
                    warn(self._complaint)
                if gone:
                    raise gone from None
                continue
            self._complaint = ""
            before, self._document = self._document, document
            yield from changes.between(before, document)
            if gone:
                raise gone

    # -- looking -----------------------------------------------------------------------------------

    def _look(self) -> dict[str, Any]:
        document = view.status(self._instance)
        record = state.read(self._instance)
        if document["state"] == "down" and record and self._document is not None:
            supervisor = record["supervisor"]
            if state.is_alive(supervisor["pid"], supervisor["started"]):
                # The holder was killed just now, and will be replaced; or the end has begun, and
                # the directory will be removed. Either wakes us again.
                return self._document
        if document["driver"] and record:
            # As the supervisor has recorded it: a look may come a moment after the driver's death
            # and before the record, which has the reason, and comes at once.
            document.update(driver=record["driver"], state=record["state"])
        holder = document["holder"]
        text = mounts.resolv_conf_inside(holder["pid"]) if holder else None
        if text is not None:
            content = resolvconf.Content(text.decode(errors="replace"))
            document["resolv_conf"] = {
                "nameservers": content.nameservers,
                "search": content.search,
            }
        self._watch_supervisor(document["supervisor"])
        return document

    def _watch_supervisor(self, supervisor: dict[str, Any] | None) -> None:
        if self._supervisor >= 0:
            os.close(self._supervisor)
            self._supervisor = -1
        if supervisor and supervisor["pid"]:
            try:
                self._supervisor = os.pidfd_open(supervisor["pid"])
            except ProcessLookupError:
                # It ended since the look: after another one there may be its successor.
                self._is_late = True

    # -- waiting -----------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Watch whatever is there by now; what is watched already stays so."""
        self._numbers.clear()
        self._base = self._watcher.add(self._instance.base, _ENTRIES)
        if self._base < 0:
            problem = self._watcher.problem or "it is gone, or there are too many watches"
            raise Error(f"watch {self._instance.base}: {problem}")
        self._add("", _ENTRIES)
        for name in _DIRECTORIES:
            self._add(name, _ENTRIES)
        self._add(lease.FIFO, inotify.IN_OPEN | inotify.IN_CLOSE_WRITE)

    def _add(self, name: str, mask: int) -> None:
        number = self._watcher.add(self._instance.path(name), mask)
        if number >= 0:
            self._numbers[number] = name

    def _wait(self) -> None:
        """Until something has happened and then nothing more for a moment."""
        deadline: float | None = None
        if self._is_late:
            self._is_late = False
            deadline = time.monotonic() + LONGEST
        while True:
            poll = select.poll()
            poll.register(self._output, 0)
            poll.register(self._watcher.fd, select.POLLIN)
            if self._supervisor >= 0:
                poll.register(self._supervisor, select.POLLIN)
            left = None
            if deadline is not None:
                left = min(QUIET, max(0.0, deadline - time.monotonic()))
            ready = [fd for fd, _ in poll.poll(process.milliseconds(left))]
            if self._output in ready:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            happened = self._watcher.fd in ready and self._read()
            if self._supervisor in ready:
                happened = True
                # Readable from now on.
                self._watch_supervisor(None)
            if deadline is None:
                if happened:
                    deadline = time.monotonic() + LONGEST
            elif not happened or time.monotonic() >= deadline:
                return

    def _read(self) -> bool:
        """Whether one of the changes concerns us."""
        concerned = False
        for number, mask, name in self._watcher.read():
            if number == self._base:
                concerned |= name == self._instance.name or bool(mask & inotify.IN_DELETE_SELF)
            elif self._numbers.get(number) == state.ROOT:
                concerned |= name.startswith("resolv.conf") and not name.endswith(".new")
            else:
                concerned |= not name.endswith(".new")
        return concerned
