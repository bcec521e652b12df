"""Which process is meant: a bare pid is no identity, since pids are used again.

An identity is (pid, start time): two processes of one boot never share it. To act on a process
hold a pidfd, got by `open_process`, which checks the identity after the pidfd is open.
"""

from __future__ import annotations

import errno
import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def start_time(pid: int | str) -> int:
    """When the process started, in clock ticks since boot: field 22 of proc_pid_stat(5).

    Raises ProcessLookupError or FileNotFoundError when there is no such process.
    """
    with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:
        # The second field is the command in parentheses, and may hold anything, ") " included.
        return int(stat.read(4096).rpartition(b")")[2].split()[19])


def open_process(pid: int, started: int) -> int:
    """A pidfd of the living process with this identity; the caller owns it.

    Raises ProcessLookupError when it has ended, zombies included, or is another process.
    """
    try:
        pidfd = os.pidfd_open(pid)  # raises ProcessLookupError
    except OverflowError:
        pidfd = -1
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        pidfd = -1
    if pidfd < 0:  # a number that no process can have, as in a damaged record
        raise ProcessLookupError(errno.ESRCH, "No such process", str(pid))
    try:
        # Read after the pidfd is open: from then on the pid is pinned to this very process.
        if start_time(pid) == started and not has_ended(pidfd):
            return pidfd
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(pidfd)
        raise
    os.close(pidfd)
    raise ProcessLookupError(errno.ESRCH, "No such process", str(pid))


def has_ended(pidfd: int) -> bool:
    """Whether the process is a zombie or gone."""
    return wait_for(pidfd, 0)


def wait_for(pidfd: int, seconds: float | None) -> bool:
    """Wait until the process has ended, at most so long; whether it has."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(milliseconds(seconds)))


def milliseconds(seconds: float | None) -> int | None:
    """A time for poll(2), rounded up. It takes no more than 24 days: then one has to look again."""
    return None if seconds is None else min(int(seconds * 1000) + (seconds > 0), 2**31 - 1)


def all_pids() -> Iterator[int]:
    """Every process of this pid namespace that /proc shows."""
    for name in os.listdir("/proc"):
        if name.isdecimal():
            yield int(name)


def inside_netns(inode: int) -> list[int]:
    """The processes whose main thread is in the network namespace with this inode number.

    Processes that we may not look at are left out: none of them can be in a namespace of ours.
    """
    wanted = f"net:[{inode}]"
    found = []
    for pid in all_pids():
        try:
            if os.readlink(f"/proc/{pid}/ns/net") == wanted:
                found.append(pid)
        except OSError:
            continue
    return found


def reap(pid: int) -> str:
    """How a child of ours has ended; one that was adopted is not our child, and tells nothing."""
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return "has ended"
    return f"ended with status {code}" if code >= 0 else f"was killed by signal {-code}"
