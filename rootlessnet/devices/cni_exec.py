"""Other people's CNI plugins: found on a path, run to their end.

Used by the plugin here that delegates, and by the runtime. What status and output mean is for the
caller to say.
"""

from __future__ import annotations

import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_BUSY_SECONDS = 5.0
_BUSY_PAUSE = 0.05


def find(plugin: str, directories: Sequence[str]) -> str | None:
    """The first regular file of this name in the directories."""
    for directory in directories:
        path = os.path.join(directory, plugin)
        try:
            if stat.S_ISREG(os.stat(path).st_mode):
                return path
        except OSError:
            continue
    return None


def execute(
    path: str,
    environment: Mapping[str, str],
    stdin: bytes,
    *,
    seconds: float | None = None,
    inherit: int = -1,
) -> tuple[int, bytes, bytes]:
    """Run a plugin: its status (as os.waitstatus_to_exitcode), stdout and stderr.

    One that is being replaced at this moment (ETXTBSY) is tried again for some seconds. The plugin
    has the descriptor `inherit` as number 3. Raises OSError when it cannot start, and TimeoutError
    when it has not ended after so many seconds: it is killed then with all in its session.
    """
    # Files in memory rather than pipes: nothing to read while the plugin runs, whatever it prints.
    files: list[int] = []
    try:
        for name in ("stdin", "stdout", "stderr"):
            files.append(os.memfd_create(name))
        written = 0
        while written < len(stdin):
            written += os.write(files[0], stdin[written:])
        os.lseek(files[0], 0, os.SEEK_SET)
        descriptors = dict(enumerate(files))
        if inherit >= 0:
            descriptors[3] = inherit
        pid = _start(path, environment, descriptors)
        status = _wait(pid, seconds)
        return status, _read(files[1]), _read(files[2])
    finally:
        for fd in files:
            os.close(fd)


def _start(path: str, environment: Mapping[str, str], descriptors: dict[int, int]) -> int:
    import time

    from rootlessnet.kernel import spawn

    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return spawn.start([path], descriptors=descriptors, environment=environment)
        except OSError as e:
            if e.errno != errno.ETXTBSY or time.monotonic() > deadline:
                raise
        time.sleep(_BUSY_PAUSE)


def _wait(pid: int, seconds: float | None) -> int:
    from rootlessnet.kernel import process

    try:
        if seconds is not None:
            pidfd = os.pidfd_open(pid)
            try:
                if not process.wait_for(pidfd, seconds):
                    raise TimeoutError(errno.ETIMEDOUT, f"no answer in {seconds:g} s")
            finally:
                os.close(pidfd)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except BaseException:
        # It has a session of its own, with the programs that it started.
        try:
            os.killpg(pid, 9)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        raise


def _read(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)
