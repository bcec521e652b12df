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
from rootlessnet.instance import lease, look, named, state
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
    if holder is None:
        return None
    users = look.inside(holder)
    alive = state.is_alive(holder.pid, holder.started)
    if not users and not (alive and (_has_lease(instance) or named.names(instance))):
        return None
    record = state.read(instance)
    if record is None:
        if not users:
            return None
        raise Error(
            f"read {instance.path(state.STATE)}: damaged, but the instance is in use by "
            f"{', '.join(map(str, users))}",
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
    return None


def _by_rank(instance: Instance, users: list[int]) -> list[int]:
    """Those that hold a lease first: their mount namespaces are copies of the instance's."""
    holders = set(lease.holders(instance))
    return sorted(users, key=lambda pid: (pid not in holders, pid))


def _has_lease(instance: Instance) -> bool:
    try:
        reader = lease.open_reader(instance)
    except OSError:
        return False
    try:
        return lease.has_users(reader)
    finally:
        os.close(reader)
