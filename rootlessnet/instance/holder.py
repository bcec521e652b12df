"""The holder: the process in which the instance's namespaces live, and nothing else.

A child of the supervisor makes the namespaces and mounts, and then becomes `sleep infinity`, which
costs next to nothing. No bind mount pins a namespace: when the holder and all users are gone, so
are they, also after a crash.

parent (supervisor)                       child (holder)
    fork ------------------------------>  dies with the parent until told to stay
                                          unshare user, mount and network namespace
    <------------------------------ "U"
    map ids (newuidmap, newgidmap)
    "M" ------------------------------->  mounts
    <------------------------- "R" or an error
    ... starts the driver, publishes ...
    "S" ------------------------------->  no longer dies with the parent; exec sleep
"""

from __future__ import annotations

import errno
import os
import select

from rootlessnet.errors import Error, reason
from rootlessnet.errors import hint as hint_of
from rootlessnet.instance import mounts
from rootlessnet.instance.state import Holder
from rootlessnet.kernel import idmap, libc, namespaces, netns, process, signals, spawn
from rootlessnet.kernel.trace import trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

_HINTS = {
    errno.ENOSPC: "user namespaces are used up or disabled: sysctl user.max_user_namespaces",
    errno.EPERM: "a security module or sysctl forbids user namespaces: sysctl "
    "kernel.unprivileged_userns_clone kernel.apparmor_restrict_unprivileged_userns",
    errno.EINVAL: "the kernel has to support user namespaces (CONFIG_USER_NS)",
}


class Starting:
    """A holder on its way; `stay` makes it permanent, closing this without ends it."""

    def __init__(self, pid: int, channel: int) -> None:
        self.pid = pid
        self.record: Holder
        self.warning = ""
        self.channel = channel

    def look(self, shared: str) -> None:
        """Fill in its record."""
        self.record = Holder(
            self.pid,
            process.start_time(self.pid),
            namespaces.inode(self.pid, "user"),
            namespaces.inode(self.pid, "net"),
            namespaces.inode(self.pid, "mnt"),
            shared,
        )

    def stay(self) -> None:
        """Let it outlive this process. Raises Error when it has died."""
        _send(self.channel, "S")
        # It answers by closing the channel at exec; a holder that died answers alike, so look.
        _receive(self.channel, _JOIN_SECONDS)
        if not os.path.exists(f"/proc/{self.pid}/ns/net"):
            raise Error("keep the namespaces: the holder has died")

    def close(self) -> None:
        os.close(self.channel)

    def abandon(self) -> None:
        """End it."""
        self.close()
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)


_JOIN_SECONDS = 5.0


def start(
    root: str, runtime_dir: str, keep_open: int, seconds: float, congestion_control: str
) -> Starting:
    """Make the namespaces and their mounts. Raises Error, and nothing is left then.

    keep_open is a descriptor that the holder keeps for life (the exit pipe's writing end).
    congestion_control is tcp(7)'s for the network namespace, empty for the system's choice.
    """

    def make(channel: int) -> str:
        _unshare()
        _send(channel, "U")
        if _receive(channel, None) != "M":
            os._exit(1)
        trace("holder:mapped")
        if congestion_control:
            netns.choose_congestion_control(congestion_control)
        shared = mounts.set_up(root, runtime_dir)
        trace("holder:mounted")
        return shared

    starting = _fork(make, keep_open)
    try:
        _expect(starting, "U", seconds)
        trace("start:unshared")
        if namespaces.inode(starting.pid, "user") != namespaces.inode("self", "user"):
            starting.warning = idmap.apply(starting.pid)
        trace("start:mapped")
        _send(starting.channel, "M")
        starting.look(_expect(starting, "R", seconds))
    except BaseException:
        starting.abandon()
        raise
    return starting


def replace(pins: namespaces.Pins, shared: str, keep_open: int) -> Starting:
    """A new holder for namespaces that are there: it joins them. Raises Error.

    shared is what the record of the last one has.
    """

    def join(channel: int) -> str:
        pins.join()
        return shared

    starting = _fork(join, keep_open)
    try:
        starting.look(_expect(starting, "R", _JOIN_SECONDS))
    except BaseException:
        starting.abandon()
        raise
    return starting


def _fork(prepare: Callable[[int], str], keep_open: int) -> Starting:
    """A child that prepares itself, with a channel to us, and waits for the word to stay."""
    import socket

    sleep = spawn.find("sleep")
    if sleep is None:
        raise Error("start the holder: sleep not found", hint="install coreutils")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        # --- holder ---
        ours.close()
        _become(parent, theirs.detach(), prepare, sleep, keep_open)
    # --- supervisor ---
    theirs.close()
    return Starting(pid, ours.detach())


def _become(
    parent: int, channel: int, prepare: Callable[[int], str], sleep: str, keep_open: int
) -> NoReturn:
    try:
        libc.prctl(libc.PR_SET_PDEATHSIG, 9)
        if os.getppid() != parent:
            os._exit(1)
        try:
            _send(channel, "R" + prepare(channel))
        except (Error, OSError) as error:
            _send(channel, f"E{reason(error)}\0{hint_of(error)}")
            os._exit(1)
        if _receive(channel, None) != "S":
            os._exit(1)
        os.setsid()
        os.set_inheritable(keep_open, True)
        os.set_inheritable(0, True)
        signals.let_through()
        # The last word of the parent has come: from here on we live without it.
        libc.prctl(libc.PR_SET_PDEATHSIG, 0)
        os.execve(sleep, ["sleep", "infinity"], {})
    finally:
        # Never back into the code of the parent.
        os._exit(1)


def needs_user_namespace() -> bool:
    """Not when we may already make network namespaces: as root, or inside `podman unshare`."""
    return not namespaces.has_capability(namespaces.CAP_SYS_ADMIN)


def _unshare() -> None:
    flags = libc.CLONE_NEWNS | libc.CLONE_NEWNET
    if needs_user_namespace():
        flags |= libc.CLONE_NEWUSER
    try:
        libc.unshare(flags)
    except OSError as error:
        raise Error("make the namespaces", hint=_HINTS.get(error.errno or 0, "")) from error


def _send(channel: int, text: str) -> None:
    try:
        os.write(channel, text.encode(errors="replace")[:4000])
    except (BrokenPipeError, ConnectionResetError):
        pass


def _receive(channel: int, seconds: float | None) -> str:
    """One message; empty when the other side is gone, or at the deadline."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    if not poll.poll(None if seconds is None else seconds * 1000):
        return ""
    try:
        return os.read(channel, 4096).decode(errors="replace")
    except ConnectionResetError:
        return ""


def _expect(starting: Starting, word: str, seconds: float) -> str:
    """What follows the word that it has to say next."""
    answer = _receive(starting.channel, seconds)
    if answer.startswith(word):
        return answer[len(word) :]
    if answer.startswith("E"):
        text, _, advice = answer[1:].partition("\0")
        raise Error(text, hint=advice)
    raise Error("make the namespaces: the holder died or gave no answer")
