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
    try:
        with open(instance.path(HOLDER), "rb", buffering=0) as file:
            *words, shared = file.read(8192).removesuffix(b"\n").split(b" ", 5)
        pid, started, userns, netns, mntns = map(int, words)
        return Holder(pid, started, userns, netns, mntns, os.fsdecode(shared))
    except (OSError, ValueError, TypeError):
        return None


def write_holder(instance: Instance, holder: Holder) -> None:
    """Record the holder."""
    text = (
        f"{holder.pid} {holder.started} {holder.userns} {holder.netns} {holder.mntns} "
        f"{holder.shared}\n"
    )
    replace(instance.path(HOLDER), os.fsencode(text))


def replace(path: str, data: bytes) -> None:
    """Write a file so that a reader sees the old or the new one, whole. Raises OSError."""
    temporary = f"{path}.new"
    fd = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    try:
        written = 0
        while written < len(data):
            written += os.write(fd, data[written:])
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)  # on a full disk it would hold room that others need
        raise
    finally:
        os.close(fd)


def boot_id() -> str:
    """Tells state of this boot from state of an earlier one."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def read(instance: Instance) -> dict[str, Any] | None:
    """state.json; None when there is none, it is damaged, or of an earlier boot."""
    import json

    try:
        with open(instance.path(STATE), "rb") as file:
            state = json.loads(file.read(_MAX_SIZE))
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

    try:
        replace(instance.path(STATE), (json.dumps(state, indent=1) + "\n").encode())
    except OSError as error:
        raise Error("write the state") from error


def is_alive(pid: int, started: int) -> bool:
    """Whether the process of a record is still there."""
    try:
        os.close(process.open_process(pid, started))
    except (OSError, OverflowError):
        return False
    return True
