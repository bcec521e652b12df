"""The forwarder: has the ports of the host that lead inside, and the processes that copy.

    forwarder ----- workers       accept, connect inside, copy (rootlessnet.ports.loop)
        |    `----- helper        makes the sockets inside (rootlessnet.ports.pool)
        |
    socket <--- enter -p, up -p, port, container      (rootlessnet.ports.control)

It is started by the supervisor (rootlessnet.instance.portkeeper) and lives in the host's
namespaces. Rules are recorded before they are reported as made, so its successor has them all; what
has an owner goes when the owner does (rootlessnet.ports.owners).

    Requests (requests.py)       what it is asked
    Table (table.py)             the rules; each that is in force is a Publication
      Processes (processes.py)   the workers and the helper
      Gate (gate.py)             which ports listen
    Running (running.py)         what it knows of the instance

Here is the program, and the loop in which all of these wait. An exception that nobody foresaw is
told, and ends nothing but what it was about.
"""

from __future__ import annotations

import os
import resource
import select
import sys
import time

from rootlessnet.errors import Error, reason
from rootlessnet.instance import lease, paths, portkeeper, state
from rootlessnet.instance.logfile import say
from rootlessnet.kernel import inotify, libc
from rootlessnet.kernel.namespaces import Pins
from rootlessnet.kernel.trace import trace
from rootlessnet.ports.bugs import Bugs
from rootlessnet.ports.requests import Requests
from rootlessnet.ports.running import Running
from rootlessnet.ports.table import Table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rootlessnet.instance.paths import Instance
    from rootlessnet.ports.processes import Watched

_IDLE_SECONDS = 2.0
_PAUSE = 0.05
"""After an exception that nobody foresaw: it may come again at once."""


def main(directory: str) -> None:
    """The program; its end is the process's."""
    status = 1
    try:
        base, name = os.path.split(directory)
        instance = paths.Instance(base, "", name)
        os.umask(0o077)
        libc.set_process_name("rootlessnet")
        libc.set_command_line(f"rootlessnet: ports of {name}")
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        Forwarder(instance).run()
        status = 0
    except (Error, OSError) as error:
        say(f"ports: {reason(error)}")
    except BaseException:
        import traceback

        say("bug: " + traceback.format_exc())
    finally:
        os._exit(status)


class Forwarder:
    """The loop."""

    def __init__(self, instance: Instance) -> None:
        """Raises Error or OSError when there is nothing that it could forward to."""
        holder = state.read_holder(instance)
        if holder is None:
            raise Error("the instance has no holder")
        pins = Pins(holder.pid)
        if os.fstat(pins.net).st_ino != holder.netns:
            raise Error("the holder is gone")
        self._running = Running(instance)
        self._files = inotify.Watcher()
        self._directory = self._files.add(instance.directory, inotify.IN_MOVED_TO | inotify.IN_OPEN)
        self._table = Table(instance, self._running, pins, self._files)
        self._bugs = Bugs()
        self._requests = Requests(instance, self._running, self._table, self._bugs)
        self._unneeded_since = time.monotonic()
        self._stop = False
        self._table.recover()

    def run(self) -> None:
        """Until it is told to end, or is not needed any more."""
        import signal

        self._wake, wake = os.pipe()
        os.set_blocking(wake, False)

        def stop(number: int, frame: object) -> None:
            self._stop = True

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, stop)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        while not self._stop:
            self._wait()
            if self._is_unneeded() and not self._requests.accept():
                break
        self._table.end()
        if not self._stop:
            self._requests.close()

    def _wait(self) -> None:
        poll = select.poll()
        actions = {}
        for fd, events, action in self._watched():
            poll.register(fd, events)
            actions[fd] = action
        for fd, _ in poll.poll(self._timeout()):
            self._do(actions[fd])
        self._do(self._table.tick)
        if self._running.due and time.monotonic() >= self._running.due:
            self._do(self._instance_changed)
        self._do(self._requests.tick)

    def _do(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:
            self._bugs.tell()
            time.sleep(_PAUSE)

    def _watched(self) -> Iterator[Watched]:
        yield self._wake, select.POLLIN, lambda: None
        yield portkeeper.EXIT_FD, 0, self._instance_ended
        if self._files.fd >= 0:
            yield self._files.fd, select.POLLIN, self._files_changed
        yield from self._table.watched()
        yield from self._requests.watched()

    def _timeout(self) -> float | None:
        now = time.monotonic()
        moments = [self._table.due, self._running.due, self._requests.due]
        moments = [when for when in moments if when]
        if self._table.is_empty():
            # Connections of rules that are gone end without a word.
            moments.append(max(self._unneeded_since + _IDLE_SECONDS, now + 1.0))
        # Rounded up, or the last millisecond is spent in turning round and round.
        return max(0.0, min(moments) - now) * 1000 + 0.5 if moments else None

    def _is_unneeded(self) -> bool:
        table = self._table
        if not table.is_empty() or table.is_busy() or self._requests.are_open():
            self._unneeded_since = time.monotonic()
        return time.monotonic() - self._unneeded_since >= _IDLE_SECONDS

    def _instance_ended(self) -> None:
        self._stop = True

    def _files_changed(self) -> None:
        trace("forwarder:files")
        for number, mask, name in self._files.read():
            if number != self._directory:
                self._table.file_changed(number)
            elif mask & inotify.IN_MOVED_TO and name == state.STATE:
                self._instance_changed()
            elif mask & inotify.IN_OPEN and name == lease.FIFO:
                self._table.stir()

    def _instance_changed(self) -> None:
        """state.json is a new one: the driver may have been started again."""
        before, driver = self._running.own, self._running.driver
        try:
            self._running.read()
        except Error:
            return
        if (self._running.own.v4, self._running.own.v6) != (before.v4, before.v6):
            self._table.own_has_changed()
        if self._running.driver not in (0, driver):
            self._table.driver_has_changed()


if __name__ == "__main__":
    main(sys.argv[1])
