"""Give everything of an instance back: best effort, idempotent, and nothing is started for it."""

from __future__ import annotations

import errno
import os

from rootlessnet.errors import Failures
from rootlessnet.instance import containers, dns, portkeeper, state
from rootlessnet.kernel import idmap, libc, process, signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from rootlessnet.instance.paths import Instance

_PATIENCE = 2.0
"""Seconds for a process that was sent SIGKILL to be gone."""


def end(pid: int, started: int, *, grace: float = 0.0) -> None:
    """End a process of ours by its identity; one that is gone or another is left alone.

    With a grace in seconds it gets SIGTERM and so much time first.
    """
    try:
        pidfd = process.open_process(pid, started)
    except (ProcessLookupError, FileNotFoundError):
        return
    try:
        if grace:
            signals.send(pidfd, signals.SIGTERM)
            if process.wait_for(pidfd, grace):
                return
        signals.send(pidfd, signals.SIGKILL)
        process.wait_for(pidfd, _PATIENCE)
    finally:
        os.close(pidfd)


def clear(instance: Instance) -> None:
    """End what is left of an instance and remove its directory.

    The caller holds the lock exclusively and has made sure that nobody uses it. Every step is done
    whatever the others do; raises Failures for those that failed.
    """
    steps: list[Callable[[], None]] = []
    forwarder = portkeeper.read_record(instance)
    if forwarder:
        steps.append(lambda: end(*forwarder, grace=0.5))
    record = state.read(instance)
    driver = record.get("driver") if record else None
    if isinstance(driver, dict) and isinstance(driver.get("pid"), int):
        pid, started = driver["pid"], driver.get("started")
        if isinstance(started, int):
            steps.append(lambda: end(pid, started, grace=0.5))
    holder = state.read_holder(instance) or state.living_holder(instance)
    if holder:
        steps.append(lambda: dns.end(instance, holder.netns))
        steps.append(lambda: _end_holder(holder))
    steps.append(lambda: containers.remove_pins(instance))
    steps.append(lambda: remove_tree(instance.directory))
    failed: list[BaseException] = []
    for step in steps:
        try:
            step()
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError as error:
            failed.append(error)
    if failed:
        raise Failures("clear the instance", failed)


def _end_holder(holder: state.Holder) -> None:
    pidfd = holder.open()
    try:
        signals.send(pidfd, signals.SIGKILL)
        process.wait_for(pidfd, _PATIENCE)
    finally:
        os.close(pidfd)


def remove_tree(path: str) -> None:
    """Remove a directory of ours with all that is in it; one that is gone is no error.

    What processes inside made under a subordinate id can only be removed by root of a user
    namespace with those ids, so a failed removal is tried again from one. Raises OSError.
    """
    import shutil

    _refuse_mounts(path)
    if os.path.islink(path) or not os.path.isdir(path):
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        return
    os.chmod(path, 0o700)
    shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path) and os.geteuid() != 0:
        _remove_as_mapped_root(path)
    if os.path.lexists(path):
        shutil.rmtree(path)


def _refuse_mounts(path: str) -> None:
    """Raise OSError when anything is mounted below path: as seen from outside nothing is, and from
    inside the mounts are directories of the host."""
    from rootlessnet.instance import mounts

    if any(point.startswith(f"{path}/") for point in mounts.mount_points()):
        raise OSError(errno.EBUSY, "something is mounted below it", path)


def _remove_as_mapped_root(path: str) -> None:
    import shutil

    ready_read, ready_write = os.pipe()
    go_read, go_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        # --- child ---
        try:
            os.close(go_write)
            libc.unshare(libc.CLONE_NEWUSER)
            os.write(ready_write, b"1")
            if os.read(go_read, 1):
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os._exit(0)
    # --- parent ---
    os.close(ready_write)
    os.close(go_read)
    try:
        if os.read(ready_read, 1):
            idmap.apply(pid)
            os.write(go_write, b"1")
    finally:
        os.close(ready_read)
        os.close(go_write)
        os.waitpid(pid, 0)
