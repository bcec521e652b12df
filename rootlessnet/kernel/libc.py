"""System calls that Python 3.11's os module lacks: thin, named as in section 2 of the manual.

Each raises OSError with errno (and the path, where there is one); callers decide what it means.
ctypes costs 3 ms to import, so it is loaded at the first call that needs it. The warm path of
`enter` does without: `setns` and `unshare` are in the os module from Python 3.12 on, and what it
has not is called through the C half of ctypes alone (0.5 ms).
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000

MS_NOSUID = 1 << 1
MS_NODEV = 1 << 2
MS_NOEXEC = 1 << 3
MS_BIND = 1 << 12
MS_REC = 1 << 14
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20

MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15

_loaded: ctypes.CDLL | None = None


def _libc() -> ctypes.CDLL:
    global _loaded
    if _loaded is None:
        from ctypes import CDLL, c_char_p, c_int, c_long, c_uint32, c_ulong

        lib = CDLL(None, use_errno=True)
        lib.mount.argtypes = (c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
        lib.umount2.argtypes = (c_char_p, c_int)
        lib.inotify_init1.argtypes = (c_int,)
        lib.inotify_add_watch.argtypes = (c_int, c_char_p, c_uint32)
        lib.prctl.argtypes = (c_int, c_ulong, c_ulong, c_ulong, c_ulong)
        lib.syscall.argtypes = (c_long, c_long, c_long, c_long)
        lib.syscall.restype = c_long
        _loaded = lib
    return _loaded


def _fail(path: str | None = None) -> OSError:
    from ctypes import get_errno

    number = get_errno()
    return OSError(number, os.strerror(number), path)


def setns(fd: int, flags: int) -> None:
    """Join the namespaces of fd: a namespace file or a pidfd (then several flags at once)."""
    if hasattr(os, "setns"):
        os.setns(fd, flags)
    else:
        _call("setns", fd, flags)


def unshare(flags: int) -> None:
    """Leave the shared namespaces named by flags for new ones."""
    if hasattr(os, "unshare"):
        os.unshare(flags)
    else:
        _call("unshare", flags)


def make_slave(target: str) -> None:
    """Let what is mounted below this mount no longer reach its peers: MS_SLAVE of mount(2).

    On the warm path, so without `mount` and its ctypes.
    """
    try:
        _call("mount", None, os.fsencode(target), None, MS_SLAVE, None)
    except ImportError:
        mount("", target, flags=MS_SLAVE)


def bind(source: str, target: str) -> None:
    """Let target be source too: MS_BIND of mount(2), without `mount` and its ctypes."""
    try:
        _call("mount", os.fsencode(source), os.fsencode(target), None, MS_BIND, None)
    except ImportError:
        mount(source, target, flags=MS_BIND)


def detach(target: str) -> None:
    """Unmount at once for all who look, later for those who use it: MNT_DETACH of umount2(2)."""
    try:
        _call("umount2", os.fsencode(target), MNT_DETACH)
    except ImportError:
        umount2(target, MNT_DETACH)


def _call(name: str, *arguments: int | bytes | None) -> None:
    """Call a function of libc that returns an int. An int argument has to fit into C's int."""
    import _ctypes

    result = type("c_int", (_ctypes._SimpleCData,), {"_type_": "i"})
    flags = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    prototype = type("Function", (_ctypes.CFuncPtr,), {"_flags_": flags, "_restype_": result})
    program = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]  # of itself, as dlopen(3) has it
    if prototype(_ctypes.dlsym(program, name))(*arguments) < 0:
        number = _ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2); the error names the target."""
    if (
        _libc().mount(
            os.fsencode(source), os.fsencode(target), fstype.encode(), flags, os.fsencode(data)
        )
        < 0
    ):
        raise _fail(target)


def umount2(target: str, flags: int = 0) -> None:
    """umount2(2); the error names the target."""
    if _libc().umount2(os.fsencode(target), flags) < 0:
        raise _fail(target)


def inotify_init1(flags: int) -> int:
    """A new inotify descriptor."""
    fd: int = _libc().inotify_init1(flags)
    if fd < 0:
        raise _fail()
    return fd


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    """Watch path; returns the watch's number."""
    number: int = _libc().inotify_add_watch(fd, os.fsencode(path), mask)
    if number < 0:
        raise _fail(path)
    return number


_SYS_PIDFD_GETFD = 438


def pidfd_getfd(pidfd: int, number: int) -> int:
    """A copy, closed on exec, of a descriptor of another process: pidfd_getfd(2), Linux 5.6."""
    # By number, as glibc has it only from 2.36 on.
    fd: int = _libc().syscall(_SYS_PIDFD_GETFD, pidfd, number, 0)
    if fd < 0:
        raise _fail()
    return fd


def prctl(option: int, argument: int) -> None:
    """prctl(2) with one argument."""
    if _libc().prctl(option, argument, 0, 0, 0) < 0:
        raise _fail()


def set_command_line(text: str) -> None:
    """What ps -f shows of this process: its arguments are overwritten, as far as they reach.

    After a fork they are still those of the program that forked, a user's command line.
    """
    from ctypes import memmove, memset

    with open("/proc/self/stat", "rb") as stat:
        fields = stat.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start, arg_end of proc_pid_stat(5)
    data = os.fsencode(text)[: end - start - 1]
    memset(start, 0, end - start)
    memmove(start, data, len(data))


def set_process_name(name: str) -> None:
    """What ps and top show of this process (15 bytes)."""
    from ctypes import addressof, create_string_buffer

    buffer = create_string_buffer(os.fsencode(name)[:15])
    prctl(PR_SET_NAME, addressof(buffer))
