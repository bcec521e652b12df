"""The supervisor: makes the instance, looks after it, and ends it after its last user.

It stays in the caller's own user and mount namespace: signals work, D-Bus sees the real uid, and
the driver reads the real resolv.conf. It does nothing on a timer while all is well; it wakes when

    the lease fifo hangs up     the last user has gone: end, unless there is a reason to stay
    the driver ends             start it again in the living namespace, with back-off
    the holder ends             a new one joins the namespaces, which are pinned here
    the host's resolv.conf      changes: so does the one inside
    somebody wants a port       start the forwarder (rootlessnet.instance.portkeeper), or start it
                                again when it ends
    something inside ends       (watched only while it alone keeps the instance)
    a container ends            it is taken down (rootlessnet.instance.keeper)
    a signal comes              SIGTERM: end if unused; else go, and leave the rest to a successor

Only an event that is seen again with the lock held counts as the end of use.

A successor adopts what a dead supervisor has left (rootlessnet.instance.recovery): everything it
needs is in state.json, and every process there is checked by pid and start time.
"""

from __future__ import annotations

import os
import resource
import select
import time

from rootlessnet.drivers import choice
from rootlessnet.drivers.target import Target
from rootlessnet.errors import Error, hint, reason
from rootlessnet.instance import (
    cleanup,
    cni_results,
    dns,
    follow,
    holder,
    keeper,
    lease,
    lock,
    logfile,
    look,
    mounts,
    named,
    portkeeper,
    resolvconf,
    state,
    uplink,
)
from rootlessnet.instance.logfile import say
from rootlessnet.kernel import files, libc, namespaces, process, signals
from rootlessnet.kernel.trace import trace
from rootlessnet.systemd import scope

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from rootlessnet.instance.paths import Instance
    from rootlessnet.instance.recovery import Left
    from rootlessnet.instance.settings import Settings

_LOCK_RETRY = 0.02
_RETRY = 1.0
_TOGETHER = 0.1
_USUAL_INTERFACES = ("lo", choice.TAP)

_LOG = 2
"""Descriptor: stderr is the log, once it is a daemon."""

_ENDED = "ended"
_USED = "used"
_WAITING = "waiting"


class Report:
    """One message a line to the command that waits for us: W warning, E error TAB hint, R ready."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def _line(self, kind: str, text: str) -> None:
        try:
            os.write(self.fd, f"{kind}{text}\n".encode(errors="surrogateescape"))
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
        os.close(self.fd)


def main(
    instance: Instance,
    settings: Settings,
    lock_fd: int,
    reader: int,
    report_fd: int,
    left: Left | None,
) -> NoReturn:
    """Become a daemon and run the instance to its end; called in a fresh child of a command.

    The lock is held exclusively through lock_fd, which is shared with that command. With left the
    instance is there and is taken over.
    """
    status = 1
    try:
        report = Report(report_fd)
        supervisor = None
        keep = [lock_fd, reader, report_fd]
        if left:
            keep += [left.pins.net, left.pins.mnt, left.pins.user]
        try:
            _daemonize(instance, keep)
            report.pid()
            trace("start:daemon")
            supervisor = Supervisor(instance, settings, reader)
            if left:
                supervisor.adopt(report, left)
            else:
                supervisor.create(report)
        except BaseException as error:
            if supervisor:
                say(f"start failed: {reason(error)}")
            if not left:
                if supervisor:
                    supervisor.undo()
                try:
                    cleanup.clear(instance)
                except (Error, OSError) as remains:
                    say(reason(remains))  # the command that waits tries again
            report.fail(error)
            if isinstance(error, (Error, OSError)):
                os._exit(1)
            raise
        os.close(lock_fd)
        report.ready()
        try:
            supervisor.run()
        except BaseException:
            supervisor.give_up()
            raise
        status = 0
    except BaseException:
        import traceback

        say("bug: " + traceback.format_exc())
    finally:
        os._exit(status)


def _left(deadline: float) -> float:
    return max(0.1, deadline - time.monotonic())


def _open_log(path: str, flags: int) -> int:
    try:
        return files.open_regular(path, flags)
    except OSError:
        os.unlink(path)  # not ours, and not worth to be without a supervisor
        return files.open_regular(path, flags)


def _daemonize(instance: Instance, keep: list[int]) -> None:
    import daemon

    os.umask(0o077)
    log = open(instance.path(state.LOG), "ab", buffering=0, opener=_open_log)
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
    # The driver inherits it, and needs a descriptor for every connection: at the usual 1024 new
    # ones are refused after as many quick ones.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    libc.set_process_name("rootlessnet")
    libc.set_command_line(f"rootlessnet: supervisor of {instance.name}")


class Supervisor:
    """One running instance; its processes, descriptors and published state."""

    def __init__(self, instance: Instance, settings: Settings, reader: int) -> None:
        self.instance = instance
        self.settings = settings
        self.reader = reader
        self.uplink = uplink.Uplink(settings, _LOG)
        self.scope: str | None = None
        self.holder_pidfd = -1
        self._idle_since = 0.0
        self._stop = False
        self._orphaned = False
        self._unpublished = False
        self._holder_retry_at = 0.0
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._mirror = logfile.Mirror(instance.path(state.LOG), instance.name)
        self._keeper = keeper.Keeper(instance)

    # -- making it ---------------------------------------------------------------------------------

    def create(self, report: Report) -> None:
        """Namespaces, mounts, driver; published last. Raises Error; `undo` is up to the caller.

        While the driver starts, a child gets ready to move us all into a scope.
        """
        settings, instance = self.settings, self.instance
        deadline = time.monotonic() + settings.timeout
        probe = self.uplink.driver.Probe(settings.program)
        mover = scope.Mover(instance.name) if scope.wanted() else None
        starting = None
        try:
            self._exit_read, self._exit_write = os.pipe()
            root = instance.path(state.ROOT)
            os.mkdir(root, 0o700)
            self._write_resolv_conf(report)
            trace("start:resolv.conf")
            starting = holder.start(
                root,
                os.path.dirname(instance.base),
                self._exit_write,
                settings.timeout,
                self.uplink.driver.CONGESTION_CONTROL,
            )
            self._hold(starting)
            if starting.warning:
                report.warn(starting.warning)
            trace("start:holder")
            features = probe.finish(_left(deadline))

            def move(driver: int) -> None:
                if mover:
                    mover.request([os.getpid(), self.holder.pid, driver])

            self.uplink.connect(
                features, self._target(), self._exit_read, _left(deadline), report.fd, move
            )
            trace("start:driver")
            if mover:
                self._finish_move(mover, report)
                trace("start:scope")
            self._keep_ports()
            self._publish("running")
            trace("start:published")
            starting.stay()
            trace("start:stay")
        finally:
            probe.cancel()
            if mover:
                mover.close()
            if starting:
                starting.close()
        self._follow()
        say(f"running: {instance.static_dir}, holder {self.holder.pid}, driver {self.uplink.pid}")

    def adopt(self, report: Report, left: Left) -> None:
        """Take over what is running: nobody inside notices. Raises Error and changes nothing."""
        record = left.record
        self.pins = left.pins
        self.holder = left.holder
        self._mirror.skip()
        say(f"taking over from supervisor {record['supervisor']['pid']}")
        mover = scope.Mover(self.instance.name) if scope.wanted() else None
        try:
            former = None
            try:
                self.holder_pidfd = left.holder.open()
                self._exit_read, self._exit_write = _reopen_exit_pipe(left.holder.pid)
            except (ProcessLookupError, FileNotFoundError):
                former = self._target()
                self._exit_read, self._exit_write = os.pipe()
                self._replace_holder()
            trace("adopt:holder")
            self.uplink.adopt(record["driver"], self._target(), self._exit_read, former)
            trace("adopt:driver")
            if mover:
                drivers = [self.uplink.pid] if self.uplink.pid else []
                mover.request([os.getpid(), self.holder.pid, *drivers])
                self._finish_move(mover, report)
        finally:
            if mover:
                mover.close()
        self._keep_ports()
        self._republish()
        self._keeper.adopt(self.pins)
        trace("adopt:published")
        self._follow()
        self._update_resolv_conf(settled=True)

    def _write_resolv_conf(self, report: Report) -> None:
        fallback = bool(self.settings.options["dns_fallback"])
        if not resolvconf.host_content().nameservers and not fallback:
            report.warn(
                "the host's /etc/resolv.conf names no server: names will not be resolved inside "
                "(-o dns_fallback=true asks public servers)"
            )
        self.uplink.asks = resolvconf.first_server()
        path = self._resolv_conf()
        files.replace(path, self._compose().encode(), mode=0o644)

    def _resolv_conf(self) -> str:
        return f"{self.instance.path(state.ROOT)}/resolv.conf"

    def _compose(self) -> str:
        options = self.settings.options
        return resolvconf.compose(
            resolvconf.host_content(),
            self.uplink.addressing.dns,
            ipv6=bool(options["enable_ipv6"]),
            fallback=bool(options["dns_fallback"]),
            outdated=self.uplink.asks_another(),
        )

    def _keep_ports(self) -> None:
        self._ports = portkeeper.Keeper(self.instance, self._exit_read, _LOG)

    def _follow(self) -> None:
        self._follower = follow.Follower()
        if self._follower.problem:
            say(f"resolv.conf inside will not follow the host's: {self._follower.problem}")

    def _hold(self, starting: holder.Starting) -> None:
        """Take a new holder on: pinned, watched and recorded. If it raises nothing has changed."""
        pidfd = os.pidfd_open(starting.pid)
        try:
            pins = namespaces.Pins(starting.pid)
            try:
                state.write_holder(self.instance, starting.record)
            except BaseException:
                pins.close()
                raise
        except BaseException:
            os.close(pidfd)
            raise
        self.holder, self.holder_pidfd, self.pins = starting.record, pidfd, pins

    def _finish_move(self, mover: scope.Mover, report: Report) -> None:
        problem = mover.finish()
        if problem:
            report.warn(
                f"not moved into a systemd scope, so the network may end with the unit that "
                f"started it: {problem}"
            )
        else:
            self.scope = mover.unit

    def _target(self) -> Target:
        return Target(
            self.holder.pid, self.holder_pidfd, self.holder.userns, self.instance.directory
        )

    def undo(self) -> None:
        """End what a failed start has made so far; the directory is left to cleanup.clear."""
        for pid in (self.uplink.pid, self.holder.pid if self.holder_pidfd >= 0 else 0):
            if pid:
                try:
                    os.kill(pid, signals.SIGKILL)
                    os.waitpid(pid, 0)
                except (ProcessLookupError, ChildProcessError):
                    pass

    def _republish(self) -> None:
        """Write state.json; when there is no room for it, later."""
        try:
            self._publish("running" if self.uplink.pid else "degraded")
            self._unpublished = False
        except (Error, OSError) as error:
            if not self._unpublished:
                say(f"{reason(error)}: trying again")
            self._unpublished = True

    def _publish(self, how: str) -> None:
        """Write state.json. Raises Error or OSError."""
        record: dict[str, Any] = {
            "version": 1,
            "boot_id": state.boot_id(),
            "name": self.instance.name,
            "static_dir": self.instance.static_dir,
            "state": how,
            "netns": {"inode": self.holder.netns},
            "userns_inode": self.holder.userns,
            "linger": self.settings.linger,
            "timeout": self.settings.timeout,
            "supervisor": {
                "pid": os.getpid(),
                "started": process.start_time("self"),
                "scope": self.scope,
            },
            "holder": {"pid": self.holder.pid, "started": self.holder.started},
            "driver": self.uplink.record(),
        }
        marker = self.instance.path(state.DEGRADED)
        if not self.uplink.pid:
            os.close(files.open_regular(marker, os.O_CREAT | os.O_RDONLY))
        elif os.path.exists(marker):
            os.unlink(marker)
        state.write(self.instance, record)

    # -- looking after it --------------------------------------------------------------------------

    def run(self) -> None:
        """Until nobody uses it any more, and it has been given back."""
        import signal

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signals.let_through()
        watched: list[int] = []
        # A user may have gone before we came here; the fifo tells.
        unused = self._is_unused()
        while True:
            if unused or self._stop:
                verdict = self._try_to_end(watched)
                if verdict == _ENDED:
                    return
                if self._stop:
                    say("asked to stop while in use: leaving the instance to a successor")
                    return
                if verdict == _USED:
                    unused = False
            ready = self._wait(self._timeout(unused, bool(watched)), watched)
            if self._is_told_to_stop(ready):
                continue
            if self.reader in ready or any(fd in ready for fd in watched):
                unused = self._is_unused()
            if self.uplink.pidfd in ready:
                self.uplink.ended()
                self._republish()
            if self.holder_pidfd in ready and not self._holder_ended():
                unused = True
            self._chores(ready)
            for fd in watched:
                os.close(fd)
            watched.clear()

    def _is_unused(self) -> bool:
        """Whether the last lease is gone; then the time to linger begins."""
        if self._orphaned:
            return True
        if lease.has_users(self.reader):
            return False
        # A fresh reading end hangs up only after the next writer. The new one is open before the
        # old one is closed, so a user always finds a reader.
        try:
            fresh = lease.open_reader(self.instance)
        except OSError:
            # The directory was removed, at a logout for instance: nobody can come any more.
            say("the state directory is gone")
            self._orphaned = True
            fresh = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.close(self.reader)
        self.reader = fresh
        self._idle_since = time.monotonic()
        return True

    def _on_signal(self, number: int, frame: object) -> None:
        self._stop = True

    def _timeout(self, unused: bool, watching: bool) -> float | None:
        now = time.monotonic()
        moments = []
        if self.uplink.retry_at:
            moments.append(self.uplink.retry_at - now)
        if self._holder_retry_at:
            moments.append(self._holder_retry_at - now)
        if self._unpublished:
            moments.append(_RETRY)
        if self._follower.due:
            moments.append(self._follower.due - now)
        if self._ports.retry_at:
            moments.append(self._ports.retry_at - now)
        if unused and not watching:
            left = self._idle_since + self.settings.linger - now
            # Past it we are here only because somebody else holds the lock for a moment.
            moments.append(left if left > 0 else _LOCK_RETRY)
        return max(0.0, min(moments)) if moments else None

    def _wait(self, seconds: float | None, watched: list[int]) -> set[int]:
        poll = select.poll()
        for fd in (
            -1 if self._orphaned else self.reader,
            self.uplink.pidfd,
            self.holder_pidfd,
            self._wake_read,
            self._follower.fd,
            self._mirror.fd,
            *self._keeper.descriptors(),
            *self._ports.descriptors,
            *watched,
        ):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(process.milliseconds(seconds))}
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
        return ready

    def _is_told_to_stop(self, ready: set[int]) -> bool:
        """Whether a SIGTERM has come; where a helper had one, after waiting a moment for ours.

        At a logout systemd sends it to all of us, in any order. A helper that was replaced then
        would get none, and hold up the end of the session until systemd loses patience.
        """
        for pidfd in ready & {self.uplink.pidfd, self.holder_pidfd}:
            try:
                found = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)
                if found and found.si_status != signals.SIGTERM:
                    continue
            except ChildProcessError:
                pass  # adopted, so nobody tells how it ended
            if not self._stop:
                select.select([self._wake_read], [], [], _TOGETHER)
        return self._stop

    def _chores(self, ready: set[int]) -> None:
        now = time.monotonic()
        if self._holder_retry_at and now >= self._holder_retry_at:
            self._replace_lost_holder()
        if self.uplink.retry_at and now >= self.uplink.retry_at:
            self._restart_driver()
        if self._unpublished:
            self._republish()
        self._ports.changed(ready)
        if self._mirror.fd in ready:
            self._mirror.changed()
        self._keeper.look(ready, self.pins)
        if self._follower.fd in ready and self._follower.changed(now):
            # At once, as the mount over a replaced file is gone by now.
            self._update_resolv_conf(settled=False)
        if self._follower.due and now >= self._follower.due:
            self._follower.watch()
            self._update_resolv_conf(settled=True)

    def _update_resolv_conf(self, *, settled: bool) -> None:
        """Bring the one inside up to date. Until a change has settled, a file that is missing or
        names no server is one that is about to be written."""
        if self.holder_pidfd < 0:
            return
        try:
            servers = resolvconf.host_content().nameservers
            if not settled and not servers:
                return
            if settled and self.uplink.asks_another() and self.uplink.pid:
                ipv6 = bool(self.settings.options["enable_ipv6"])
                if servers and not resolvconf.usable(servers, ipv6):
                    # Only the driver can reach them, and only a new one will.
                    self.uplink.begin_again("has to ask another name server")
                    return
            text = self._compose().encode()
            if mounts.resolv_conf_inside(self.holder.pid) == text:
                return
            number = time.monotonic_ns()
            new = f"{self._resolv_conf()}.{number}"
            files.replace(new, text, mode=0o644)
            stage = f"{self.instance.path(state.ROOT)}/mirror/etc-{number}"

            def replace() -> None:
                self.pins.join()
                mounts.replace_resolv_conf(new, stage)

            namespaces.run(replace)
            say("resolv.conf inside follows the host's")
        except (Error, OSError) as error:
            say(f"follow resolv.conf: {reason(error)}")

    # -- the end -----------------------------------------------------------------------------------

    def _lingers(self) -> bool:
        """Whether the time is not over for which it stays after its last user."""
        return time.monotonic() < self._idle_since + self.settings.linger

    def _try_to_end(self, watched: list[int]) -> str:
        """End the instance if it really is unused. watched gets descriptors that become readable
        when it is worth while to look again, if somebody without a lease keeps it."""
        if not self._stop and self._lingers():
            return _WAITING
        if self._orphaned:
            watched += self._keepers()
            if watched:
                return _WAITING
            self._end()
            return _ENDED
        try:
            lock_fd = lock.open_file(self.instance)
        except Error as error:
            say(reason(error))
            self._orphaned = not os.path.isdir(self.instance.base)
            return _WAITING
        try:
            if not lock.try_acquire(lock_fd, lock.EXCLUSIVE):
                return _WAITING
            if lease.has_users(self.reader) or named.names(self.instance):
                return _USED
            if self._keeper.has_users():
                self._keeper.finish_pending()
                return _USED
            watched += self._keepers()
            if watched:
                return _WAITING
            self._end()
            return _ENDED
        finally:
            os.close(lock_fd)

    def _keepers(self) -> list[int]:
        """Descriptors to watch for those who use the instance without a lease."""
        found = look.watch(look.inside(self.holder)) + cni_results.watch(self.instance)
        if self.holder_pidfd < 0 or look.extra_interfaces(self.holder.pid, _USUAL_INTERFACES):
            # Listening begins before the look, so that no change falls between them.
            events = look.link_events(self.pins)
            if look.plugged_in(self.pins):
                found.append(events)
            else:
                os.close(events)
        return found

    def _end(self) -> None:
        say("unused: ending")
        trace("end:decided")
        self._ports.end()
        self.uplink.end()
        trace("end:driver")
        dns.end(self.instance, self.holder.netns)
        # By what we know ourselves: the record may be damaged.
        if self.holder_pidfd >= 0:
            signals.send(self.holder_pidfd, signals.SIGKILL)
        trace("end:holder")
        self.pins.close()
        self._mirror.changed()
        try:
            cleanup.clear(self.instance)
        except (Error, OSError) as error:
            say(reason(error))
        trace("end:cleared")

    def give_up(self) -> None:
        """After a failure nobody foresaw: leave what is in use to a successor, end the rest."""
        try:
            if self._is_used():
                return
        except OSError:
            return
        for pidfd in (self.uplink.pidfd, self.holder_pidfd):
            if pidfd >= 0:
                signals.send(pidfd, signals.SIGKILL)

    # -- helpers that end --------------------------------------------------------------------------

    def _holder_ended(self) -> bool:
        """Put a new holder in its place; False when nobody needs one."""
        process.reap(self.holder.pid)
        os.close(self.holder_pidfd)
        self.holder_pidfd = -1
        say(f"holder {self.holder.pid} has ended")
        if not self._is_used() and not self._lingers():
            return False
        self._replace_lost_holder()
        return True

    def _is_used(self) -> bool:
        """Whether anything at all keeps the instance."""
        return bool(
            lease.has_users(self.reader)
            or named.names(self.instance)
            or self._keeper.has_users()
            or cni_results.names(self.instance)
            or look.inside(self.holder)
        )

    def _replace_lost_holder(self) -> None:
        try:
            self._replace_holder()
            self._holder_retry_at = 0.0
        except (Error, OSError) as error:
            # The pins keep the namespaces, so those inside have lost nothing.
            if not self._holder_retry_at:
                say(f"replace the holder: {reason(error)}: trying again")
            self._holder_retry_at = time.monotonic() + _RETRY
            return
        self._republish()

    def _replace_holder(self) -> None:
        starting = holder.replace(self.pins, self.holder.shared, self._exit_write)
        before = self.pins
        try:
            self._hold(starting)
            before.close()
            trace("holder:replaced")
            starting.stay()
        finally:
            starting.close()
        say(f"holder {self.holder.pid} has taken its place")

    def _restart_driver(self) -> None:
        if self.uplink.restart(self._target(), self._exit_read):
            trace("restart:driver")
            self._republish()
            if not self.uplink.driver.FOLLOWS_RESOLV_CONF:
                self._update_resolv_conf(settled=True)
        else:
            self._republish()


def _reopen_exit_pipe(pid: int) -> tuple[int, int]:
    """Both ends of the exit pipe, of which the holder has the writing end and no other pipe."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{name}"
        if os.readlink(path).startswith("pipe:"):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), os.open(
                path, os.O_WRONLY | os.O_CLOEXEC
            )
    raise FileNotFoundError(2, "No such file or directory", f"exit pipe of holder {pid}")
