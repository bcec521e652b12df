"""rootlessnet down: give named leases back."""

from __future__ import annotations

import os
import time

from rootlessnet.cli import arguments
from rootlessnet.cli.text import printable
from rootlessnet.errors import Error, complain, debug, reason, warn
from rootlessnet.instance import (
    cni_results,
    containers,
    lease,
    lock,
    named,
    paths,
    start,
    state,
    view,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.instance.paths import Instance

OPTIONS = (
    *arguments.COMMON,
    arguments.Option("name", f"the lease to give back ({named.DEFAULT})", metavar="LEASE"),
    arguments.Option("all", "give back every named lease of the instance"),
    arguments.Option("force", "also end the processes that still use the instance"),
)
WHAT = "Give a named lease back; the last user of an instance ends it."

_WAIT = 10.0
_GRACE = 2.0


def main(argv: list[str]) -> int:
    given = arguments.read(argv, "down [OPTIONS]", WHAT, OPTIONS)
    if given is None:
        return 0
    values, _ = given
    if "all" in values and "name" in values:
        raise Error("--all and --name: only one of them can be given")
    instance = paths.find(arguments.last(values, "static-dir"))
    force = "force" in values
    if force and _is_user(instance):
        raise Error(
            "down --force: this command is inside the instance, and would have to end itself",
            hint="run it outside; without --force a lease is given back from here, too",
        )
    if not force:
        start.heal(instance)
    else:
        _mend_holder(instance)
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
        _end_containers(instance)
        _end_processes(instance)
        _release_namespaces(instance)
        cni_results.clear(instance)
    _kick(instance)
    if force and not _is_used(instance):
        _end_linger(instance)
    _wait_until_down(instance, force=force)
    return 0


def _is_user(instance: Instance) -> bool:
    """Whether this command itself keeps the instance: it is inside, or has inherited a lease."""
    return start.is_inside(instance) or lease.is_holder(instance, os.getpid())


def _give_back(instance: Instance, name: str, record: dict[str, object]) -> None:
    from rootlessnet.instance import cleanup

    pid, started = record.get("pid"), record.get("started")
    if isinstance(pid, int) and isinstance(started, int):
        cleanup.end(pid, started, grace=_GRACE)
    named.remove(instance, name)


def _mend_holder(instance: Instance) -> None:
    """Put a record in the place of a damaged one, by which what is inside can be reached; that the
    mounts in it are missing does not matter to what is ended."""
    holder = None if state.read_holder(instance) else state.living_holder(instance)
    if holder:
        try:
            state.write_holder(instance, holder)
        except OSError as error:
            warn(reason(error))


def _end_containers(instance: Instance) -> None:
    """Take every container down, or at least forget it."""
    if not containers.names(instance):
        return
    from rootlessnet.networks import api

    for id in containers.names(instance):
        try:
            api.teardown(id, instance=instance)
        except Error as error:
            warn(reason(error))
            containers.remove(instance, id)
        complain(f"took down container {printable(id)}")


def _release_namespaces(instance: Instance) -> None:
    """Let go of network namespaces that are only held by a file inside, as those of containers
    whose record is lost, or of podman's that were just killed: their veths keep the instance."""
    from rootlessnet.networks import container_netns, inside

    try:
        directory = containers.pin_directory(instance)
        inside.run(instance, lambda: container_netns.release_all(directory))
    except Error as error:
        debug(reason(error))


def _end_processes(instance: Instance) -> None:
    """End whoever is inside or holds a lease, and say whom; what starts meanwhile is ended too."""
    from rootlessnet.kernel import process, signals

    for _ in range(10):
        pidfds = {}
        for item in view.users(instance):
            try:
                pidfds[item["pid"]] = os.pidfd_open(item["pid"])
            except ProcessLookupError:
                continue
        # Looked at again with the pidfds open: now a pid cannot become somebody else's any more.
        users = {item["pid"]: item["command"] for item in view.users(instance)}
        chosen = {pid: fd for pid, fd in pidfds.items() if pid in users}
        for fd in chosen.values():
            signals.send(fd, signals.SIGTERM)
        deadline = time.monotonic() + _GRACE
        for pid, fd in chosen.items():
            if not process.wait_for(fd, max(0.0, deadline - time.monotonic())):
                signals.send(fd, signals.SIGKILL)
                process.wait_for(fd, _GRACE)
            complain(f"ended {pid}: {printable(users[pid])}")
        for fd in pidfds.values():
            os.close(fd)
        if not chosen:
            return


def _kick(instance: Instance) -> None:
    """Make the supervisor look: whoever closes the fifo last wakes it."""
    try:
        start.heal(instance)
    except Error:
        if named.records(instance) or containers.names(instance) or view.users(instance):
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


def _is_used(instance: Instance) -> bool:
    return bool(
        named.names(instance)
        or containers.names(instance)
        or view.users(instance)
        or cni_results.names(instance)
        or _is_user(instance)
    )


def _end_linger(instance: Instance) -> None:
    """Make the supervisor end an instance now that would stay for its --linger."""
    from rootlessnet.kernel import process, signals

    record = state.read(instance)
    if record is None or not record["linger"]:
        return
    try:
        pidfd = process.open_process(record["supervisor"]["pid"], record["supervisor"]["started"])
    except ProcessLookupError:
        return
    try:
        signals.send(pidfd, signals.SIGTERM)
        process.wait_for(pidfd, _WAIT)
    finally:
        os.close(pidfd)
    # If somebody held the lock at that moment it has left the instance to a successor.
    start.heal(instance)


def _wait_until_down(instance: Instance, *, force: bool) -> None:
    """Return when it is gone, or when it is clear that it stays."""
    deadline = time.monotonic() + _WAIT
    while os.path.lexists(instance.directory):
        if _is_used(instance) or (_lingers(instance) and not force):
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
