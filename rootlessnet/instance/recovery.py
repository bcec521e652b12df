"""What a dead supervisor has left: something to go on with, or something to clear away.

Called with the instance's lock held exclusively, when nobody reads the lease fifo.

left behind                              then
    nobody uses it                       it is cleared away, and the next start is a clean one
    users, and the holder lives          a new supervisor takes over holder and driver
    users, the holder is gone            a new holder joins the namespaces of a living user
    users, but the record is damaged     refused: what is in use is not torn down by guesswork
"""

from __future__ import annotations

import os

from rootlessnet.errors import Error
from rootlessnet.instance import cni_results, containers, lease, look, named, state
from rootlessnet.kernel import namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.instance.paths import Instance
    from rootlessnet.instance.state import Holder


class Left:
    """An instance to take over; pins hold its namespaces."""

    def __init__(self, record: dict[str, Any], holder: Holder, pins: namespaces.Pins) -> None:
        self.record = record
        self.holder = holder
        self.pins = pins


def find(instance: Instance) -> Left | None:
    """What is to be taken over; None when all of it can be cleared away. Raises Error."""
    holder = state.read_holder(instance)
    damaged = "" if holder else state.HOLDER
    holder = holder or state.living_holder(instance)
    if holder is None:
        return None
    users = look.inside(holder)
    alive = state.is_alive(holder.pid, holder.started)
    if not users and not _is_held(instance, holder, alive):
        return None
    record = state.read(instance)
    if record is None or damaged:
        raise Error(
            f"read {instance.path(damaged or state.STATE)}: damaged, but the instance is in use by "
            f"{', '.join(map(str, users)) or 'a lease'}",
            hint="end these processes, or let rootlessnet do so: rootlessnet down --force",
        )
    for pid in [holder.pid, *_by_rank(instance, users)]:
        try:
            pins = namespaces.Pins(pid)
        except OSError:
            continue
        if os.fstat(pins.net).st_ino == holder.netns:
            return Left(record, holder, pins)
        pins.close()
    if users or _has_lease(instance):
        raise Error(
            f"take over {instance.name}: it is in use, but not to be reached from here",
            hint="it belongs to another user namespace: run this where it was started",
        )
    return None


def _by_rank(instance: Instance, users: list[int]) -> list[int]:
    """Those that hold a lease first: their mount namespaces are copies of the instance's."""
    holders = set(lease.holders(instance))
    return sorted(users, key=lambda pid: (pid not in holders, pid))


def _is_held(instance: Instance, holder: Holder, alive: bool) -> bool:
    """Whether a lease keeps it though nobody is seen inside."""
    counts = (named.names, containers.names, cni_results.names)
    if alive and any(names(instance) for names in counts):
        return True
    if not _has_lease(instance):
        return False
    if alive:
        return True
    # The namespace is gone if everybody with a lease is known to be in another one. One whom we
    # may not look at, because of another user namespace, may be inside.
    known = lease.holders(instance)
    return not known or any(_netns(pid) in (holder.netns, None) for pid in known)


def _netns(pid: int) -> int | None:
    try:
        return namespaces.inode(pid, "net")
    except OSError:
        return None


def _has_lease(instance: Instance) -> bool:
    try:
        reader = lease.open_reader(instance)
    except OSError:
        return False
    try:
        return lease.has_users(reader)
    finally:
        os.close(reader)
