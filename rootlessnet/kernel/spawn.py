"""Start programs: the one place where a helper's argument list, descriptors and log are decided.

A helper gets descriptors 0, 1, 2 and those it is given by number, nothing else: every other
descriptor of ours is close-on-exec (PEP 446).
"""

from __future__ import annotations

import os
import select

from rootlessnet.errors import Error
from rootlessnet.kernel import libc, process, signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

# Room below for the numbers that helpers are given, above for ours.
_SAFE = 64


def find(program: str, path: str | None = None) -> str | None:
    """Where the program is: itself when it has a slash, else the first hit on PATH.

    /usr/sbin and /sbin are looked at last, as ordinary users on Debian have them not on PATH.
    """
    return next(find_all(program, path), None)


def find_all(program: str, path: str | None = None) -> Iterator[str]:
    """Every place of the program, best first; see `find`."""
    if "/" in program:
        if os.access(program, os.X_OK):
            yield program
        return
    if path is None:
        path = os.environ.get("PATH", os.defpath)
    for directory in [*path.split(":"), "/usr/sbin", "/sbin"]:
        candidate = f"{directory or '.'}/{program}"
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            yield candidate


def start(
    argv: Sequence[str],
    *,
    descriptors: Mapping[int, int],
    environment: Mapping[str, str] | None = None,
    private_mounts: bool = False,
    prepare: Callable[[], None] | None = None,
) -> int:
    """Start argv[0] (a path) and return its pid, a child of ours.

    descriptors maps the number in the program to the number here; 0, 1 and 2 are /dev/null where
    it does not name them. Signals are at their defaults, the session is its own; with
    private_mounts it also has a copy of the mounts, and nothing that it mounts reaches ours.
    prepare is called in the new process, where all of that is in place, just before it becomes the
    program. Raises OSError when it cannot start; with private_mounts or prepare that is its status
    127 and a line on its stderr instead.
    """
    wanted = dict(descriptors)
    null = os.open(os.devnull, os.O_RDWR)
    lifted = []
    try:
        actions: list[tuple[int, int, int]] = []
        for number in sorted({0, 1, 2, *wanted}):
            # Lift every source above the targets first, so no dup2 hits a source still needed.
            source = _dup_above(wanted.get(number, null), max([2, *wanted]))
            lifted.append(source)
            actions.append((os.POSIX_SPAWN_DUP2, source, number))
        if private_mounts or prepare:
            return _fork(argv, environment, actions, prepare, private_mounts=private_mounts)
        return os.posix_spawn(
            argv[0],
            list(argv),
            dict(os.environ if environment is None else environment),
            file_actions=actions,
            setsid=True,
            setsigmask=[],
            setsigdef=_DEFAULT_SIGNALS,
        )
    finally:
        os.close(null)
        for fd in lifted:
            os.close(fd)


# All but SIGKILL and SIGSTOP, whose dispositions are not ours to set.
_DEFAULT_SIGNALS = [n for n in range(1, 32) if n not in (9, 19)]


def _fork(
    argv: Sequence[str],
    environment: Mapping[str, str] | None,
    actions: list[tuple[int, int, int]],
    prepare: Callable[[], None] | None,
    *,
    private_mounts: bool,
) -> int:
    """What posix_spawn does, with more to do before exec; failures are status 127."""
    pid = os.fork()
    if pid:
        return pid
    # --- child ---
    try:
        os.setsid()
        if private_mounts:
            libc.unshare(libc.CLONE_NEWNS)
            libc.mount("", "/", flags=libc.MS_SLAVE | libc.MS_REC)
        for _, source, number in actions:
            os.dup2(source, number)
        signals.let_through()
        for number in (signals.SIGPIPE, signals.SIGXFSZ):
            signals.restore(number)
        if prepare:
            prepare()
        os.execve(argv[0], list(argv), dict(os.environ if environment is None else environment))
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _dup_above(fd: int, highest: int) -> int:
    """A copy above the numbers that the program is given."""
    import errno
    import fcntl

    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _SAFE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # The limit of open files is lower than that.
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, highest + 1)


class Output:
    """A short-lived program whose output is wanted: started now, read later by `finish`.

    One that is not wanted any more is ended by `cancel`.
    """

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.argv = list(argv)
        self._read, write = os.pipe()
        try:
            self.pid = start(argv, descriptors={1: write, 2: write}, environment=environment)
        except BaseException:
            os.close(self._read)
            raise
        finally:
            os.close(write)

    def finish(self, seconds: float = 5) -> tuple[int, str]:
        """Its exit status (as os.waitstatus_to_exitcode) and stdout with stderr.

        Raises Error when it does not end in time; it is killed then.
        """
        import time

        deadline = time.monotonic() + seconds
        data = bytearray()
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        try:
            while True:
                left = deadline - time.monotonic()
                if left <= 0 or not poll.poll(left * 1000):
                    raise Error(f"run {' '.join(self.argv)}: no answer in time")
                chunk = os.read(self._read, 65536)
                if not chunk:
                    break
                data += chunk
            pidfd = os.pidfd_open(self.pid)
            try:
                if not process.wait_for(pidfd, max(0.0, deadline - time.monotonic())):
                    raise Error(f"run {' '.join(self.argv)}: it does not end")
            finally:
                os.close(pidfd)
        except BaseException:
            self.cancel()
            raise
        os.close(self._read)
        status = os.waitpid(self.pid, 0)[1]
        self.pid = 0
        return os.waitstatus_to_exitcode(status), data.decode(errors="replace")

    def cancel(self) -> None:
        """Kill it, unless `finish` or this was called before."""
        if self.pid:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
            os.close(self._read)
            self.pid = 0


def run(argv: Sequence[str], seconds: float = 5) -> tuple[int, str]:
    """Run a program to its end; see Output.finish."""
    return Output(argv).finish(seconds)
