"""Named leases: uses of the instance that no process has to hold.

`leases/<name>` is a small JSON record. One without a pid counts until it is given back; one with a
pid belongs to `up --foreground`, which holds a lease of the ordinary kind beside it, so the record
is only there to be seen and to be ended by name.
"""

from __future__ import annotations

import os

from rootlessnet.errors import Error
from rootlessnet.instance import state
from rootlessnet.kernel import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.instance.paths import Instance

DEFAULT = "default"
_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-@:\\")
_MAX_LENGTH = 240


def check(name: str) -> None:
    """Raise Error for a name that cannot be one."""
    if (
        not name
        or len(name) > _MAX_LENGTH
        or name[0] in ".-"
        or name.endswith(".new")  # a record that is being written
        or not _CHARACTERS.issuperset(name)
    ):
        raise Error(
            f"--name {name}: not a name",
            hint=f"up to {_MAX_LENGTH} letters, digits and _.-@:, the first no dot or dash",
        )


def names(instance: Instance) -> list[str]:
    """The named leases that keep the instance."""
    return [name for name, record in records(instance).items() if record.get("pid") is None]


def records(instance: Instance) -> dict[str, dict[str, Any]]:
    """Every record that stands for a lease now; those of processes that have ended are left out.

    A damaged record counts: it is safer to keep an instance than to end one in use.
    """
    import json

    found: dict[str, dict[str, Any]] = {}
    try:
        listed = sorted(os.listdir(instance.path(state.LEASES)))
    except (FileNotFoundError, NotADirectoryError):
        return found
    for name in listed:
        if name.endswith(".new"):
            continue
        try:
            record = json.loads(files.read(f"{instance.path(state.LEASES)}/{name}", 65536))
            pid, started = record["pid"], record["started"]
            record["since"] = str(record["since"])
            if pid is not None and not (isinstance(pid, int) and isinstance(started, int)):
                raise ValueError("no process")
        except (FileNotFoundError, IsADirectoryError):
            continue
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            found[name] = {"pid": None, "since": None, "damaged": True}
            continue
        if pid is None or state.is_alive(pid, started):
            found[name] = record
    return found


def add(instance: Instance, name: str, pid: int | None = None) -> None:
    """Record a named lease; the caller holds a lease of its own meanwhile. Raises Error."""
    import json

    from rootlessnet.instance.clock import now
    from rootlessnet.kernel import process

    record = {
        "pid": pid,
        "started": process.start_time(pid) if pid is not None else None,
        "since": now(),
    }
    try:
        files.replace(f"{instance.path(state.LEASES)}/{name}", json.dumps(record).encode())
    except OSError as error:
        raise Error("record the lease") from error


def remove(instance: Instance, name: str) -> None:
    """Forget a named lease; one that is gone is no error. Raises Error."""
    try:
        os.unlink(f"{instance.path(state.LEASES)}/{name}")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise Error("give the lease back") from error
