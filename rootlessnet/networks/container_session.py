"""The right to change containers: one at a time, and what a killed one has left is finished first.

`containers.lock` is held for it. Before its first change a command writes the container's id into
`containers.pending`, and removes that after its last one; so whoever gets the lock and finds the
file knows that somebody was killed, and finishes:

    setup, connect              killed on the way: undone
    teardown, disconnect        finished
    reload                      done again
"""

from __future__ import annotations

import os

from rootlessnet.errors import Error, debug, reason, warn
from rootlessnet.instance import containers, lock
from rootlessnet.kernel import files
from rootlessnet.networks import container_attach, container_detach

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.instance.paths import Instance

_PATIENCE = 180.0
"""Seconds for the others before us: a hundred at once are a lot, but each of them ends in time."""


class Session:
    """The right to change containers, as a context; what a killed one has left is finished."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self._fd = -1

    def __enter__(self) -> Session:
        path = self.instance.path(containers.LOCK)
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            os.makedirs(self.instance.path(containers.DIRECTORY), mode=0o700, exist_ok=True)
        except OSError as error:
            raise Error("lock the containers") from error
        try:
            lock.acquire(self._fd, lock.EXCLUSIVE, _PATIENCE)
            _finish_pending(self.instance)
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _finish_pending(instance: Instance) -> None:
    path = instance.path(containers.PENDING)
    try:
        id = files.read(path, 4096).decode()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        warn(f"finish what a killed command has left: {reason(error)}")
        id = ""
    record = containers.read(instance, id) if id else None
    if record is not None:
        debug(f"container {id} was left in the middle of {record['phase']}")
        try:
            _finish(instance, record)
        except (Error, OSError) as error:
            warn(f"finish what was left of container {id}: {reason(error)}")
    unmark(instance)


def _finish(instance: Instance, record: dict[str, Any]) -> None:
    if record["phase"] in (containers.SETUP, containers.TEARDOWN):
        container_detach.take_down(instance, record)
    elif record["phase"] == containers.RELOAD:
        container_attach.restore(instance, record)
    else:
        for name, item in list(record["networks"].items()):
            if item["phase"] != containers.READY:
                container_detach.detach(instance, record, name)


def mark(instance: Instance, id: str) -> None:
    """Write down that a change of this container begins. Raises Error."""
    try:
        files.replace(instance.path(containers.PENDING), id.encode())
    except OSError as error:
        raise Error("record the container") from error


def unmark(instance: Instance) -> None:
    """The change is complete, or undone."""
    try:
        os.unlink(instance.path(containers.PENDING))
    except FileNotFoundError:
        pass
