"""aardvark-dns, the name server of an instance's networks: found, looked after, ended.

netavark starts it when the first container with names comes, tells it of each change by SIGHUP to
the pid in a file, and leaves it to end by itself when the last one has gone.

<work>/aardvark-dns/aardvark.pid    its pid
<work>/aardvark-dns/<network>       the names of a network

A pid file outlives a server that was killed. netavark would then send the signal to whoever has got
that pid since, and start no other; so it is looked at first.
"""

from __future__ import annotations

import os

from rootlessnet.errors import debug, warn
from rootlessnet.instance import dns, start, state
from rootlessnet.kernel import namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.instance.paths import Instance


def forget_dead(work: str) -> None:
    """Remove the pid file of a server that does not run in our network namespace (any more)."""
    if os.path.exists(dns.pid_file(work)) and running(work) is None:
        debug(f"{dns.pid_file(work)} is of a server that is gone")
        os.unlink(dns.pid_file(work))


def running(work: str) -> int | None:
    """The pid of the server in our network namespace."""
    return dns.running(work, namespaces.inode("self", "net"))


def check(work: str) -> None:
    """Warn if nobody serves names, after a container with names was attached; called inside."""
    if running(work) is None:
        warn("aardvark-dns does not run: containers do not find each other by name")


def move(instance: Instance) -> None:
    """Move a server that has just been started to the instance's scope, out of the unit of whoever
    started it; called where the caller is, since the system's bus is not to be seen inside."""
    current, holder = state.read(instance), state.read_holder(instance)
    scope = current["supervisor"].get("scope") if current else None
    if not scope or holder is None:
        return
    pid = dns.running(dns.work_directory(instance), holder.netns)
    if pid is None:
        return
    from rootlessnet.systemd.scope import Mover, cgroups_of

    try:
        if any(path.endswith(f"/{scope}") for path in cgroups_of(pid)):
            return
        mover = Mover(instance.name)
        mover.request([pid])
        problem = mover.finish()
    except OSError as error:
        problem = str(error.strerror)
    # With the last container the server ends, and that may be now.
    if problem and dns.running(dns.work_directory(instance), holder.netns) == pid:
        # From inside the next command outside can do it.
        tell = debug if start.is_inside(instance) else warn
        tell(
            "aardvark-dns is not in the instance's systemd scope, so names may stop being resolved "
            f"with the unit that started it: {problem}"
        )
