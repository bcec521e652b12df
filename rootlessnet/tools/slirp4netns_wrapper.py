"""A supervised slirp4netns: this process is the one that the caller knows, the real one its child.

    caller ── pid, ready and exit pipe, API socket ──> we ── the same ──> slirp4netns ──> tap
                                                        └── a copy of its descriptor ──────┘

Our copy keeps the tap when slirp4netns dies, and with it addresses, routes, hardware address and
interface number, so the next one only has to attach to it (rootlessnet.kernel.tap). What is lost
are the connections that ran through it. For the time between the last descriptor and the next
slirp4netns the tap is persistent, and a guard stands by.

The real one ends with us, whatever ends us: we have the only writing end of its exit pipe. We end

    when the caller's exit pipe hangs up        status 0, as the original
    at SIGTERM, SIGINT, SIGHUP, SIGQUIT         of that signal, as the original
    when the target namespace is gone           status 0; the original stays for ever
    when the first start fails                  as it ended: nothing was promised so far
"""

from __future__ import annotations

import os
import resource
import select
import time

from rootlessnet.drivers import slirp4netns
from rootlessnet.errors import Error, reason
from rootlessnet.kernel import process, signals, spawn, tap
from rootlessnet.kernel.trace import trace
from rootlessnet.systemd import journal, scope
from rootlessnet.tools import slirp4netns_main
from rootlessnet.tools.slirp4netns_line import NotUnderstood
from rootlessnet.tools.target import Target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.tools.slirp4netns_api import Behind, Front
    from rootlessnet.tools.slirp4netns_line import Line

_READY_SECONDS = 30.0
_END_SECONDS = 1.0
_RETRY = 1.0
_MAX_SOCKET_PATH = 107
_BACK_OFF = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_STABLE_SECONDS = 10.0

_SANDBOX = ("enable-sandbox", "create-sandbox")

# In the real one.
_READY_FD, _EXIT_FD, _NETNS_FD, _USERNS_FD = 3, 4, 5, 6


class _Over(Exception):
    """Time to end; with a signal number, of that signal."""

    def __init__(self, why: str, signal: int = 0) -> None:
        super().__init__(why)
        self.signal = signal


class _Failed(Exception):
    """slirp4netns did not get ready; status as os.waitstatus_to_exitcode tells it."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def run(program: str, line: Line) -> int:
    """Be slirp4netns until it is over; the exit status. Raises NotUnderstood, Error."""
    wrapper = Wrapper(program, line)
    try:
        wrapper.start()
        wrapper.watch()
    except _Over as over:
        wrapper.say(f"{over}: ending")
        wrapper.end()
        return signals.die_of(over.signal) if over.signal else 0
    except _Failed as failed:
        wrapper.end()
        for text in wrapper.explain(failed):
            wrapper.say(text)
        return signals.die_of(-failed.status) if failed.status < 0 else failed.status
    except BaseException:
        wrapper.end()
        raise
    return 0


class Wrapper:
    """One supervised slirp4netns."""

    def __init__(self, program: str, line: Line) -> None:
        """Looks at what was given, and takes the descriptors. Raises NotUnderstood."""
        self.program = program
        self.line = line
        self.caller_exit = line.descriptor("exit-fd")
        self.caller_ready = line.descriptor("ready-fd")
        self.target = _target(line)
        self.tap_name = ""
        self.api_path = line.values.get("api-socket", "")
        if len(os.fsencode(self.api_path)) > _MAX_SOCKET_PATH:
            raise NotUnderstood(self.api_path)
        self.front: Front | None = None
        self.behind: Behind | None = None
        self.tap = -1
        self.guard: tap.Guard | None = None
        self.pid, self.pidfd = 0, -1
        self.restarts = 0
        self._has_tap = False
        self._since = 0.0
        self._attempt = 0
        self._retry_at = 0.0
        self._put_back_at = 0.0
        self._signal = 0
        self._journal: journal.Journal | None = None
        self._userns = _open_userns(line)
        _keep_to_ourselves(
            {self.caller_exit, self.caller_ready, self.target.netns, self.target.mounts}
            | {self.target.pidfd, self._userns}
        )
        # Its sandbox mounts a tmpfs on /tmp, for all to see unless it comes into a mount namespace
        # of its own by joining another user namespace (slirp4netns pull request 153).
        self._mounts_in_ours = any(name in line for name in _SANDBOX) and tap.is_owned_by_us(
            self.target.netns
        )
        self._output = [fd for fd in (1, 2) if _is_open(fd) and fd != self.caller_ready]
        self._exit_read, self._exit_write = os.pipe()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Each connection of the real one takes one.
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def say(self, text: str) -> None:
        """A line to where the caller wants it, and to the journal."""
        slirp4netns_main.say(text)
        if self._journal is None and journal.available():
            self._journal = journal.Journal(f"slirp4netns-{os.getpid()}")
        if self._journal:
            self._journal.send(f"{slirp4netns_main.NAME} {os.getpid()}: {text}")

    # -- starting it -------------------------------------------------------------------------------

    def start(self) -> None:
        """The first slirp4netns; the caller is told when the network works."""
        import signal

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, self._on_signal)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signals.let_through()
        mover = scope.Mover(f"rootlessnet-slirp4netns-{os.getpid()}") if scope.wanted() else None
        try:
            self._spawn(mover)
            trace("slirp4netns:started")
            if self.api_path:
                from rootlessnet.tools import slirp4netns_api

                try:
                    self.front = slirp4netns_api.Front(self.api_path)
                except OSError as error:
                    raise Error(f"bind the API socket {self.api_path}") from error
            if mover:
                problem = mover.finish()
                if problem:
                    self.say(f"not moved into user.slice: {problem}")
        finally:
            if mover:
                mover.close()
        if self.caller_ready >= 0:
            try:
                os.write(self.caller_ready, b"1")
                _close(self.caller_ready)
            except OSError:
                pass  # nobody waits any more
        trace("slirp4netns:ready")

    def _arguments(self) -> list[str]:
        """The command line for the real one: at first the caller's, later for the tap that is."""
        line = self.line
        if not self._has_tap:
            options, words = line.passed_on(), line.words
        else:
            known = ("configure", "macaddress", "netns-type", "userns-path")
            options = line.passed_on(*known)
            pid = 0 if self._is_by_path() else self._someone_inside()
            words = [str(pid), *line.words[1:]]
            if not pid:
                words[0] = f"/proc/self/fd/{_NETNS_FD}"
                options.append("--netns-type=path")
                if self._userns >= 0:
                    options.append(f"--userns-path=/proc/self/fd/{_USERNS_FD}")
        words = [words[0], self.tap_name or words[1], *words[2:]]
        ours = [f"--ready-fd={_READY_FD}", f"--exit-fd={_EXIT_FD}"]
        if self.api_path:
            ours.append(f"--api-socket={self._api_directory}/api")
        return [self.program, *options, *ours, "--", *words]

    def _is_by_path(self) -> bool:
        return self.line.values.get("netns-type") == "path"

    def _someone_inside(self) -> int:
        """A process of the namespace and of the user namespace that it belongs to, best the one
        that the caller named. Without one 0, and from then on the namespace goes by its path."""
        owner = tap.owner(self.target.netns)
        inside = process.inside_netns(self.target.inode)
        inside.sort(key=lambda pid: str(pid) != self.line.words[0])
        for pid in inside:
            try:
                if os.stat(f"/proc/{pid}/ns/user").st_ino == os.fstat(owner).st_ino:
                    os.close(owner)
                    return pid
            except OSError:
                continue
        self._userns = owner
        self.line.values["netns-type"] = "path"
        # slirp4netns cannot enter its sandbox there.
        self.line.options = [one for one in self.line.options if one[0] not in _SANDBOX]
        return 0

    def _spawn(self, mover: scope.Mover | None = None) -> None:
        """Start the real one and wait until it is ready. Raises _Failed, _Over."""
        self._api_directory = _make_private_directory() if self.api_path else ""
        ready, write = os.pipe()
        descriptors = {_READY_FD: write, _EXIT_FD: self._exit_read}
        descriptors.update({fd: fd for fd in self._output})
        if self._has_tap and self._is_by_path():
            descriptors[_NETNS_FD] = self.target.netns
            if self._userns >= 0:
                descriptors[_USERNS_FD] = self._userns
        try:
            try:
                self.pid = spawn.start(
                    self._arguments(),
                    descriptors=descriptors,
                    environment=slirp4netns_main.environment(),
                    private_mounts=self._mounts_in_ours,
                )
            except OSError as error:
                raise Error(f"start {self.program}", hint=slirp4netns.INSTALL) from error
            finally:
                os.close(write)
            self.pidfd = os.pidfd_open(self.pid)
            if mover:
                mover.request([os.getpid(), self.pid])
            self._wait_until_ready(ready)
            trace("slirp4netns:spawned")
            if self.api_path:
                from rootlessnet.tools import slirp4netns_api

                self.behind = slirp4netns_api.Behind(f"{self._api_directory}/api")
        except BaseException:
            self._end_real()
            raise
        finally:
            os.close(ready)
            if self._api_directory:
                _remove_private_directory(self._api_directory)
        self._since = time.monotonic()
        self._take_tap()

    def _wait_until_ready(self, ready: int) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            found = self._poll({ready: select.POLLIN}, deadline - time.monotonic())
            if ready in found:
                break
            if time.monotonic() > deadline:
                raise _Failed(f"{slirp4netns.NAME} gave no answer in {_READY_SECONDS:g} s", 1)
        if os.read(ready, 16):
            return
        # Closed without a word: it is ending.
        process.wait_for(self.pidfd, _END_SECONDS)
        raise _Failed(f"{slirp4netns.NAME} did not get ready", self._end_real() or 1)

    def _take_tap(self) -> None:
        """Have a copy of the tap's descriptor, and end the time in which it was persistent."""
        try:
            self.tap, self.tap_name = tap.take(self.pid, self.pidfd)
        except OSError as error:
            # It may have died since; or the kernel is older than 5.6.
            if not process.has_ended(self.pidfd):
                self.say(f"{self.line.words[1]} cannot be kept over a restart: {reason(error)}")
            return
        self._has_tap = True
        tap.set_persistent(self.tap, False)
        if self.guard:
            self.guard.dismiss()
            self.guard = None

    # -- looking after it --------------------------------------------------------------------------

    def watch(self) -> None:
        """Until it is over: raises _Over."""
        if self.target.is_gone():
            raise _Over("the network namespace is gone")
        while True:
            events = dict.fromkeys(self.target.fds, select.POLLIN)
            events[self.target.mounts] = select.POLLPRI
            if self.pidfd >= 0:
                events[self.pidfd] = select.POLLIN
            moments = [self.target.seconds]
            if self.front:
                self.front.register(events)
                moments.append(self.front.seconds())
            now = time.monotonic()
            moments += [moment - now for moment in (self._retry_at, self._put_back_at) if moment]
            ready = self._poll(events, min((m for m in moments if m is not None), default=None))
            if self.pidfd >= 0 and self.pidfd in ready:
                self._ended()
                ready.discard(self.pidfd)
            looked = {self.target.mounts, *self.target.fds}
            if (ready & looked or self.target.seconds is not None) and self.target.is_gone():
                raise _Over("the network namespace is gone")
            if self._retry_at and time.monotonic() >= self._retry_at:
                self._restart()
            if self._put_back_at and time.monotonic() >= self._put_back_at:
                self._put_back()
            if self.front and not self.front.handle(ready, self.behind):
                process.wait_for(self.pidfd, _END_SECONDS)

    def _poll(self, events: dict[int, int], seconds: float | None) -> set[int]:
        """Which of these are ready. Raises _Over when the caller wants an end."""
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        if self.caller_exit >= 0:
            poll.register(self.caller_exit, 0)  # hanging up is always told
        for fd, mask in events.items():
            poll.register(fd, mask)
        left = None if seconds is None else max(0.0, seconds)
        found = {fd for fd, _ in poll.poll(process.milliseconds(left))}
        if self._wake_read in found:
            os.read(self._wake_read, 4096)
        if self._signal:
            raise _Over(f"signal {self._signal}", self._signal)
        if self.caller_exit in found:
            raise _Over("the exit descriptor hung up")
        return found - {self._wake_read}

    def _on_signal(self, number: int, frame: object) -> None:
        self._signal = number

    def _ended(self) -> None:
        """The real one has died: start another one, unless there is nothing to connect."""
        pid = self.pid
        status = self._end_real()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        self.say(f"{slirp4netns.NAME} {pid} {how}")
        if time.monotonic() - self._since > _STABLE_SECONDS:
            self._attempt = 0
        self._schedule()

    def _schedule(self) -> None:
        self._retry_at = time.monotonic() + _BACK_OFF[min(self._attempt, len(_BACK_OFF) - 1)]
        self._attempt += 1

    def _restart(self) -> None:
        self._retry_at = 0.0
        if self.target.is_gone():
            raise _Over("the network namespace is gone")
        self.restarts += 1
        try:
            if self.tap >= 0:
                self.guard = tap.Guard(self.target.netns, self.tap_name)
                trace("slirp4netns:guarded")
                tap.set_persistent(self.tap, True)
                os.close(self.tap)
                self.tap = -1
                trace("slirp4netns:persistent")
            self._spawn()
        except (Error, OSError, _Failed) as error:
            if self.tap >= 0 and self.guard:
                self.guard.dismiss()
                self.guard = None
            self.say(f"restart: {reason(error)}")
            self._schedule()
            return
        self.say(f"{slirp4netns.NAME} restarted as {self.pid}")
        self._put_back()
        trace("slirp4netns:restarted")

    def _put_back(self) -> None:
        """The forwards that the last one had; those that fail are tried again."""
        self._put_back_at = 0.0
        if not self.front or not self.behind or not self.front.forwards.missing():
            return
        again = self._put_back_failed
        self._put_back_failed = False
        try:
            failed = self.front.forwards.put_back(self.behind)
        except OSError as error:
            failed = [reason(error)]
        if failed:
            if not again:
                self.say(f"put forwards back: {'; '.join(failed)}: trying again")
            self._put_back_failed = True
            self._put_back_at = time.monotonic() + _RETRY

    _put_back_failed = False

    # -- the end -----------------------------------------------------------------------------------

    def _end_real(self) -> int:
        """End the real one if it still runs; its status as os.waitstatus_to_exitcode tells it."""
        if self.behind:
            self.behind.close()
            self.behind = None
        if self.front:
            self.front.forwards.lost()
        if self.pidfd < 0:
            return 0
        if not process.has_ended(self.pidfd):
            signals.send(self.pidfd, signals.SIGTERM)
            if not process.wait_for(self.pidfd, _END_SECONDS):
                signals.send(self.pidfd, signals.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.pidfd)
        self.pid, self.pidfd = 0, -1
        return status

    def end(self) -> None:
        """Leave nothing behind; can be called twice."""
        self._end_real()
        if self.front:
            self.front.close()
            self.front = None
        if self.tap >= 0:
            os.close(self.tap)
            self.tap = -1
        # A guard that hears nothing removes the tap, as our end tells it.

    def explain(self, failed: _Failed) -> list[str]:
        """What to say about a first start that failed, beside what the real one has said."""
        lines = [str(failed)] if "no answer" in str(failed) else []
        try:
            _, text = spawn.run([self.program, "--help"])
        except (Error, OSError) as error:
            return [*lines, reason(error)]
        new = self.line.too_new(text)
        if new:
            lines.append(
                f"{self.program} is too old: "
                + ", ".join(f"{name} needs version {version}" for name, version in new)
            )
        return lines


def _target(line: Line) -> Target:
    """The namespace that the line names. Raises NotUnderstood: the real one says what is wrong."""
    if len(line.words) < 2:
        raise NotUnderstood("no target")
    kind = line.values.get("netns-type", "pid")
    word = line.words[0]
    try:
        if kind == "path":
            return Target(word)
        if kind == "pid" and word.isascii() and word.isdecimal():
            return Target(f"/proc/{int(word)}/ns/net")
    except OSError:
        pass
    raise NotUnderstood(word)


def _open_userns(line: Line) -> int:
    path = line.values.get("userns-path")
    if path is None:
        return -1
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        raise NotUnderstood(path) from None


def _close(fd: int) -> None:
    """Close it; a standard stream becomes /dev/null, as no file of ours may take its number."""
    if fd > 2:
        os.close(fd)
        return
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, fd)
    os.close(null)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _keep_to_ourselves(ours: set[int]) -> None:
    """Let no descriptor reach the real one by accident, and close those nobody told us of: it is
    here to stay, and somebody may wait for the end of a pipe."""
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        try:
            if number in ours:
                os.set_inheritable(number, False)
            elif number > 2:
                os.close(number)
        except OSError:
            pass  # the one by which the directory was read; one that is not open


_PREFIX = "slirp4netns-"


def _make_private_directory() -> str:
    """A directory for the socket of the real one, which is there for a moment only."""
    from rootlessnet.instance import paths

    base = paths.base_directory()
    for name in os.listdir(base):
        # One of a process that was killed in that moment.
        parts = name.removeprefix(_PREFIX).split("-")
        if name.startswith(_PREFIX) and len(parts) == 2 and all(map(str.isdecimal, parts)):
            try:
                os.close(process.open_process(int(parts[0]), int(parts[1])))
            except (ProcessLookupError, FileNotFoundError):
                _remove_private_directory(f"{base}/{name}")
            except OSError:
                continue
    path = f"{base}/{_PREFIX}{os.getpid()}-{process.start_time('self')}"
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise Error(f"make {path}") from error
    return path


def _remove_private_directory(path: str) -> None:
    for remove, name in ((os.unlink, f"{path}/api"), (os.rmdir, path)):
        try:
            remove(name)
        except OSError:
            continue
