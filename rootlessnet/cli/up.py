"""rootlessnet up: take a named lease, so that the instance is there until it is given back."""

from __future__ import annotations

import os

from rootlessnet.cli import arguments
from rootlessnet.cli.enter import read_request
from rootlessnet.errors import Error, debug
from rootlessnet.instance import named, paths, start, state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.instance.paths import Instance
    from rootlessnet.instance.request import Requested
    from rootlessnet.ports.rules import Rule

OPTIONS = (
    *arguments.COMMON,
    *arguments.CREATE,
    arguments.PUBLISH,
    arguments.Option("name", f"name of the lease ({named.DEFAULT})", metavar="LEASE"),
    arguments.Option("foreground", "stay, and give the lease back at SIGTERM (sd_notify)"),
)
WHAT = "Take a named lease: the instance runs until `rootlessnet down` gives it back."


def main(argv: list[str]) -> int:
    given = arguments.read(argv, "up [OPTIONS]", WHAT, OPTIONS)
    if given is None:
        return 0
    values, _ = given
    name = arguments.last(values, "name") if "name" in values else named.DEFAULT
    named.check(name)
    wanted = []
    if "publish" in values:
        from rootlessnet.ports import rules

        wanted = rules.parse_all(values["publish"])
    instance = paths.find(arguments.last(values, "static-dir"))
    requested = read_request(values)
    taken = start.use(instance, requested)
    record = named.records(instance).get(name)
    if "foreground" in values:
        if record and record["pid"]:
            raise Error(
                f"--name {name}: process {record['pid']} holds this lease",
                hint="choose another name, or end it: rootlessnet down --name " + name,
            )
        named.add(instance, name, os.getpid())
        held = -1
        if wanted:
            from rootlessnet.ports import api

            try:
                # They go with this process, however it ends, as the lease does.
                held = api.hold(instance, wanted)
            except BaseException:
                named.remove(instance, name)
                raise
        debug(f"ports on descriptor {held}")
        return _stay(instance, requested, name, taken)
    if record is None:
        named.add(instance, name)
    _publish(instance, name, wanted, new=record is None)
    return 0


def _publish(instance: Instance, name: str, wanted: list[Rule], *, new: bool) -> None:
    """Publish the rules of the lease; when that fails a new lease is given back."""
    if not wanted:
        return
    from rootlessnet.ports import api

    try:
        api.add(instance, api.named(name), wanted)
    except BaseException:
        if new:
            named.remove(instance, name)
        raise


def _stay(instance: Instance, requested: Requested, name: str, taken: int) -> int:
    """Hold the lease until SIGTERM or `down`; see that the instance has a supervisor meanwhile."""
    import select
    import signal

    from rootlessnet.kernel import process
    from rootlessnet.systemd import notify

    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    stop = False

    def on_signal(number: int, frame: object) -> None:
        nonlocal stop
        stop = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    beat = notify.watchdog_seconds()
    notify.notify("READY=1", f"STATUS=Holding {instance.name} as {name}")
    while not stop:
        supervisor = _supervisor(instance)
        poll = select.poll()
        poll.register(wake_read, select.POLLIN)
        wait = beat
        if supervisor is not None:
            poll.register(supervisor, select.POLLIN)
        else:
            wait = _PAUSE
        ready = {fd for fd, _ in poll.poll(process.milliseconds(wait))}
        if supervisor is not None:
            os.close(supervisor)
        if supervisor is None or supervisor in ready:
            # It was killed. We hold a lease, so a new one takes over what is running.
            fresh = start.use(instance, requested)
            os.close(taken)
            taken = fresh
            if name not in named.records(instance):
                named.add(instance, name, os.getpid())
        if beat:
            notify.notify("WATCHDOG=1")
    notify.notify("STOPPING=1", "STATUS=Giving the lease back")
    named.remove(instance, name)
    os.close(taken)
    return 0


_PAUSE = 0.2
"""Seconds between two attempts to start a supervisor."""


def _supervisor(instance: Instance) -> int | None:
    """A pidfd of the supervisor; None when there is none."""
    from rootlessnet.kernel import process

    record = state.read(instance)
    if record is None:
        return None
    try:
        return process.open_process(record["supervisor"]["pid"], record["supervisor"]["started"])
    except (ProcessLookupError, FileNotFoundError):
        return None
