"""What the forwarder leaves in the instance's directory, and how rules are written there.

<instance>/ports/
    wanted         there since somebody asked for the first port: the supervisor starts a forwarder
    forwarder      "PID START\\n" of the running one (rootlessnet.instance.portkeeper)
    socket         where it is asked (rootlessnet.ports.control)
    rules.json     the rules of every owner, so that the next forwarder has them too
    lease-*        a fifo for each `enter -p`: held open by its command, as a lease is

An owner is "user" (port add), "lease:PID-START-RANDOM" (the process and the fifo of that name),
"named:NAME" (up), "container:ID".
"""

from __future__ import annotations

import os

from rootlessnet.instance import portkeeper
from rootlessnet.kernel import files, process
from rootlessnet.ports import rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.instance.paths import Instance
    from rootlessnet.ports.rules import Rule

SOCKET = "socket"
RULES = portkeeper.RULES
USER = "user"
LEASE = "lease"
NAMED = "named"
CONTAINER = "container"
_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-@:\\")


def path(instance: Instance, name: str) -> str:
    """A path in the ports directory."""
    return portkeeper.path(instance, name)


def fifo(instance: Instance, owner: str) -> str:
    """The fifo of a lease's owner."""
    return path(instance, f"{LEASE}-{owner.partition(':')[2]}")


def lease_of_us() -> str:
    """The name of a new owner: this process and a fifo."""
    import secrets

    pid = os.getpid()
    return f"{LEASE}:{pid}-{process.start_time(pid)}-{secrets.token_hex(8)}"


def open_process(owner: str) -> int:
    """A pidfd of the process of a lease's owner; the caller owns it. Raises OSError when it has
    ended."""
    pid, started, _ = owner.partition(":")[2].split("-")
    return process.open_process(int(pid), int(started))


def check_owner(owner: str) -> None:
    """Raise ValueError for what cannot be one."""
    kind, _, name = owner.partition(":")
    if owner == USER:
        return
    if kind == CONTAINER and name and len(name) <= 4096 and name.isprintable():
        return
    if kind == LEASE:
        parts = name.split("-")
        if len(parts) != 3 or not (parts[0].isdecimal() and parts[1].isdecimal()):
            raise ValueError(f"not an owner: {owner!r}")
    if kind not in (LEASE, NAMED) or not 0 < len(name) <= 240 or not _CHARACTERS.issuperset(name):
        raise ValueError(f"not an owner: {owner!r}")


def read(instance: Instance) -> list[dict[str, Any]]:
    """The records of rules.json: owner, rule, target (none: the instance's own), source_ip."""
    import json

    try:
        records = json.loads(files.read(path(instance, RULES), 64 << 20))
        for record in records:
            if not isinstance(record["owner"], str):
                raise ValueError("not an owner")
            check_owner(record["owner"])
            record["rule"] = rules.from_list(record["rule"])
            if record["target"] is not None and not isinstance(record["target"], dict):
                raise ValueError("not a target")
        return list(records)
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def write(instance: Instance, records: list[dict[str, Any]]) -> None:
    """Replace rules.json. Raises OSError."""
    import json

    def plain(value: Rule | Any) -> Any:
        return value.as_list() if isinstance(value, rules.Rule) else value

    text = json.dumps([{key: plain(value) for key, value in one.items()} for one in records])
    files.replace(path(instance, RULES), text.encode())


def is_held(instance: Instance, owner: str) -> bool:
    """Whether somebody has the lease of an owner: the fifo open for writing, or its process lives.

    Many a server closes all descriptors that it does not know.
    """
    try:
        reader = os.open(fifo(instance, owner), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not is_open(reader):
            os.close(open_process(owner))
    except OSError:
        return False
    finally:
        os.close(reader)
    return True


def is_open(reader: int) -> bool:
    """Whether a fifo that we have for reading is open for writing anywhere. Raises OSError."""
    try:
        return os.read(reader, 1) != b""
    except BlockingIOError:
        return True
