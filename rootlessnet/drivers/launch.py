"""Start a driver in the instance and wait for it in step.

Success is seen at once on the ready pipe, death by its end of file or by the end of the process; a
driver that never answers is killed at the deadline. Whatever fails, nothing of it is left running.
"""

from __future__ import annotations

import os
import select
import time

from rootlessnet.errors import Error
from rootlessnet.kernel import libc, namespaces, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from rootlessnet.drivers.choice import Driver
    from rootlessnet.drivers.options import Options
    from rootlessnet.drivers.target import Features, Target

_ACCEPT_DAD = "/proc/sys/net/ipv6/conf/default/accept_dad"

LOG_TAIL_BYTES = 2000


def connect(
    driver: Driver,
    options: Options,
    features: Features,
    target: Target,
    exit_pipe: int,
    log: int,
    seconds: float,
    waiting: int = -1,
    spawned: Callable[[int], None] = lambda pid: None,
) -> int:
    """Start the driver; its pid (a child of ours) once the network works.

    exit_pipe is the reading end whose other end keeps it alive; log is its open log file; waiting
    is a pipe to the command that waits for us: when it hangs up nobody wants the driver any more.
    spawned is called with the pid as soon as there is one, to do something meanwhile.
    Raises Error with the tail of the log when it died or did not answer.
    """
    deadline = time.monotonic() + seconds
    start_of_log = os.fstat(log).st_size
    with _NoDuplicateDetection(target, wanted=bool(options["enable_ipv6"])):
        pid, ready = driver.start(options, features, target, exit_pipe, log)
        try:
            spawned(pid)
            problem = _wait_until_ready(ready, pid, deadline, seconds, waiting)
        except BaseException:
            _end(pid)
            raise
        finally:
            os.close(ready)
    if problem:
        _end(pid)
        text = log_text(log, start_of_log, driver.NOISE)
        advice = next((hint for key, hint in driver.HINTS if key in text), "")
        raise Error(f"start {driver.NAME}: {problem}{': ' if text else ''}{text}", hint=advice)
    return pid


def _wait_until_ready(ready: int, pid: int, deadline: float, seconds: float, waiting: int) -> str:
    """Empty when it is ready, else what is wrong."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(ready, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        if waiting >= 0:
            poll.register(waiting, 0)  # POLLERR is always told
        events = [fd for fd, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)]
        if not events:
            return f"no answer after {seconds:.1f} s"
        if events == [waiting]:
            return "given up, as the command that waited for it has gone"
        if ready in events and os.read(ready, 16) and pidfd not in events:
            return ""
        # Closed without a word: it is ending. Give it the moment to become a zombie.
        if not process.wait_for(pidfd, max(0.1, deadline - time.monotonic())):
            return "it closed its ready pipe and went on"
    finally:
        os.close(pidfd)
    info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert info is not None
    if info.si_code == os.CLD_EXITED:
        return f"it ended with status {info.si_status}"
    return f"it was killed by signal {info.si_status}"


def _end(pid: int) -> None:
    try:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def log_text(log: int, start: int, noise: tuple[str, ...]) -> str:
    """The tail of what was logged since start, on one line, without lines that begin as noise."""
    with open(f"/proc/self/fd/{log}", "rb") as file:
        file.seek(max(start, os.fstat(log).st_size - LOG_TAIL_BYTES))
        text = file.read().decode(errors="replace")
    lines = [line.strip() for line in text.splitlines()]
    words = [line for line in lines if line and not line.startswith(noise)]
    return "; ".join(dict.fromkeys(words))


class _NoDuplicateDetection:
    """accept_dad=0 in the namespace while tap0 is made, the old value afterwards.

    Duplicate address detection would keep IPv6 unusable for 1 to 2 s (podman issue 11062). A child
    inside the namespace writes both values, and also restores when this process is killed.
    """

    def __init__(self, target: Target, *, wanted: bool) -> None:
        self._target = target
        self._wanted = wanted
        self._pid = 0

    def __enter__(self) -> None:
        if not self._wanted:
            return
        import socket

        ours, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            # --- child ---
            try:
                ours.close()
                self._hold(theirs.fileno())
            finally:
                os._exit(0)
        # --- parent ---
        theirs.close()
        self._channel = ours
        ours.recv(1)

    def _hold(self, channel: int) -> None:
        flags = namespaces.join_flags(self._target.userns) & ~libc.CLONE_NEWNS
        namespaces.join(self._target.pidfd, flags)
        try:
            fd = os.open(_ACCEPT_DAD, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return  # IPv6 is disabled in the kernel
        before = os.read(fd, 16)
        os.pwrite(fd, b"0", 0)
        try:
            os.write(channel, b"1")
            os.read(channel, 1)
        finally:
            os.pwrite(fd, before, 0)

    def __exit__(self, *exception: object) -> None:
        if self._pid:
            self._channel.close()
            os.waitpid(self._pid, 0)
