"""Where an instance is: its name, its directory, its lock.

$XDG_RUNTIME_DIR/rootlessnet/       0700, ours, checked at every start
    rootless-netns-<hash>.lock      guards the directory of the same name; the only file that stays
    rootless-netns-<hash>/          0700; what is in it, see rootlessnet.instance.state

The hash is podman's (3.2 to 4.9): the first 20 hex digits of sha256(static dir), so a name says at
a glance whether it is the same static dir. Nothing of ours is in podman's own directories: both can
run side by side.
"""

from __future__ import annotations

import os
import stat

from rootlessnet.config import containers
from rootlessnet.errors import Error

NAME_PREFIX = "rootless-netns-"


class Instance:
    """The names of one instance; nothing of it needs to exist."""

    __slots__ = ("base", "directory", "lock_path", "name", "static_dir")

    def __init__(self, base: str, static_dir: str, name: str = "") -> None:
        self.base = base
        self.static_dir = static_dir
        self.name = name or NAME_PREFIX + sha256(static_dir)[:20]
        self.directory = f"{base}/{self.name}"
        self.lock_path = f"{self.directory}.lock"

    def path(self, name: str) -> str:
        """A path in the instance's directory."""
        return f"{self.directory}/{name}"


def sha256(text: str) -> str:
    """The hash of a text, in hexadecimal."""
    data = os.fsencode(text)
    # hashlib loads OpenSSL, 3 ms at each start; the interpreter's own implementation is the same.
    try:
        from _sha256 import sha256 as algorithm  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        try:
            from _sha2 import sha256 as algorithm  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            from hashlib import sha256 as algorithm
    digest: str = algorithm(data).hexdigest()
    return digest


def find(static_dir: str = "") -> Instance:
    """The instance of this static dir: as given, else $ROOTLESSNET_STATIC_DIR, else by podman's
    configuration. Makes the directory that holds instances. Raises Error."""
    return Instance(base_directory(), resolve_static_dir(static_dir)[0])


def resolve_static_dir(given: str = "") -> tuple[str, str]:
    """The static dir as an absolute path, and what says so (an option, a variable, a file)."""
    if given:
        return _absolute(given), "--static-dir"
    given = os.environ.get("ROOTLESSNET_STATIC_DIR", "")
    if given:
        return _absolute(given), "ROOTLESSNET_STATIC_DIR"
    return containers.static_dir()


def _absolute(path: str) -> str:
    try:
        path = os.path.abspath(path)
    except OSError as error:
        raise Error("find the working directory", hint="name an absolute static dir") from error
    # POSIX lets normpath keep two leading slashes; for Linux and podman they are one.
    return "/" + path.lstrip("/")


def base_directory() -> str:
    """$XDG_RUNTIME_DIR/rootlessnet, made if need be. Raises Error when it is not ours alone."""
    base = runtime_directory() + "/rootlessnet"
    if not os.path.lexists(base):
        _make_directory(base, "make the state directory", _SPACE_HINT)
    check_private(base, "the state directory", exact=True)
    return base


def _make_directory(path: str, attempt: str, advice: str) -> None:
    before = os.umask(0o077)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise Error(attempt, hint=advice) from error
    finally:
        os.umask(before)


_SPACE_HINT = "XDG_RUNTIME_DIR has to be writable and have room: check with df and ls -ld"


def runtime_directory() -> str:
    """The user's runtime directory, without symbolic links on the way (podman issue 14606).

    XDG_RUNTIME_DIR; without it /run/user/UID when that is ours; else /tmp/rootlessnet-UID, which is
    made. Raises Error when the one that counts is not a directory of ours that others keep out of.
    """
    uid = os.geteuid()
    path = os.environ.get("XDG_RUNTIME_DIR", "")
    if path:
        if not path.startswith("/"):
            raise Error(f"use XDG_RUNTIME_DIR: {path} is not an absolute path", hint=_UNSET_HINT)
        check_private(path, "XDG_RUNTIME_DIR")
        return os.path.realpath(path)
    path = f"/run/user/{containers.rootless_uid()}"
    try:
        check_private(path, "the runtime directory")
        return path
    except Error:
        pass
    path = f"/tmp/rootlessnet-{uid}"
    _make_directory(path, "make a runtime directory", _UNSET_HINT)
    check_private(path, "the runtime directory")
    return path


_UNSET_HINT = "set XDG_RUNTIME_DIR to a directory of your own; after su or sudo, unset it"


def check_private(path: str, what: str, *, exact: bool = False) -> None:
    """Raise Error unless path is a directory of ours that nobody else can write to.

    exact also forbids others to look into it.
    """
    try:
        info = os.lstat(path.rstrip("/") or "/")
    except OSError as error:
        raise Error(f"use {what}", hint=_UNSET_HINT) from error
    if stat.S_ISLNK(info.st_mode):
        raise Error(
            f"use {what}: {path} is a symbolic link", hint="name the directory it points to"
        )
    if not stat.S_ISDIR(info.st_mode):
        raise Error(f"use {what}: {path} is not a directory", hint=_UNSET_HINT)
    if info.st_uid != os.geteuid():
        raise Error(
            f"use {what}: {path} belongs to uid {info.st_uid}, not to uid {os.geteuid()}",
            hint=_UNSET_HINT,
        )
    wrong = 0o077 if exact else 0o022
    if info.st_mode & wrong or info.st_mode & 0o700 != 0o700:
        raise Error(
            f"use {what}: {path} has mode {stat.S_IMODE(info.st_mode):04o}",
            hint=f"chmod 700 {path}",
        )
