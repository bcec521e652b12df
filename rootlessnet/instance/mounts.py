"""The mount namespace inside: podman's five mounts, in podman's order.

ROOT is <state dir>/root, where everything that is mounted is prepared. Order matters, as the last
mount hides what the earlier ones have to be carried into:

1. XDG_RUNTIME_DIR   on ROOT/XDG_RUNTIME_DIR, so that it is still there under the new /run
2. /run/systemd      on ROOT/run/systemd: /dev/log and others are links into it
3. ROOT/resolv.conf  on what /etc/resolv.conf points to; copied to there if that is below /run
4. ROOT/var/lib/cni  on /var/lib/cni
5. ROOT/run          on /run: network tools keep locks and state there

Propagation: slave from the host, so that an unmount there reaches us and a device is not kept busy
by our copy (podman issue 25994). Each command has its own copy of this namespace.
XDG_RUNTIME_DIR/netns is shared among all of them, so that a netns bind mounted there by one command
is seen by the next. Not all of XDG_RUNTIME_DIR: podman makes a mount namespace, binds
XDG_RUNTIME_DIR below libpod/tmp/rootless-netns there, and later removes that directory with all
that it finds in it, outside of that namespace. Were the bind seen here, podman would empty the
user's runtime directory.
The mount that /etc is in is shared from here to the copies, not back, for the next paragraph.

resolv.conf changes with the host's (`replace_resolv_conf`). A copy below /run is replaced by a
rename; elsewhere the new file is mounted over the old one, and all copies of the namespace see it
at the same moment. That also brings it back after the file under the mount was replaced on the
host: the kernel then drops the mount in every namespace (podman issue 10929, mended there in part).

podman hides all of /var/lib where there is no /var/lib/cni, and fails where /etc/resolv.conf is
missing or dangles. Here such a directory is rebuilt from binds of its own entries (`open_up`), so
that the missing one can be made and nothing disappears.
"""

from __future__ import annotations

import errno
import os
import stat

from rootlessnet.errors import Error
from rootlessnet.kernel import files, libc

RESOLV_CONF = "/etc/resolv.conf"
_RESOLVE_DIR = "/run/systemd/resolve"
_NETNS = "netns"
_MAX_LINKS = 255
_SELINUX_LABEL = b"system_u:object_r:iptables_var_run_t:s0"


def set_up(root: str, runtime_dir: str) -> str:
    """Make the mounts in this process's own new mount namespace.

    root is a directory of ours on the host, holding resolv.conf; runtime_dir has no symbolic links.
    Returns the mounts that are shared with copies of the namespace and have to be made slaves
    there, each followed by NUL; empty where resolv.conf is in a directory of ours.
    """
    _mount("", "/", flags=libc.MS_SLAVE | libc.MS_REC)
    os.makedirs(f"{root}/run", mode=0o700, exist_ok=True)
    _mount_runtime_dir(root, runtime_dir)
    if os.path.isdir("/run/systemd"):
        os.makedirs(f"{root}/run/systemd", mode=0o700, exist_ok=True)
        _bind("/run/systemd", f"{root}/run/systemd")
    target = _mount_resolv_conf(root)
    _mount_cni_dir(root)
    _relabel(f"{root}/run")
    if os.path.isdir("/run"):
        _bind(f"{root}/run", "/run")
    if not target:
        return ""
    shared = mount_point(os.path.dirname(target))
    for point in (shared, target):
        _mount("", point, flags=libc.MS_SHARED)
    return f"{shared}\0{target}\0"


def mount_point(path: str) -> str:
    """The mount that a directory without symbolic links is in."""
    points = set(mount_points())
    while path not in points and path != "/":
        path = os.path.dirname(path)
    return path


def mount_points() -> list[str]:
    """Where something is mounted in our mount namespace, in the order of mounting."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        points = [line.split(" ", 5)[4] for line in file]
    # Blank, tab, newline and backslash stand there in octal (proc_pid_mountinfo(5)).
    for number in (0o40, 0o11, 0o12, 0o134):
        points = [point.replace(f"\\{number:03o}", chr(number)) for point in points]
    return points


def resolv_conf_inside(pid: int) -> bytes | None:
    """resolv.conf as a process in the mount namespace sees it; None when it sees none."""
    inside = f"/proc/{pid}/root"
    try:
        return files.read(inside + resolve(RESOLV_CONF, inside), 1 << 20)
    except (Error, OSError):
        return None


def replace_resolv_conf(new: str, stage: str) -> None:
    """Show the file new from now on, in a process that has joined the mount namespace.

    Readers see the old or the new one, whole. The paths are those of the host, which inside lead
    through XDG_RUNTIME_DIR. new has to stay, since a later one is mounted over it (and nothing can
    be mounted on a file that is deleted). stage does not exist yet. Raises Error.
    """
    try:
        target = resolve(RESOLV_CONF)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise Error(f"follow {RESOLV_CONF}") from error
        open_up("/etc", stage, leave_out=os.path.basename(RESOLV_CONF))
        target = RESOLV_CONF
        _make_file(target)
    if target.startswith("/run/"):
        try:
            os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
            _copy(new, target)
            return
        except OSError:
            pass  # a directory of the host, or a mount point
    _mount(new, target, flags=libc.MS_BIND)


def _copy(source: str, target: str) -> None:
    """Put a copy in the place of target."""
    files.replace(target, files.read(source, 1 << 20), mode=0o644)


def _mount(source: str, target: str, fstype: str = "", flags: int = 0) -> None:
    try:
        libc.mount(source, target, fstype, flags)
    except OSError as error:
        what = f"{source} on " if source else ""
        raise Error(f"mount {what}{target}: {error.strerror}") from error


def _bind(source: str, target: str) -> None:
    _mount(source, target, flags=libc.MS_BIND | libc.MS_REC)


def _mount_runtime_dir(root: str, runtime_dir: str) -> None:
    # Outside /run it stays where it is, but has to become a mount to be shared.
    target = root + runtime_dir if runtime_dir.startswith("/run/") else runtime_dir
    os.makedirs(target, mode=0o700, exist_ok=True)
    _bind(runtime_dir, target)
    netns = f"{target}/{_NETNS}"
    os.makedirs(netns, mode=0o755, exist_ok=True)
    _bind(netns, netns)
    _mount("", netns, flags=libc.MS_SHARED | libc.MS_REC)


def resolve(path: str, fake_root: str = "") -> str:
    """Where a mount on path would land, links followed as far as the first name below /run.

    Further links below /run are not followed: /run will be empty inside, so the first one is made
    there as a plain file (podman issues 10855, 11222, 12461). fake_root stands before every name
    that is looked at. Raises Error for a loop, OSError for a name that is not there.
    """
    links = 0
    done = ""
    left = path.strip("/").split("/")
    while left:
        if not done and left[0] == "run" and len(left) > 1:
            below = os.path.normpath("/" + "/".join(left))
            if below.startswith("/run/"):
                return below
        name = left.pop(0)
        if name == "..":
            done = done.rpartition("/")[0]
            continue
        if name in ("", "."):
            continue
        here = f"{done}/{name}"
        if not stat.S_ISLNK(os.lstat(fake_root + here).st_mode):
            done = here
            continue
        links += 1
        if links > _MAX_LINKS:
            raise Error(f"too many symlinks while resolving {path}", hint=f"mend {path}")
        link = os.readlink(fake_root + here)
        if link.startswith("/"):
            done = ""
        left = [*link.strip("/").split("/"), *left]
    return done


def _mount_resolv_conf(root: str) -> str:
    """Put ours in the place of the host's; where a mount was needed for it, else empty."""
    ours = f"{root}/resolv.conf"
    try:
        target = resolve(RESOLV_CONF)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise Error(f"follow {RESOLV_CONF}") from error
        # Missing, or a link to nowhere: /etc gets a plain one.
        open_up("/etc", f"{root}/mirror/etc", leave_out=os.path.basename(RESOLV_CONF))
        target = RESOLV_CONF
        _make_file(target)
    else:
        if target.startswith("/run/"):
            if target.startswith(_RESOLVE_DIR + "/"):
                # resolved replaces its files: a mount on one of them would be gone with the next
                # change, so the whole directory is ours (podman issue 10929).
                _make_directory(root, root + _RESOLVE_DIR)
                flags = libc.MS_NOEXEC | libc.MS_NOSUID | libc.MS_NODEV
                _mount("tmpfs", root + _RESOLVE_DIR, "tmpfs", flags)
            path = root + target
            _make_directory(root, os.path.dirname(path))
            if not os.path.lexists(path):
                try:
                    _copy(ours, path)
                except PermissionError:
                    open_up(os.path.dirname(path), f"{root}/mirror/resolv.conf")
                    _copy(ours, path)
                return ""
            _mount(ours, path, flags=libc.MS_BIND)
            return target
    _mount(ours, target, flags=libc.MS_BIND)
    return target


def _make_file(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600))


def _make_directory(root: str, path: str) -> None:
    """makedirs; a parent that belongs to the host is opened up first."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except PermissionError:
        parent = os.path.dirname(path)
        while not os.path.isdir(parent):
            parent = os.path.dirname(parent)
        open_up(parent, f"{root}/mirror/run")
        os.makedirs(path, mode=0o700, exist_ok=True)


def open_up(directory: str, stage: str, leave_out: str = "") -> None:
    """Make a directory of the host writable inside: bind each of its entries into stage, and that
    over the directory. An entry named leave_out is not carried over."""
    os.makedirs(stage, mode=0o755)
    for entry in os.scandir(directory):
        if entry.name == leave_out:
            continue
        target = f"{stage}/{entry.name}"
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), target)
            continue
        if entry.is_dir():
            os.mkdir(target)
        else:
            _make_file(target)
        _bind(entry.path, target)
    _bind(stage, directory)


def _mount_cni_dir(root: str) -> None:
    stage = f"{root}/var/lib/cni"
    os.makedirs(stage, mode=0o700, exist_ok=True)
    if not os.path.isdir("/var/lib/cni"):
        parent = "/var/lib" if os.path.isdir("/var/lib") else "/var"
        if not os.path.isdir(parent):
            raise Error("mount /var/lib/cni: there is no /var")
        open_up(parent, f"{root}/mirror{parent}")
        os.makedirs("/var/lib/cni", mode=0o700)
    _bind(stage, "/var/lib/cni")


def _relabel(path: str) -> None:
    """Give /run the label that iptables may write to, where SELinux is on."""
    if not os.path.exists("/sys/fs/selinux/enforce"):
        return
    try:
        os.setxattr(path, "security.selinux", _SELINUX_LABEL)
    except OSError as error:
        # EINVAL: the policy has no such type (podman issue 13703).
        if error.errno not in (errno.ENOTSUP, errno.EINVAL):
            raise Error(f"relabel {path} as iptables_var_run_t") from error
