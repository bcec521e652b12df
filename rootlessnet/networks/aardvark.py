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
from rootlessnet.instance import dns
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


def settle(instance: Instance, work: str, scope: str | None) -> None:
    """After a container with names was attached: warn if nobody serves them, and move a server that
    has just been started out of the unit of whoever started it."""
    pid = running(work)
    if pid is None:
        warn("aardvark-dns does not run: containers do not find each other by name")
        return
    if scope is None:
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
    if problem:
        warn(
            "aardvark-dns is not in the instance's systemd scope, so names may stop being resolved "
            f"with the unit that started it: {problem}"
        )
