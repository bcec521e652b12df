"""The resolv.conf of a container, mounted from within: the names of its networks are resolved.

We are in the container's namespaces, its file systems are mounted below the bundle's root, and that
is not its root yet. So paths below it are opened component by component without following a link,
which could lead anywhere on the host. The file that is mounted is on a tmpfs of its own, which
nobody reaches by any other path.

A bundle that mounts an /etc/resolv.conf of its own keeps it; one without /etc gets none. Where the
file is missing an empty one is made, by `prepare`, since crun has made the root read-only by then.
"""

from __future__ import annotations

import os
import stat

from rootlessnet.errors import Error, debug, reason, warn
from rootlessnet.instance import containers, paths, state
from rootlessnet.kernel import files, libc, namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.instance.paths import Instance
    from rootlessnet.tools.oci_hook import State

_FILE = "/etc/resolv.conf"
_NOFOLLOW = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def mount(current: State) -> None:
    """Mount it. Raises Error when the container has no network of ours; what keeps the file from
    being mounted is a warning."""
    try:
        found = _find(current.id)
    except (Error, OSError) as error:
        # Another user namespace, to whose root the instance's directory is closed.
        _warn(current, error)
        return
    if found is None:
        raise Error(
            "it has no network",
            hint="createRuntime has to be among the hooks, too: rootlessnet oci-hook generate",
        )
    if any(_is_there(each) for each in current.config.get("mounts") or ()):
        return
    try:
        _mount(_root(current), _text(*found))
    except OSError as error:
        _warn(current, error)


def _warn(current: State, error: BaseException) -> None:
    warn(f"container {current.id}: {_FILE} is not that of its networks: {reason(error)}")


def prepare(current: State) -> None:
    """At an earlier stage, in the runtime's namespaces: see that there is a file to mount on, if it
    is going to be."""
    hooks = current.config.get("hooks")
    later = hooks.get("createContainer") if isinstance(hooks, dict) else None
    if not any(
        isinstance(each, dict) and "oci-hook" in each.get("args", ()) for each in later or ()
    ):
        return
    try:
        for fd in _open(_root(current)):
            os.close(fd)
    except OSError as error:
        debug(f"/etc/resolv.conf of the bundle: {error.strerror}")


def _root(current: State) -> str:
    root = current.config.get("root")
    path = root.get("path") if isinstance(root, dict) else None
    return os.path.join(current.bundle, path if isinstance(path, str) else "rootfs")


def _find(id: str) -> tuple[Instance, dict[str, Any]] | None:
    """The record of the container whose network namespace we are in."""
    own = namespaces.inode("self", "net")
    base = paths.base_directory()
    for name in sorted(os.listdir(base)):
        if name.startswith(paths.NAME_PREFIX) and not name.endswith(".lock"):
            instance = paths.Instance(base, "", name)
            record = containers.read(instance, id)
            if record is not None and record["netns"]["inode"] == own:
                return instance, record
    return None


def _is_there(item: Any) -> bool:
    return isinstance(item, dict) and os.path.normpath(str(item.get("destination"))) == _FILE


def _text(instance: Instance, record: dict[str, Any]) -> str:
    """Name servers and search domains of its networks; where they have none, the instance's."""
    servers: list[str] = []
    domains: list[str] = []
    for item in record["networks"].values():
        servers += item["status"].get("dns_server_ips") or ()
        domains += item["status"].get("dns_search_domains") or ()
    if not servers:
        try:
            path = instance.path(f"{state.ROOT}/resolv.conf")
            return files.read(path, 1 << 16).decode(errors="replace")
        except OSError:
            return ""
    lines = [f"search {' '.join(dict.fromkeys(domains))}"] if domains else []
    return "\n".join([*lines, *(f"nameserver {each}" for each in dict.fromkeys(servers)), ""])


def _mount(root: str, text: str) -> None:
    """Mount a file with that text. Raises OSError."""
    import errno

    fds = _open(root)
    try:
        if not text or not fds:
            return
        if not stat.S_ISREG(os.fstat(fds[1]).st_mode):
            raise OSError(errno.ELOOP, "it is a link, or no file")
        _cover(fds[0], fds[1], text)
    finally:
        for fd in fds:
            os.close(fd)


def _open(root: str) -> list[int]:
    """Descriptors of /etc and of its resolv.conf, which is made if need be; none without /etc.
    Raises OSError."""
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        directory = os.open("etc", _NOFOLLOW | os.O_DIRECTORY, dir_fd=top)
    except FileNotFoundError:
        return []
    finally:
        os.close(top)
    try:
        try:
            file = os.open("resolv.conf", _NOFOLLOW, dir_fd=directory)
        except FileNotFoundError:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            os.close(os.open("resolv.conf", flags, 0o644, dir_fd=directory))
            file = os.open("resolv.conf", _NOFOLLOW, dir_fd=directory)
    except BaseException:
        os.close(directory)
        raise
    return [directory, file]


def _cover(directory: int, file: int, text: str) -> None:
    # A tmpfs on the directory for a moment; the file's own mount is on the directory below it.
    place = f"/proc/self/fd/{directory}"
    libc.mount("tmpfs", place, "tmpfs", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC, "size=64k")
    # By its path: the descriptor still is what is below.
    top = os.open(os.readlink(place), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        source = os.open(
            "resolv.conf", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=top
        )
        os.fchmod(source, 0o644)
        os.write(source, text.encode())
        libc.mount(f"/proc/self/fd/{source}", f"/proc/self/fd/{file}", flags=libc.MS_BIND)
        os.close(source)
    finally:
        libc.umount2(f"/proc/self/fd/{top}", libc.MNT_DETACH)
        os.close(top)
