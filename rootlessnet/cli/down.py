"""rootlessnet down: give named leases back."""

from __future__ import annotations

import os
import time

from rootlessnet.cli import arguments
from rootlessnet.errors import Error, complain
from rootlessnet.instance import lease, lock, named, paths, start, state, view

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.instance.paths import Instance

OPTIONS = (
    *arguments.COMMON,
    arguments.Option("name", f"the lease to give back ({named.DEFAULT})", metavar="NAME"),
    arguments.Option("all", "give back every named lease of the instance"),
    arguments.Option("force", "also end the processes that still use the instance"),
)
WHAT = "Give a named lease back; the last user of an instance ends it."

_WAIT = 10.0
_GRACE = 2.0


def main(argv: list[str]) -> int:
    values, words = arguments.parse(argv, OPTIONS)
    if "help" in values:
        print(arguments.help_text("down [OPTIONS]", WHAT, OPTIONS))
        return 0
    arguments.no_words(words)
    if "all" in values and "name" in values:
        raise Error("--all and --name: only one of them can be given")
    instance = paths.find(arguments.last(values, "static-dir"))
    force = "force" in values
    if not force:
        start.heal(instance)
    records = named.records(instance)
    if "all" in values or (force and "name" not in values):
        chosen = list(records)
    else:
        name = arguments.last(values, "name") if "name" in values else named.DEFAULT
        named.check(name)
        if name not in records:
            others = ", ".join(records) or "none"
            raise Error(f"--name {name}: there is no such lease", hint=f"named leases: {others}")
        chosen = [name]
    for name in chosen:
        _give_back(instance, name, records[name])
    if force:
        _end_processes(instance)
    _kick(instance)
    _wait_until_down(instance)
    return 0


def _give_back(instance: Instance, name: str, record: dict[str, object]) -> None:
    pid, started = record.get("pid"), record.get("started")
    if isinstance(pid, int) and isinstance(started, int):
        _end(pid, started)
    named.remove(instance, name)


def _end(pid: int, started: int) -> bool:
    """SIGTERM, and SIGKILL after a grace; whether it was there."""
    from rootlessnet.instance import cleanup

    if not state.is_alive(pid, started):
        return False
    cleanup.end(pid, started, grace=_GRACE)
    return True


def _end_processes(instance: Instance) -> None:
    """End whoever is inside or holds a lease, and say whom; what starts meanwhile is ended too."""
    from rootlessnet.kernel import process

    for _ in range(10):
        users = {item["pid"]: item["command"] for item in view.users(instance)}
        users.pop(os.getpid(), None)
        if not users:
            return
        for pid, command in users.items():
            try:
                ended = _end(pid, process.start_time(pid))
            except (ProcessLookupError, FileNotFoundError):
                continue
            if ended:
                complain(f"ended {pid}: {command}")


def _kick(instance: Instance) -> None:
    """Make the supervisor look: whoever closes the fifo last wakes it."""
    try:
        start.heal(instance)
    except Error:
        if named.records(instance) or view.users(instance):
            raise
        _clear(instance)
    taken = lease.take(instance)
    if taken is not None:
        os.close(taken)


def _clear(instance: Instance) -> None:
    """What nobody can supervise any more (its record is damaged) and nobody uses."""
    from rootlessnet.instance import cleanup

    fd = lock.open_file(instance)
    try:
        lock.acquire(fd, lock.EXCLUSIVE, _WAIT)
        cleanup.clear(instance)
    finally:
        os.close(fd)


def _wait_until_down(instance: Instance) -> None:
    """Return when it is gone, or when it is clear that it stays."""
    deadline = time.monotonic() + _WAIT
    while os.path.lexists(instance.directory):
        if named.names(instance) or view.users(instance) or _lingers(instance):
            return
        if time.monotonic() > deadline:
            raise Error(
                f"end {instance.name}: it is still there after {_WAIT:g} s",
                hint="see why: rootlessnet logs",
            )
        time.sleep(0.01)


def _lingers(instance: Instance) -> bool:
    record = state.read(instance)
    return bool(record and record["linger"])
