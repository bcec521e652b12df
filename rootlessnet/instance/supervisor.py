"""The supervisor: makes the instance, looks after it, and ends it after its last user.

It stays in the caller's own user and mount namespace: signals work, D-Bus sees the real uid, and
slirp4netns reads the real resolv.conf. It does nothing on a timer while all is well; it wakes when

    the lease fifo hangs up     the last user has gone: end, unless there is a reason to stay
    the driver ends             start it again in the living namespace, with back-off
    a process inside ends       (watched only while it alone keeps the instance)
    a signal comes              SIGTERM: end if unused; else go, and leave the rest to a successor

Only an event that is seen again with the lock held counts as the end of use.
"""

from __future__ import annotations

import os
import select
import time

from rootlessnet.drivers import launch, slirp4netns
from rootlessnet.drivers.options import Addressing
from rootlessnet.errors import Error, hint, reason
from rootlessnet.instance import cleanup, holder, lease, lock, resolvconf, state
from rootlessnet.kernel import libc, process, signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from rootlessnet.instance.paths import Instance
    from rootlessnet.instance.settings import Settings

_LOCK_RETRY = 0.02
_BACK_OFF = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_STABLE_SECONDS = 10.0


class Report:
    """One message a line to the command that waits for us: W warning, E error TAB hint, R ready."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def _line(self, kind: str, text: str) -> None:
        try:
            os.write(self._fd, f"{kind}{text}\n".encode(errors="surrogateescape"))
        except OSError:
            pass  # the command has gone; its lease too

    def pid(self) -> None:
        self._line("P", str(os.getpid()))

    def warn(self, text: str) -> None:
        say(f"warning: {text}")
        self._line("W", text)

    def fail(self, error: BaseException) -> None:
        self._line("E", f"{reason(error)}\t{hint(error)}")

    def ready(self) -> None:
        self._line("R", "")
        os.close(self._fd)


def say(text: str) -> None:
    """A line in the log, which is our stderr."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    try:
        os.write(2, f"{stamp} supervisor: {text}\n".encode(errors="surrogateescape"))
    except OSError:
        pass


def main(
    instance: Instance, settings: Settings, lock_fd: int, reader: int, report_fd: int
) -> NoReturn:
    """Become a daemon and run the instance to its end; called in a fresh child of a command.

    The lock is held exclusively through lock_fd, which is shared with that command.
    """
    status = 1
    try:
        report = Report(report_fd)
        supervisor = None
        try:
            _daemonize(instance, [lock_fd, reader, report_fd])
            report.pid()
            supervisor = Supervisor(instance, settings, reader)
            supervisor.create(report)
        except BaseException as error:
            say(f"start failed: {reason(error)}")
            if supervisor:
                supervisor.undo()
            cleanup.clear(instance)
            report.fail(error)
            if isinstance(error, (Error, OSError)):
                os._exit(1)
            raise
        os.close(lock_fd)
        report.ready()
        supervisor.run()
        status = 0
    except BaseException:
        import traceback

        say("bug: " + traceback.format_exc())
    finally:
        os._exit(status)


def _left(deadline: float) -> float:
    return max(0.1, deadline - time.monotonic())


def _daemonize(instance: Instance, keep: list[int]) -> None:
    import daemon

    log = open(instance.path(state.LOG), "ab", buffering=0)
    daemon.DaemonContext(
        # The default guesses from our parent and stdin, and guesses wrong in containers.
        detach_process=True,
        files_preserve=keep,
        stdout=log,
        stderr=log,
        umask=0o077,
        working_directory="/",
        signal_map={},
    ).open()
    libc.set_process_name("rootlessnet")


class Supervisor:
    """One running instance; its processes, descriptors and published state."""

    def __init__(self, instance: Instance, settings: Settings, reader: int) -> None:
        self.instance = instance
        self.settings = settings
        self.reader = reader
        self.addressing = Addressing(str(settings.options["cidr"]))
        self.log = 2
        self.restarts = 0
        self.driver_pid = 0
        self.driver_pidfd = -1
        self._driver_since = 0.0
        self._attempt = 0
        self._retry_at = 0.0
        self._idle_since = 0.0
        self._stop = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)

    # -- making it ---------------------------------------------------------------------------------

    def create(self, report: Report) -> None:
        """Namespaces, mounts, driver; published last. Raises Error; `undo` is up to the caller."""
        settings, instance = self.settings, self.instance
        deadline = time.monotonic() + settings.timeout
        probe = slirp4netns.Probe(settings.program)
        self._exit_read, exit_write = os.pipe()
        root = instance.path(state.ROOT)
        os.mkdir(root, 0o700)
        host = resolvconf.host_content()
        fallback = bool(settings.options["dns_fallback"])
        if not host.nameservers and not fallback:
            report.warn(
                "the host's /etc/resolv.conf names no server: names will not be resolved inside "
                "(-o dns_fallback=true asks public servers)"
            )
        text = resolvconf.compose(
            host,
            self.addressing.dns,
            ipv6=bool(settings.options["enable_ipv6"]),
            fallback=fallback,
        )
        state.replace(f"{root}/resolv.conf", text.encode())
        os.chmod(f"{root}/resolv.conf", 0o644)
        runtime_dir = os.path.dirname(instance.base)
        try:
            starting = holder.start(root, runtime_dir, exit_write, settings.timeout)
        except BaseException:
            probe.cancel()
            raise
        try:
            self.holder = starting.record
            self.holder_pidfd = os.pidfd_open(self.holder.pid)
            state.write_holder(instance, self.holder)
            if starting.warning:
                report.warn(starting.warning)
            self.features = probe.finish(_left(deadline))
            self._connect(_left(deadline))
            self._publish("running")
            starting.stay()
        finally:
            starting.close()
        os.close(exit_write)
        say(f"running: {instance.static_dir}, holder {self.holder.pid}, driver {self.driver_pid}")

    def _connect(self, seconds: float) -> None:
        target = launch.Target(self.holder.pid, self.holder_pidfd, self.holder.userns)
        self.driver_pid = launch.connect(
            self.settings.options, self.features, target, self._exit_read, self.log, seconds
        )
        self.driver_pidfd = os.pidfd_open(self.driver_pid)
        self._driver_since = time.monotonic()

    def undo(self) -> None:
        """End what a failed start has made so far; the directory is left to cleanup.clear."""
        for pid in (self.driver_pid, getattr(self, "holder", None) and self.holder.pid):
            if pid:
                try:
                    os.kill(pid, 9)
                    os.waitpid(pid, 0)
                except (ProcessLookupError, ChildProcessError):
                    pass

    def _publish(self, how: str) -> None:
        """Write state.json."""
        options = self.settings.options
        addressing = self.addressing
        alive = self.driver_pid != 0
        record: dict[str, Any] = {
            "version": 1,
            "boot_id": state.boot_id(),
            "name": self.instance.name,
            "static_dir": self.instance.static_dir,
            "state": how,
            "netns": {"inode": self.holder.netns},
            "userns_inode": self.holder.userns,
            "linger": self.settings.linger,
            "supervisor": {
                "pid": os.getpid(),
                "started": process.start_time("self"),
                "scope": None,
            },
            "holder": {"pid": self.holder.pid, "started": self.holder.started},
            "driver": {
                "name": self.settings.driver,
                "version": self.features.version,
                "program": self.settings.program,
                "pid": self.driver_pid if alive else None,
                "started": process.start_time(self.driver_pid) if alive else None,
                "restarts": self.restarts,
                "options": options,
                "cidr": addressing.cidr,
                "gateway": addressing.gateway,
                "dns": addressing.dns,
                "address": addressing.address,
                "mtu": options["mtu"],
                "ipv6": options["enable_ipv6"],
            },
        }
        state.write(self.instance, record)

    # -- looking after it --------------------------------------------------------------------------

    def run(self) -> None:
        """Until nobody uses it any more, and it has been given back."""
        import signal

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        watched: list[int] = []
        # A user may have gone before we came here; the fifo tells.
        unused = not lease.has_users(self.reader)
        if unused:
            self._idle_since = time.monotonic()
        while True:
            if unused or self._stop:
                verdict = self._try_to_end(watched)
                if verdict == _ENDED:
                    return
                if verdict == _USED:
                    if self._stop:
                        say("asked to stop while in use: leaving the instance to a successor")
                        return
                    unused = False
                    self._idle_since = 0.0
            events = self._wait(self._timeout(unused, bool(watched)), watched, unused)
            if self.reader in events:
                unused = not lease.has_users(self.reader)
                if unused:
                    self._reopen_reader()
                    self._idle_since = time.monotonic()
            if self.driver_pidfd in events:
                self._driver_ended()
            if self._retry_at and time.monotonic() >= self._retry_at:
                self._restart_driver()
            if any(fd in events for fd in watched):
                unused = not lease.has_users(self.reader)
            for fd in watched:
                os.close(fd)
            watched.clear()

    def _on_signal(self, number: int, frame: object) -> None:
        self._stop = True

    def _timeout(self, unused: bool, watching: bool) -> float | None:
        now = time.monotonic()
        moments = []
        if self._retry_at:
            moments.append(self._retry_at - now)
        if unused and not watching:
            left = self._idle_since + self.settings.linger - now
            # Past it we are here only because somebody else holds the lock for a moment.
            moments.append(left if left > 0 else _LOCK_RETRY)
        return max(0.0, min(moments)) if moments else None

    def _wait(self, seconds: float | None, watched: list[int], unused: bool) -> set[int]:
        poll = select.poll()
        for fd in (self.reader, self.driver_pidfd, self._wake_read, *watched):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(None if seconds is None else int(seconds * 1000) + 1)}
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
        return ready

    def _reopen_reader(self) -> None:
        """Forget the hang-up: a fresh reading end hangs up only after the next writer. The new one
        is open before the old one is closed, so a user always finds a reader."""
        fresh = lease.open_reader(self.instance)
        os.close(self.reader)
        self.reader = fresh

    def _try_to_end(self, watched: list[int]) -> str:
        """End the instance if it really is unused. watched gets pidfds of processes that alone
        keep it."""
        if not self._stop and time.monotonic() < self._idle_since + self.settings.linger:
            return _WAITING
        lock_fd = lock.open_file(self.instance)
        try:
            if not lock.try_acquire(lock_fd, lock.EXCLUSIVE):
                return _WAITING
            if lease.has_users(self.reader) or self._named_leases():
                return _USED
            watched += self._others_inside()
            if watched:
                return _WAITING if not self._stop else _USED
            self._end()
            return _ENDED
        finally:
            os.close(lock_fd)

    def _named_leases(self) -> list[str]:
        try:
            return os.listdir(self.instance.path(state.LEASES))
        except FileNotFoundError:
            return []

    def _others_inside(self) -> list[int]:
        """pidfds of the processes in the network namespace that are none of ours.

        A program that closed all its descriptors has no lease any more, but uses the network.
        """
        found = []
        for pid in process.inside_netns(self.holder.netns):
            if pid in (self.holder.pid, os.getpid()):
                continue
            try:
                found.append(os.pidfd_open(pid))
            except ProcessLookupError:
                continue
        return found

    def _end(self) -> None:
        say("unused: ending")
        if self.driver_pid:
            signals.send(self.driver_pidfd, signals.SIGTERM)
            if not process.wait_for(self.driver_pidfd, 0.5):
                signals.send(self.driver_pidfd, signals.SIGKILL)
        try:
            cleanup.clear(self.instance)
        except Error as error:
            say(reason(error))

    # -- the driver --------------------------------------------------------------------------------

    def _driver_ended(self) -> None:
        status = "ended"
        try:
            code = os.waitstatus_to_exitcode(os.waitpid(self.driver_pid, 0)[1])
            status = f"ended with status {code}" if code >= 0 else f"was killed by signal {-code}"
        except ChildProcessError:
            pass  # adopted: not our child
        say(f"{self.settings.driver} {self.driver_pid} {status}")
        os.close(self.driver_pidfd)
        self.driver_pid, self.driver_pidfd = 0, -1
        if time.monotonic() - self._driver_since > _STABLE_SECONDS:
            self._attempt = 0
        self._schedule_restart()
        if self._retry_at > time.monotonic():
            self._publish("degraded")

    def _schedule_restart(self) -> None:
        pause = _BACK_OFF[min(self._attempt, len(_BACK_OFF) - 1)]
        self._attempt += 1
        self._retry_at = time.monotonic() + pause

    def _restart_driver(self) -> None:
        self._retry_at = 0.0
        self.restarts += 1
        try:
            self._connect(self.settings.timeout)
        except (Error, OSError) as error:
            say(f"restart: {reason(error)}")
            self._schedule_restart()
            self._publish("degraded")
            return
        self._publish("running")
        say(f"{self.settings.driver} restarted as {self.driver_pid}")


_ENDED = "ended"
_USED = "used"
_WAITING = "waiting"
