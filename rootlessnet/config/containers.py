"""Which containers.conf files count, and where podman keeps its data: containers.conf(5),
containers-storage.conf(5), and what podman 4.3 does where they are silent.
"""

from __future__ import annotations

import os

from rootlessnet.config import toml
from rootlessnet.errors import Error


def is_rootless() -> bool:
    """podman's rule: not root, or root only inside a user namespace made for a user."""
    return os.geteuid() != 0 or "_CONTAINERS_ROOTLESS_UID" in os.environ


def rootless_uid() -> int:
    """The uid of the user on the host, also inside a user namespace made for them."""
    value = os.environ.get("_CONTAINERS_ROOTLESS_UID", "")
    return int(value) if value.isdecimal() else os.geteuid()


def home() -> str:
    """The home directory: $HOME, else the password database's."""
    path = os.environ.get("HOME", "")
    if not path:
        import pwd

        try:
            path = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            raise Error(
                "find the home directory: HOME is not set and the user has no passwd entry",
                hint="set HOME",
            ) from None
    return path


def config_home() -> str:
    return os.environ.get("XDG_CONFIG_HOME") or f"{home()}/.config"


def data_home() -> str:
    return os.environ.get("XDG_DATA_HOME") or f"{home()}/.local/share"


def conf_files() -> list[str]:
    """The containers.conf files in the order in which they are read; a later one wins.

    CONTAINERS_CONF stands for all of them; CONTAINERS_CONF_OVERRIDE is read last in any case.
    """
    single = os.environ.get("CONTAINERS_CONF")
    if single:
        files = [single]
    else:
        files = ["/usr/share/containers/containers.conf"]
        files += _with_drop_ins("/etc/containers/containers.conf")
        if is_rootless():
            files += _with_drop_ins(f"{config_home()}/containers/containers.conf")
    override = os.environ.get("CONTAINERS_CONF_OVERRIDE")
    return [*files, override] if override else files


def _with_drop_ins(path: str) -> list[str]:
    directory = path + ".d"
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".conf"))
    except (FileNotFoundError, NotADirectoryError):
        names = []
    except OSError as error:
        raise Error("read the configuration") from error
    return [path, *(f"{directory}/{name}" for name in names)]


def _system_storage_conf() -> str:
    path = "/etc/containers/storage.conf"
    return path if os.path.exists(path) else "/usr/share/containers/storage.conf"


def _common_storage_conf() -> str:
    """The file that counts for everybody: the system's, or the one that stands for it."""
    chosen = os.environ.get("CONTAINERS_STORAGE_CONF", "")
    return chosen if chosen and os.path.exists(chosen) else _system_storage_conf()


def _own_storage_conf() -> list[str]:
    """The user's file; none for root, and none beside CONTAINERS_STORAGE_CONF."""
    if not is_rootless() or os.environ.get("CONTAINERS_STORAGE_CONF"):
        return []
    return [f"{config_home()}/containers/storage.conf"]


def storage_conf_files() -> list[str]:
    """The storage.conf files in the order in which they are read."""
    return [_common_storage_conf(), *_own_storage_conf()]


def graphroot() -> tuple[str, str]:
    """podman's storage directory and where that is said: a file's path, or "default".

    In the common file graphroot is root's, and only rootless_storage_path is meant for users; so
    it is where that file is named by CONTAINERS_STORAGE_CONF (tried with podman 4.3.1).
    """
    if not is_rootless():
        value, source = toml.last_string([_common_storage_conf()], "storage", "graphroot")
        return _expand(value or "/var/lib/containers/storage"), source or "default"
    own = _own_storage_conf()
    value, source = toml.last_string(own, "storage", "graphroot")
    if not value:
        files = [_common_storage_conf(), *own]
        value, source = toml.last_string(files, "storage", "rootless_storage_path")
    if not value:
        return _expand(f"{data_home()}/containers/storage"), "default"
    return _expand(value), source


def runroot() -> tuple[str, str]:
    """Where podman's storage keeps what need not outlive a reboot, and what says so."""
    files = _own_storage_conf() if is_rootless() else [_common_storage_conf()]
    value, source = toml.last_string(files, "storage", "runroot")
    if value:
        return _expand(value), source
    path = f"{_runtime_dir()}/containers" if is_rootless() else "/run/containers/storage"
    return path, "default"


def tmp_dir() -> tuple[str, str]:
    """[engine] tmp_dir, where podman keeps its own state of this boot, and what says so."""
    value, source = toml.last_string(conf_files(), "engine", "tmp_dir")
    if value:
        return value, source
    return f"{_runtime_dir()}/libpod/tmp" if is_rootless() else "/run/libpod", "default"


def _runtime_dir() -> str:
    return os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{rootless_uid()}"


def storage_driver() -> str:
    """The storage driver that the configuration names; empty when podman would look for one."""
    return storage_driver_and_source()[0]


def storage_driver_and_source() -> tuple[str, str]:
    """The same with what says so."""
    name, source = os.environ.get("STORAGE_DRIVER", ""), "STORAGE_DRIVER"
    if not name:
        name, source = toml.last_string(storage_conf_files(), "storage", "driver")
    return "overlay" if name == "overlay2" else name, source or "default"


def _expand(path: str) -> str:
    """$UID and other variables replaced, and symbolic links resolved when the path exists."""
    path = os.path.expandvars(path.replace("$UID", str(rootless_uid())))
    try:
        return os.path.realpath(path, strict=True)
    except OSError:
        return "/" + os.path.normpath(path).lstrip("/")


def static_dir() -> tuple[str, str]:
    """The static dir by the configuration, and what says so.

    containers.conf's [engine] static_dir as it stands there, else `libpod` in the storage
    directory: the string that podman 3.2 to 4.9 hash for the name of their namespace.
    """
    value, source = toml.last_string(conf_files(), "engine", "static_dir")
    if value:
        return value, source
    root, source = graphroot()
    return f"{root}/libpod", source
