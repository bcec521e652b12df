"""Every setting of containers.conf and storage.conf that counts here, its value and what says so.

Commands that want one value ask containers.py or network.py for it; this is for looking at all of
them. What says so is the path of a file, the name of a variable, or "default".
"""

from __future__ import annotations

import os

from rootlessnet.config import containers, network, toml
from rootlessnet.errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Found = tuple[Any, str]

DEFAULT = "default"


def check_files() -> None:
    """Raise Error for the first file that is damaged, whether or not it has anything for us."""
    for path in [*containers.conf_files(), *containers.storage_conf_files()]:
        data = toml.read(path)
        if data:
            toml.parse(path, data)
    for name in ("CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF"):
        path = os.environ.get(name, "")
        if path and not os.path.exists(path):
            # podman's rule for these.
            raise Error(f"read {path}: No such file or directory", hint=f"unset {name}")


def _string(table: str, key: str, default: str | None) -> Found:
    value, source = toml.last_string(containers.conf_files(), table, key)
    return (value, source) if value else (default, DEFAULT)


def _strings(table: str, key: str, default: list[str]) -> Found:
    value, source = toml.last_strings(containers.conf_files(), table, key)
    return (value, source) if source else (default, DEFAULT)


def _helper_binaries_dir() -> Found:
    value, source = _strings("engine", "helper_binaries_dir", network.HELPER_DIRS)
    first = "CONTAINERS_HELPER_BINARY_DIR"
    return (network.helper_dirs(), first) if os.environ.get(first) else (value, source)


def _default_subnet_pools() -> Found:
    _, source = toml.last_value(containers.conf_files(), "network", "default_subnet_pools")
    pools = [{"base": str(base), "size": size} for base, size in network.subnet_pools()]
    return pools, source or DEFAULT


def _dns_bind_port() -> Found:
    value, source = toml.last_number(containers.conf_files(), "network", "dns_bind_port")
    return (value, source) if source else (0, DEFAULT)


def _storage_driver() -> Found:
    value, source = containers.storage_driver_and_source()
    return value or None, source


KEYS: dict[str, Callable[[], Found]] = {
    "default_rootless_network_cmd": lambda: _string(
        "network", "default_rootless_network_cmd", "slirp4netns"
    ),
    "network_cmd_path": lambda: _string("engine", "network_cmd_path", None),
    "network_cmd_options": lambda: _strings("engine", "network_cmd_options", []),
    "pasta_options": lambda: _strings("network", "pasta_options", []),
    "helper_binaries_dir": _helper_binaries_dir,
    "network_backend": lambda: _string("network", "network_backend", None),
    "network_config_dir": lambda: _string("network", "network_config_dir", None),
    "cni_plugin_dirs": lambda: _strings("network", "cni_plugin_dirs", network.CNI_PLUGIN_DIRS),
    "netavark_plugin_dirs": lambda: _strings(
        "network", "netavark_plugin_dirs", network.NETAVARK_PLUGIN_DIRS
    ),
    "default_network": lambda: _string("network", "default_network", network.DEFAULT_NETWORK),
    "default_subnet": lambda: _string("network", "default_subnet", network.DEFAULT_SUBNET),
    "default_subnet_pools": _default_subnet_pools,
    "dns_bind_port": _dns_bind_port,
    "firewall_driver": lambda: _string("network", "firewall_driver", None),
    "static_dir": containers.static_dir,
    "tmp_dir": containers.tmp_dir,
    "graphroot": containers.graphroot,
    "runroot": containers.runroot,
    "storage_driver": _storage_driver,
}
"""By name; None is where nothing is said and whoever needs it looks for itself."""
