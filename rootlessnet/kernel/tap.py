"""Tap devices: keeping one while the program that reads it is replaced.

A tap lives as long as a descriptor of it is open, with all that was configured on it: addresses,
routes, hardware address, interface number. So a supervisor that has a copy of the descriptor keeps
the device over the death of the program. The next program cannot attach while ours is open, though
(EBUSY), so the device is made persistent for as long as that takes, and a `Guard` makes sure that
it does not stay so when the supervisor is killed meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time

from rootlessnet.kernel import libc

PATH = "/dev/net/tun"

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000

# ioctl_nsfs(2)
_NS_GET_USERNS = 0xB701

_GUARD_SECONDS = 5.0


def take(pid: int, pidfd: int) -> tuple[int, str]:
    """A copy of the descriptor by which the process has its tap, and the name of the tap.

    The caller owns the copy; the pidfd says which process is meant. Raises OSError;
    FileNotFoundError when it has none.
    """
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            # In a sandbox of its own the path may come out as unreachable.
            if not os.readlink(f"/proc/{pid}/fd/{number}").endswith(PATH):
                continue
        except FileNotFoundError:
            continue
        fd = libc.pidfd_getfd(pidfd, int(number))
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii", errors="replace") as info:
            name = info.read().partition("\niff:\t")[2].partition("\n")[0]
        if name:
            return fd, name
        os.close(fd)
    raise FileNotFoundError(errno.ENOENT, "it has no tap")


def set_persistent(fd: int, persistent: bool) -> None:
    """Whether the tap stays when its last descriptor is closed."""
    fcntl.ioctl(fd, _TUNSETPERSIST, int(persistent))


class Guard:
    """A child that removes a persistent tap when this process ends without a word."""

    def __init__(self, netns: int, name: str) -> None:
        """netns is a descriptor of the namespace. Raises OSError when that cannot be joined."""
        read, self._write = os.pipe()
        answer, ready = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            # --- child ---
            try:
                os.setsid()
                for fd in (self._write, answer):
                    os.close(fd)
                _join(netns)
                os.write(ready, b"1")
                os.close(ready)
                _keep_only(read)
                if not os.read(read, 1):
                    _remove(name)
            finally:
                os._exit(0)
        # --- parent ---
        os.close(read)
        os.close(ready)
        try:
            joined = os.read(answer, 1)
        finally:
            os.close(answer)
        if not joined:
            self.dismiss()
            raise PermissionError(errno.EPERM, "the network namespace cannot be joined")

    def dismiss(self) -> None:
        """The tap is not persistent any more: nothing to be done."""
        try:
            os.write(self._write, b"1")
        except BrokenPipeError:
            pass
        os.close(self._write)
        os.waitpid(self._pid, 0)


def owner(netns: int) -> int:
    """A descriptor, the caller's, of the user namespace that a network namespace belongs to."""
    userns: int = fcntl.ioctl(netns, _NS_GET_USERNS)
    os.set_inheritable(userns, False)
    return userns


def is_owned_by_us(netns: int) -> bool:
    """Whether a network namespace belongs to the user namespace of this process."""
    try:
        userns = owner(netns)
    except OSError:
        return False  # to one that is not below ours
    try:
        return os.fstat(userns).st_ino == os.stat("/proc/self/ns/user").st_ino
    finally:
        os.close(userns)


def _join(netns: int) -> None:
    if not is_owned_by_us(netns):
        libc.setns(owner(netns), libc.CLONE_NEWUSER)
    libc.setns(netns, libc.CLONE_NEWNET)


def _keep_only(fd: int) -> None:
    """Close what was inherited: nobody may wait for a pipe of which the guard has an end."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != fd:
            try:
                os.close(int(name))
            except OSError:
                pass  # the one by which the directory was read


def _remove(name: str) -> None:
    """Attach to the tap and let it go; whoever has it still will end in a moment."""
    deadline = time.monotonic() + _GUARD_SECONDS
    while _is_interface(name):
        fd = os.open(PATH, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(
                fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI)
            )
            set_persistent(fd, False)
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                return
        finally:
            os.close(fd)
        time.sleep(0.01)


def _is_interface(name: str) -> bool:
    with open("/proc/self/net/dev", encoding="utf-8", errors="replace") as file:
        return any(line.partition(":")[0].strip() == name for line in file)
