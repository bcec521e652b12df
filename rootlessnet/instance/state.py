"""What is known of a running instance, on disk.

$XDG_RUNTIME_DIR/rootlessnet/<name>/     0700
    lease.fifo      who uses it (rootlessnet.instance.lease)
    leases/         a record for each named lease; counts until it is removed
    containers/     a record for each container, likewise (rootlessnet.instance.containers)
    containers.lock, containers.pending, addresses.db
                    whoever changes containers (rootlessnet.networks)
    holder          "PID START USERNS NETNS MNTNS MOUNTS\\n", all that a command needs to join
    state.json      everything else; published last, replaced by rename
    degraded        there while the driver is out, so that a new command waits for it
    log             what supervisor and driver said
    root/           what is mounted inside (rootlessnet.instance.mounts)

Nothing here is believed without a look at the process it names, by pid and start time; state.json
has the boot id too, and is not believed after a reboot.
"""

from __future__ import annotations

import os

from rootlessnet.errors import Error
from rootlessnet.kernel import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.instance.paths import Instance

HOLDER = "holder"
STATE = "state.json"
DEGRADED = "degraded"
LOG = "log"
ROOT = "root"
LEASES = "leases"

_MAX_SIZE = 1 << 20


class Holder:
    """The holder's identity, the inode numbers of its namespaces, and the mounts that a copy of its
    mount namespace has to make slaves (rootlessnet.instance.mounts), each followed by NUL."""

    __slots__ = ("mntns", "netns", "pid", "shared", "started", "userns")

    def __init__(
        self, pid: int, started: int, userns: int, netns: int, mntns: int, shared: str = ""
    ) -> None:
        self.pid = pid
        self.started = started
        self.userns = userns
        self.netns = netns
        self.mntns = mntns
        self.shared = shared

    def open(self) -> int:
        """A pidfd of it, which has the network namespace of the record. The caller owns it.

        Raises ProcessLookupError when it is gone.
        """
        pidfd = process.open_process(self.pid, self.started)
        try:
            if os.stat(f"/proc/{self.pid}/ns/net").st_ino == self.netns:
                return pidfd
        except PermissionError:
            return pidfd  # of another user namespace, as whoever uses it will be told
        except OSError:
            pass
        os.close(pidfd)
        raise ProcessLookupError(3, "No such process", str(self.pid))


def read_holder(instance: Instance) -> Holder | None:
    """The holder's record; None when there is none that makes sense."""
    # Every enter comes through here, and loads no module for it; what kernel/files.py would say of
    # a fifo or a device is no more than that it makes no sense.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(instance.path(HOLDER), flags)
        try:
            *words, shared = os.read(fd, 8192).removesuffix(b"\n").split(b" ", 5)
        finally:
            os.close(fd)
        pid, started, userns, netns, mntns = map(int, words)
        return Holder(pid, started, userns, netns, mntns, os.fsdecode(shared))
    except (OSError, ValueError, TypeError):
        return None


def living_holder(instance: Instance) -> Holder | None:
    """The holder, while it lives, as state.json names it: for when its own record is damaged.

    It can be looked at and ended; to join it, the mounts of its record are missing.
    """
    from rootlessnet.kernel import namespaces

    record = read(instance)
    if record is None or not is_alive(record["holder"]["pid"], record["holder"]["started"]):
        return None
    pid, started = record["holder"]["pid"], record["holder"]["started"]
    try:
        user, net, mnt = (namespaces.inode(pid, kind) for kind in ("user", "net", "mnt"))
    except OSError:
        return None
    return Holder(pid, started, user, net, mnt)


def damaged(instance: Instance, name: str) -> Error:
    """What to tell when a record makes no sense and the instance runs."""
    return Error(
        f"read {instance.path(name)}: damaged, but the instance runs",
        hint="rootlessnet down --force ends it, with what is inside",
    )


def write_holder(instance: Instance, holder: Holder) -> None:
    """Record the holder."""
    from rootlessnet.kernel import files

    text = (
        f"{holder.pid} {holder.started} {holder.userns} {holder.netns} {holder.mntns} "
        f"{holder.shared}\n"
    )
    files.replace(instance.path(HOLDER), os.fsencode(text))


def boot_id() -> str:
    """Tells state of this boot from state of an earlier one."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def read(instance: Instance) -> dict[str, Any] | None:
    """state.json; None when there is none, it is damaged, or of an earlier boot."""
    import json

    from rootlessnet.kernel import files

    try:
        state = json.loads(files.read(instance.path(STATE), _MAX_SIZE))
        if state["boot_id"] == boot_id() and _is_whole(state):
            return dict(state)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return None


def _is_whole(state: dict[str, Any]) -> bool:
    """Whether everything that is relied on is there and of its type. Raises KeyError, TypeError."""
    supervisor, holder, driver = state["supervisor"], state["holder"], state["driver"]
    return (
        isinstance(state["static_dir"], str)
        and isinstance(state["state"], str)
        and isinstance(state["linger"], float | int)
        and isinstance(state["timeout"], float | int)
        and isinstance(driver["options"], dict)
        and isinstance(driver["restarts"], int)
        and all(isinstance(driver[key], str) for key in _TEXTS)
        and isinstance(driver["mtu"], int)
        and isinstance(driver["ipv6"], bool)
        and isinstance(supervisor["scope"], str | None)
        and all(isinstance(item[key], int) for item in (supervisor, holder) for key in _IDENTITY)
        and (driver["pid"] is None or all(isinstance(driver[key], int) for key in _IDENTITY))
    )


_IDENTITY = ("pid", "started")
_TEXTS = ("name", "program", "version", "cidr", "gateway", "dns", "address")


def write(instance: Instance, state: dict[str, Any]) -> None:
    """Publish state.json. Raises Error when there is no room."""
    import json

    from rootlessnet.kernel import files

    try:
        files.replace(instance.path(STATE), (json.dumps(state, indent=1) + "\n").encode())
    except OSError as error:
        raise Error("write the state") from error


def is_alive(pid: int, started: int) -> bool:
    """Whether the process of a record is still there."""
    try:
        os.close(process.open_process(pid, started))
    except (OSError, OverflowError):
        return False
    return True
