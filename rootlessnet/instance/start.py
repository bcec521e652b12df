"""Become a user of the instance: join a running one, or make it first."""

from __future__ import annotations

import os
import select
import time

from rootlessnet.errors import Error, warn
from rootlessnet.instance import lease, lock, state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.instance.paths import Instance
    from rootlessnet.instance.request import Requested


def use(instance: Instance, requested: Requested) -> int:
    """A lease of the instance, which is running when this returns; the caller owns the descriptor.

    Raises Error; nothing is changed or left behind then.
    """
    fd = lock.open_file(instance)
    try:
        lock.acquire(fd, lock.SHARED, requested.timeout)
        taken = lease.take(instance)
        if taken is None:
            taken = _create(instance, requested, fd)
        elif requested.anything():
            _check(instance, requested)
        return taken
    finally:
        os.close(fd)


def _check(instance: Instance, requested: Requested) -> None:
    from rootlessnet.instance import settings

    running = state.read(instance)
    if running is None:
        raise Error(
            f"read {instance.path(state.STATE)}: damaged", hint="rootlessnet down --all --force"
        )
    settings.refuse_difference(requested, running)


def _create(instance: Instance, requested: Requested, fd: int) -> int:
    from rootlessnet.instance import cleanup, settings

    chosen = settings.resolve(requested)
    lock.release(fd)
    lock.acquire(fd, lock.EXCLUSIVE, requested.timeout)
    taken = lease.take(instance)
    if taken is not None:
        # Another command was faster.
        if requested.anything():
            _check(instance, requested)
        return taken
    cleanup.clear(instance)
    try:
        os.mkdir(instance.directory, 0o700)
        os.mkdir(instance.path(state.LEASES), 0o700)
        os.mkfifo(instance.path(lease.FIFO), 0o600)
        reader = lease.open_reader(instance)
        taken = lease.take(instance)
        assert taken is not None
        report, write = os.pipe()
    except OSError as error:
        cleanup.clear(instance)
        raise Error("make the state directory") from error
    pid = os.fork()
    if pid == 0:
        # --- supervisor ---
        from rootlessnet.instance import supervisor

        os.close(taken)
        os.close(report)
        supervisor.main(instance, chosen, fd, reader, write)
    # --- command ---
    os.close(write)
    os.close(reader)
    os.waitpid(pid, 0)
    try:
        _wait_until_ready(instance, report, requested.timeout)
    except BaseException:
        os.close(taken)
        raise
    finally:
        os.close(report)
        # The supervisor has the same open file; this unlocks for both.
        lock.release(fd)
    return taken


_GRACE = 2.0
"""Seconds beyond its own deadline for the supervisor to undo what it did."""


def _wait_until_ready(instance: Instance, report: int, seconds: float) -> None:
    """Follow the supervisor's report (supervisor.Report). Raises Error."""
    from rootlessnet.instance import cleanup

    deadline = time.monotonic() + seconds + _GRACE
    poll = select.poll()
    poll.register(report, select.POLLIN)
    text = b""
    supervisor = 0
    while True:
        left = deadline - time.monotonic()
        chunk = b""
        if left > 0 and poll.poll(left * 1000):
            chunk = os.read(report, 65536)
        if not chunk:
            break
        *lines, text = (text + chunk).split(b"\n")
        for line in lines:
            kind, rest = line[:1], line[1:].decode(errors="surrogateescape")
            if kind == b"R":
                return
            if kind == b"P":
                supervisor = int(rest)
            elif kind == b"W":
                warn(rest)
            elif kind == b"E":
                message, _, advice = rest.partition("\t")
                raise Error(message, hint=advice)
    if supervisor:
        try:
            os.kill(supervisor, 9)
        except ProcessLookupError:
            pass
    cleanup.clear(instance)
    raise Error(
        "start the instance: the supervisor died or gave no answer",
        hint="run it again with --debug",
    )
