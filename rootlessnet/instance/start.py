"""Become a user of the instance: join a running one, or make it first."""

from __future__ import annotations

import errno
import os
import select
import time

from rootlessnet.errors import Error, warn
from rootlessnet.instance import lease, lock, state
from rootlessnet.kernel import libc, namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from rootlessnet.instance.paths import Instance
    from rootlessnet.instance.recovery import Left
    from rootlessnet.instance.request import Requested
    from rootlessnet.instance.settings import Settings
    from rootlessnet.instance.state import Holder


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


_DRIVER_SECONDS = 2.0


def _wait_for_driver(instance: Instance) -> None:
    """A driver that died is back in a moment: better late than without a network."""
    deadline = time.monotonic() + _DRIVER_SECONDS
    while os.path.exists(instance.path(state.DEGRADED)):
        if time.monotonic() > deadline:
            warn("the network is not connected: its driver keeps dying, see rootlessnet logs")
            return
        time.sleep(0.01)


JOIN_SECONDS = 3.0


def use_and_join(
    instance: Instance,
    requested: Requested,
    before: Callable[[Instance], None] | None = None,
) -> tuple[int, Holder]:
    """Become a user of the instance and move this process into it: the lease, and the holder.

    before is called in between: with the lease, and still outside.

    A holder that was killed is replaced within milliseconds, by the supervisor or, if that was
    killed too, by whoever comes next; so all of it is tried again for a while. Raises Error.
    """
    deadline = time.monotonic() + JOIN_SECONDS
    while True:
        taken = use(instance, requested)
        if os.path.exists(instance.path(state.DEGRADED)):
            _wait_for_driver(instance)
        try:
            if before:
                before(instance)
            return taken, join(instance)
        except ProcessLookupError:
            os.close(taken)
            if time.monotonic() > deadline:
                raise Error(
                    "join the instance: its holder is gone",
                    hint="run it again; rootlessnet logs shows what has happened",
                ) from None
            time.sleep(0.01)


def join(instance: Instance) -> Holder:
    """Move this process into the instance of which it holds a lease.

    Raises ProcessLookupError when there is no holder, Error when it may not be joined.
    """
    holder = state.read_holder(instance)
    if holder is None:
        if os.path.lexists(instance.path(state.HOLDER)):  # put there by a rename, never half
            raise state.damaged(instance, state.HOLDER)
        raise ProcessLookupError
    if holder.netns == namespaces.inode("self", "net"):
        return holder  # inside already
    pidfd = holder.open()
    try:
        namespaces.join(pidfd, namespaces.join_flags(holder.userns))
        # A private copy of the mounts, so that a command can mount without disturbing others; what
        # the supervisor mounts still comes through.
        libc.unshare(libc.CLONE_NEWNS)
        for point in holder.shared.split("\0")[:-1]:
            try:
                libc.make_slave(point)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOENT):
                    raise
                # No mount any more: the host's resolv.conf is another file now.
    except ProcessLookupError:
        raise
    except OSError as error:
        raise Error("join the instance", hint=_JOIN_HINTS.get(error.errno or 0, "")) from error
    finally:
        os.close(pidfd)
    return holder


_JOIN_HINTS = {
    errno.EPERM: "it belongs to another user namespace: run this where it was started, or "
    "give another --static-dir"
}


def _check(instance: Instance, requested: Requested) -> None:
    from rootlessnet.instance import settings

    running = state.read(instance)
    if running is None:
        raise Error(
            f"read {instance.path(state.STATE)}: damaged", hint="rootlessnet down --all --force"
        )
    settings.refuse_difference(requested, running)


def is_inside(instance: Instance) -> bool:
    """Whether this process is in the instance's own namespaces.

    From there it can be used, but neither supervised nor cleared: a driver would be its own uplink,
    and what is mounted inside is part of the host.
    """
    holder = state.read_holder(instance)
    if holder is None:
        return os.environ.get("ROOTLESSNET") == instance.name
    return holder.netns == namespaces.inode("self", "net")


def heal(instance: Instance) -> None:
    """Put right what a killed supervisor has left: a new one takes over what is in use, the rest is
    cleared away. Nothing is done while one is running, nor from inside. Raises Error."""
    if not os.path.lexists(instance.directory) or _is_supervised(instance) or is_inside(instance):
        return
    fd = lock.open_file(instance)
    try:
        from rootlessnet.instance.request import DEFAULT_TIMEOUT, Requested

        lock.acquire(fd, lock.EXCLUSIVE, DEFAULT_TIMEOUT)
        taken = lease.take(instance)
        if taken is not None:
            os.close(taken)
            return
        from rootlessnet.instance import cleanup, recovery

        left = recovery.find(instance)
        if left is None:
            cleanup.clear(instance)
        else:
            os.close(_take_over(instance, Requested(), fd, left))
    finally:
        os.close(fd)


def _is_supervised(instance: Instance) -> bool:
    record = state.read(instance)
    if record is None:
        return False
    return state.is_alive(record["supervisor"]["pid"], record["supervisor"]["started"])


def _create(instance: Instance, requested: Requested, fd: int) -> int:
    from rootlessnet.instance import cleanup, recovery, settings
    from rootlessnet.kernel import signals
    from rootlessnet.kernel.trace import trace

    if is_inside(instance):
        raise Error(
            "use the instance: its supervisor is gone, and from inside there can be no other",
            hint="run any rootlessnet command outside, rootlessnet status for instance",
        )
    lock.release(fd)
    lock.acquire(fd, lock.EXCLUSIVE, requested.timeout)
    trace("start:locked")
    taken = lease.take(instance)
    if taken is not None:
        # Another command was faster.
        if requested.anything():
            _check(instance, requested)
        return taken
    left = recovery.find(instance)
    if left is not None:
        return _take_over(instance, requested, fd, left)
    chosen = settings.resolve(requested)
    cleanup.clear(instance)
    umask = os.umask(0o077)
    # From the first directory to the supervisor that looks after it: an interrupt comes after that.
    mask = signals.hold_back()
    try:
        os.mkdir(instance.directory, 0o700)
        trace("start:directory")
        os.mkdir(instance.path(state.LEASES), 0o700)
        os.mkfifo(instance.path(lease.FIFO), 0o600)
        report, taken = _supervise(instance, chosen, fd, lease.open_reader(instance), None)
    except OSError as error:
        cleanup.clear(instance)
        raise Error("start the instance") from error
    finally:
        os.umask(umask)
        signals.restore_mask(mask)
    return _wait(instance, chosen, fd, report, taken, clear=True)


def _take_over(instance: Instance, requested: Requested, fd: int, left: Left) -> int:
    from rootlessnet.instance import settings
    from rootlessnet.kernel.trace import trace

    settings.refuse_difference(requested, left.record)
    trace("adopt:found")
    chosen = settings.from_record(left.record)
    reader = lease.open_reader(instance)
    report, taken = _supervise(instance, chosen, fd, reader, left)
    return _wait(instance, chosen, fd, report, taken, clear=False)


def _supervise(
    instance: Instance, chosen: Settings, fd: int, reader: int, left: Left | None
) -> tuple[int, int]:
    """Start the supervisor: the pipe on which it reports, and a lease."""
    from rootlessnet.instance import supervisor
    from rootlessnet.kernel.trace import trace

    # Our lease is there before the supervisor is: it cannot miss us, nor outlive us for long.
    taken = lease.take(instance)
    assert taken is not None
    trace("start:lease")
    report, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        # --- supervisor ---
        try:
            os.close(taken)
            os.close(report)
            supervisor.main(instance, chosen, fd, reader, write, left)
        finally:
            os._exit(1)
    # --- command ---
    os.close(write)
    os.close(reader)
    if left:
        left.pins.close()
    os.waitpid(pid, 0)
    trace("start:forked")
    return report, taken


def _wait(
    instance: Instance, chosen: Settings, fd: int, report: int, taken: int, *, clear: bool
) -> int:
    """Wait until the instance is ready; the lease. With clear a dead supervisor's remains go."""
    from rootlessnet.instance import cleanup

    try:
        _wait_until_ready(report, chosen.timeout)
    except BaseException as error:
        # Not unlocked: the supervisor has the same open file, and may still be clearing up.
        os.close(taken)
        if clear and isinstance(error, Error) and os.path.lexists(instance.directory):
            cleanup.clear(instance)
        raise
    finally:
        os.close(report)
    lock.release(fd)
    return taken


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1


_GRACE = 2.0
"""Seconds beyond its own deadline for the supervisor to undo what it did."""


def _wait_until_ready(report: int, seconds: float) -> None:
    """Follow the supervisor's report (supervisor.Report). Raises Error when it has failed; it has
    ended then."""
    from rootlessnet.kernel import process, signals

    deadline = time.monotonic() + seconds + _GRACE
    poll = select.poll()
    poll.register(report, select.POLLIN)
    text = b""
    supervisor = -1
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
                supervisor = _pidfd(int(rest))
            elif kind == b"W":
                warn(rest)
            elif kind == b"E":
                message, _, advice = rest.partition("\t")
                if supervisor >= 0:
                    process.wait_for(supervisor, _GRACE)
                    os.close(supervisor)
                raise Error(message, hint=advice)
    if supervisor >= 0:
        signals.send(supervisor, signals.SIGKILL)
        process.wait_for(supervisor, _GRACE)
        os.close(supervisor)
    raise Error(
        "start the instance: the supervisor died or gave no answer",
        hint="run it again; rootlessnet logs shows what the last one said",
    )
