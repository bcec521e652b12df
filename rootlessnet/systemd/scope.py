"""Move the processes of an instance into a scope of their own under user.slice.

A process stays in the cgroup of the unit that started it, and ends with that unit: without this,
stopping the service that happened to enter first would take the network from all others (podman
issue 13153).

    mover = Mover(name)     forks a child that loads the D-Bus code and connects
    ...                     meanwhile the namespaces are made
    mover.request(pids)     asks for the scope
    ...                     meanwhile the driver gets ready
    mover.finish()          a warning, or an empty string
"""

from __future__ import annotations

import os
import select
import time

from rootlessnet.errors import Error, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

SECONDS = 3.0
"""How long a slow bus may hold up a start."""

_MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1")
_INTERFACE = "org.freedesktop.systemd1.Manager"


def wanted() -> bool:
    """Whether systemd runs this machine: sd_booted(3)."""
    return os.path.isdir("/run/systemd/system")


def cgroups_of(pid: int | str) -> set[str]:
    """The cgroup paths of the process in systemd's hierarchy; on a hybrid machine there are two."""
    paths = set()
    with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if controllers in ("", "name=systemd"):
                paths.add(path)
    return paths


class Mover:
    """A child that is ready to move processes into a scope."""

    def __init__(self, name: str) -> None:
        import socket

        self.unit = f"{name}.scope"
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            # --- child ---
            try:
                ours.close()
                _serve(theirs.fileno(), self.unit)
            finally:
                os._exit(0)
        # --- parent ---
        theirs.close()
        self._channel = ours.detach()

    def probe(self, seconds: float = SECONDS) -> str:
        """Why systemd cannot be asked for a scope, or an empty string; nothing is moved."""
        self.request([0])
        answer = self._answer(seconds)
        self.close()
        return "" if answer == "ok" else answer

    def request(self, pids: Sequence[int]) -> None:
        """Ask for the processes to be moved; `finish` tells how it went."""
        self._pids = list(pids)
        try:
            os.write(self._channel, " ".join(map(str, pids)).encode())
        except OSError:
            pass  # the child has died, as the answer will tell

    def finish(self, seconds: float = SECONDS) -> str:
        """Why they could not all be moved, or an empty string when they are in the scope."""
        try:
            answer = self._answer(seconds)
            if answer != "ok":
                return answer
            for pid in self._pids:
                if not _is_in(pid, self.unit):
                    return f"{pid} is in {' '.join(sorted(cgroups_of(pid)))}"
            return ""
        except OSError as error:
            return reason(error)
        finally:
            self.close()

    def _answer(self, seconds: float) -> str:
        try:
            poll = select.poll()
            poll.register(self._channel, select.POLLIN)
            if not poll.poll(seconds * 1000):
                return f"systemd gave no answer within {seconds:g} s"
            return os.read(self._channel, 4096).decode(errors="replace") or "the helper died"
        except OSError as error:
            return reason(error)

    def close(self) -> None:
        """End the child, whatever it is waiting for."""
        if self._pid:
            os.close(self._channel)
            os.kill(self._pid, 9)
            os.waitpid(self._pid, 0)
            self._pid = 0


def _serve(channel: int, unit: str) -> None:
    """The child: connect, wait for the pids, make the scope, answer."""
    from rootlessnet.systemd import bus

    problem = ""
    connection = None
    try:
        root = os.geteuid() == 0 and "_CONTAINERS_ROOTLESS_UID" not in os.environ
        address = bus.SYSTEM_ADDRESS if root and not _in_user_namespace() else bus.user_address()
        connection = bus.Connection(address, SECONDS)
    except (Error, OSError) as error:
        problem = reason(error)
    pids = [int(word) for word in os.read(channel, 4096).split()]
    if not pids:
        return
    if connection is not None and pids != [0]:
        try:
            _make_scope(connection, unit, pids)
        except (Error, OSError) as error:
            problem = reason(error)
    os.write(channel, (problem or "ok").encode(errors="replace")[:4000])


def _in_user_namespace() -> bool:
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return file.read().split() != ["0", "0", "4294967295"]


def _make_scope(connection: object, unit: str, pids: list[int]) -> None:
    from rootlessnet.systemd import bus

    assert isinstance(connection, bus.Connection)
    properties = [
        ["Description", bus.variant("s", "rootlessnet: shared network namespace")],
        ["Slice", bus.variant("s", "user.slice")],
        ["PIDs", bus.variant("au", pids)],
        ["Delegate", bus.variant("b", True)],
        ["DefaultDependencies", bus.variant("b", False)],
        ["CollectMode", bus.variant("s", "inactive-or-failed")],
    ]
    try:
        connection.call(
            *_MANAGER,
            _INTERFACE,
            "StartTransientUnit",
            "ssa(sv)a(sa(sv))",
            unit,
            "replace",
            properties,
            [],
        )
    except bus.BusError as error:
        if not error.name.endswith((".UnitExists", ".UnitAlreadyExists")):
            raise
        # The scope of an instance that was adopted: what is left of it is still in there.
        connection.call(*_MANAGER, _INTERFACE, "AttachProcessesToUnit", "ssau", unit, "", pids)
    _wait_until_moved(unit, pids)


def _wait_until_moved(unit: str, pids: list[int]) -> None:
    """The reply comes when the job is queued, some ms before the processes are moved.

    The signal that tells of its end is not waited for: whoever subscribes to the manager has it
    send half a dozen signals for each unit that comes or goes, which costs more than these looks.
    """
    deadline = time.monotonic() + SECONDS
    while not all(_is_in(pid, unit) for pid in pids):
        if time.monotonic() > deadline:
            raise Error(f"systemd took the job for {unit} and did not do it in {SECONDS:g} s")
        time.sleep(0.001)


def _is_in(pid: int, unit: str) -> bool:
    return any(path.endswith(f"/{unit}") for path in cgroups_of(pid))
