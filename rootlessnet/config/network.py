"""What containers.conf says about container networks, with podman 4.3's defaults.

Each function reads the files when it is called: most commands want one value or two.
"""

from __future__ import annotations

import os

from rootlessnet.config import containers, toml
from rootlessnet.errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ipaddress import IPv4Network

DEFAULT_NETWORK = "podman"
DEFAULT_SUBNET = "10.88.0.0/16"
HELPER_DIRS = [
    "/usr/local/libexec/podman",
    "/usr/local/lib/podman",
    "/usr/libexec/podman",
    "/usr/lib/podman",
]
CNI_PLUGIN_DIRS = [
    "/usr/local/libexec/cni",
    "/usr/libexec/cni",
    "/usr/local/lib/cni",
    "/usr/lib/cni",
    "/opt/cni/bin",
]
NETAVARK_PLUGIN_DIRS = [
    "/usr/local/libexec/netavark",
    "/usr/libexec/netavark",
    "/usr/local/lib/netavark",
    "/usr/lib/netavark",
]
POOLS = [
    ("10.89.0.0/16", 24),
    ("10.90.0.0/15", 24),
    ("10.92.0.0/14", 24),
    ("10.96.0.0/11", 24),
    ("10.128.0.0/9", 24),
]


def _string(key: str) -> tuple[str, str]:
    return toml.last_string(containers.conf_files(), "network", key)


def backend() -> tuple[str, str]:
    """[network] network_backend and the file that has it; empty when nothing chooses."""
    return _string("network_backend")


def default_rootless_network_cmd() -> tuple[str, str]:
    """[network] default_rootless_network_cmd, slirp4netns or pasta, and the file that has it."""
    return _string("default_rootless_network_cmd")


def config_dir() -> str:
    """[network] network_config_dir; empty when the backend's own place counts."""
    return _string("network_config_dir")[0]


def default_network() -> str:
    """The name of the network that is always there."""
    return _string("default_network")[0] or DEFAULT_NETWORK


def default_subnet() -> str:
    """Its subnet, as it is written."""
    return _string("default_subnet")[0] or DEFAULT_SUBNET


def helper_dirs() -> list[str]:
    """Where podman looks for netavark and aardvark-dns; PATH does not count."""
    found, source = toml.last_strings(containers.conf_files(), "engine", "helper_binaries_dir")
    directories = found if source else list(HELPER_DIRS)
    first = os.environ.get("CONTAINERS_HELPER_BINARY_DIR", "")
    return [first, *directories] if first else directories


def find_helper(name: str) -> str:
    """The path of a helper; empty when it is in none of the helper directories."""
    for directory in helper_dirs():
        path = f"{directory}/{name}"
        if os.path.isfile(path):
            return path
    return ""


def cni_plugin_dirs() -> list[str]:
    """Where the CNI plugins are."""
    found, source = toml.last_strings(containers.conf_files(), "network", "cni_plugin_dirs")
    return found if source else list(CNI_PLUGIN_DIRS)


def subnet_pools() -> list[tuple[IPv4Network, int]]:
    """[network] default_subnet_pools: networks, and the prefix length of a subnet of each."""
    from ipaddress import IPv4Network

    value, path = toml.last_value(containers.conf_files(), "network", "default_subnet_pools")
    if value is None:
        return [(IPv4Network(base), size) for base, size in POOLS]
    pools = []
    try:
        for item in value:
            base, size = IPv4Network(item["base"], strict=False), item["size"]
            if not isinstance(size, int) or not 0 <= size <= 32:
                raise ValueError("invalid subnet pool size, must be between 0-32")
            if size < base.prefixlen:
                raise ValueError(
                    f'invalid subnet pool, size is bigger than subnet "{item["base"]}"'
                )
            pools.append((base, size))
    except (TypeError, KeyError):
        raise Error(
            f"read {path}: default_subnet_pools has to be a list of tables with base and size"
        ) from None
    except ValueError as error:
        raise Error(f"read {path}: {error}") from None
    return pools
