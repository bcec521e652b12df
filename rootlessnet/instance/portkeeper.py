"""The life of the process that forwards published ports (rootlessnet.ports.forwarder).

It is a program of its own, started by the supervisor when somebody wants a port for the first time,
and again when it dies while there are rules; a supervisor that takes over adopts it. It ends by
itself when there is nothing more to forward, when it is told to, and, by the exit pipe that it
shares with the driver, when supervisor and holder are both gone.

<instance>/ports/, of which this knows
    wanted        written by who wants a port; the supervisor watches the directory
    forwarder     "PID START\\n"
    rules.json    not an empty list while there are rules
"""

from __future__ import annotations

import os
import sys
import time

from rootlessnet.instance.logfile import say
from rootlessnet.kernel import files, inotify, process, signals, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.instance.paths import Instance

DIRECTORY = "ports"
WANTED = "wanted"
RECORD = "forwarder"
RULES = "rules.json"

EXIT_FD = 4
"""The number that the exit pipe has in the program."""

_GRACE = 1.0
_BACK_OFF = (0.0, 0.1, 0.5, 1.0, 5.0, 30.0)
_STABLE_SECONDS = 10.0

_PROGRAM = (
    "import sys; sys.path[:0] = [sys.argv[1]]; "
    "from rootlessnet.ports.forwarder import main; main(sys.argv[2])"
)


def path(instance: Instance, name: str) -> str:
    """A path in the directory of ports."""
    return f"{instance.directory}/{DIRECTORY}/{name}"


def want(instance: Instance) -> None:
    """Ask the supervisor for a forwarder. Raises OSError."""
    os.close(files.open_regular(path(instance, WANTED), os.O_WRONLY | os.O_CREAT))


def has_rules(instance: Instance) -> bool:
    """Whether anything is published."""
    try:
        return os.stat(path(instance, RULES)).st_size > len("[]")
    except OSError:
        return False


def read_record(instance: Instance) -> tuple[int, int] | None:
    """pid and start time of the forwarder that was started last."""
    try:
        pid, started = map(int, files.read(path(instance, RECORD), 100).split())
        return pid, started
    except (OSError, ValueError):
        return None


class Keeper:
    """The supervisor's half. `descriptors` are to be polled, `timeout` says how long at most."""

    def __init__(self, instance: Instance, exit_pipe: int, log: int) -> None:
        """The directory is made, and a forwarder that is there is adopted."""
        self._instance = instance
        self._exit_pipe = exit_pipe
        self._log = log
        self._pid = 0
        self._pidfd = -1
        self._since = 0.0
        self._attempt = 0
        self._retry_at = 0.0
        self._watcher = inotify.Watcher()
        directory = f"{instance.directory}/{DIRECTORY}"
        try:
            os.mkdir(directory, 0o700)
        except OSError:
            pass  # it is there; or the disk is full, and there will be no ports
        self._watcher.add(directory, inotify.IN_CLOSE_WRITE)
        record = read_record(instance)
        if record:
            try:
                self._pidfd = process.open_process(*record)
                self._pid = record[0]
            except (ProcessLookupError, FileNotFoundError):
                self._retry_at = time.monotonic() if has_rules(instance) else 0.0

    @property
    def descriptors(self) -> tuple[int, int]:
        return self._pidfd, self._watcher.fd

    @property
    def retry_at(self) -> float:
        """When to look again, by the monotonic clock; 0 for never."""
        return self._retry_at if self._pidfd < 0 else 0.0

    def changed(self, ready: set[int]) -> None:
        """Do what is due. Never raises OSError."""
        if self._pidfd in ready and self._pidfd >= 0:
            self._ended()
        if self._watcher.fd in ready and any(name == WANTED for _, _, name in self._watcher.read()):
            self._retry_at = self._retry_at or time.monotonic()
        if self._pidfd < 0 and self._retry_at and time.monotonic() >= self._retry_at:
            self._start()

    def _start(self) -> None:
        self._retry_at = 0.0
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        line = [sys.executable, "-I", "-S", "-c", _PROGRAM, package, self._instance.directory]
        try:
            descriptors = {1: self._log, 2: self._log, EXIT_FD: self._exit_pipe}
            self._pid = spawn.start(line, descriptors=descriptors)
            self._pidfd = os.pidfd_open(self._pid)
            record = f"{self._pid} {process.start_time(self._pid)}\n"
            files.replace(path(self._instance, RECORD), record.encode())
        except OSError as error:
            say(f"start the port forwarder: {error.strerror}")
            if self._pidfd < 0:
                self._schedule()
            return
        self._since = time.monotonic()

    def _ended(self) -> None:
        try:
            _, status = os.waitpid(self._pid, 0)
            code = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            code = -1  # it was adopted, and tells nothing
        os.close(self._pidfd)
        self._pid, self._pidfd = 0, -1
        if code == 0 and not has_rules(self._instance):
            return
        say(f"the port forwarder has ended (status {code})")
        if time.monotonic() - self._since > _STABLE_SECONDS:
            self._attempt = 0
        self._schedule()

    def _schedule(self) -> None:
        self._retry_at = time.monotonic() + _BACK_OFF[min(self._attempt, len(_BACK_OFF) - 1)]
        self._attempt += 1

    def end(self) -> None:
        """Let go of all ports; the instance ends."""
        self._retry_at = 0.0
        if self._pidfd >= 0:
            signals.send(self._pidfd, signals.SIGTERM)
            if not process.wait_for(self._pidfd, _GRACE):
                signals.send(self._pidfd, signals.SIGKILL)
                process.wait_for(self._pidfd, _GRACE)
