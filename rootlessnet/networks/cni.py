"""Networks in the files of podman's CNI backend.

$XDG_CONFIG_HOME/cni/net.d/    0700
    cni.lock                   a POSIX record lock, podman's: guards the directory
    <name>.conflist            one network, for the plugins bridge, portmap, firewall and tuning, or
                               macvlan or ipvlan alone; 3 spaces indent, no newline at the end

What others wrote is read as podman reads it: any *.conflist whose plugins are there. Its id is the
hash of its name, and of what the plugins cannot say only labels and options are kept, under `args`.
"""

from __future__ import annotations

import os

from rootlessnet.config import containers
from rootlessnet.config import network as config
from rootlessnet.errors import Error, reason, warn
from rootlessnet.networks import conflist, definition, gojson, subnets
from rootlessnet.networks.cni_plugins import Plugins
from rootlessnet.networks.network import NAME_RULE, is_name, timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from rootlessnet.networks.network import Network

NAME = "cni"
LOCK = "cni.lock"
SUFFIX = ".conflist"

_PREFIX = "cni-podman"
_VERSION_SECONDS = 5.0


def directory() -> str:
    """Where the files are."""
    own = config.config_dir()
    if own:
        return own
    if not containers.is_rootless():
        return "/etc/cni/net.d"
    return f"{containers.config_home()}/cni/net.d"


def check_usable() -> None:
    """The plugins are looked for when a network is read."""


# -- reading ---------------------------------------------------------------------------------------


def load(path: str) -> dict[str, Network]:
    """The networks of the files in a directory, by name; without the default network."""
    found: dict[str, Network] = {}
    sources: dict[str, str] = {}
    versions = _Versions(config.cni_plugin_dirs())
    for file in _files(path):
        try:
            network = _read(file, versions, sources)
        except FileNotFoundError:
            continue
        except conflist.Unreadable as error:
            warn(str(error))
            continue
        found[network.name] = network
        sources[network.name] = file
    return found


def _files(path: str) -> list[str]:
    try:
        names = sorted(os.listdir(path))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Error("read the networks") from error
    files = [f"{path}/{name}" for name in names if name.endswith(SUFFIX)]
    return [file for file in files if not os.path.isdir(file)]


def _read(file: str, versions: _Versions, sources: dict[str, str]) -> Network:
    parsed = conflist.read(file)
    name = parsed["name"]
    if not is_name(name):
        raise conflist.Unreadable(f"CNI config list {file} has invalid name, skipping: {NAME_RULE}")
    wrong = versions.check(parsed)
    if wrong:
        raise conflist.Unreadable(f"Error validating CNI config file {file}: [{' '.join(wrong)}]")
    if name in sources:
        raise conflist.Unreadable(
            f"CNI config list {file} has the same network name as {sources[name]}, skipping"
        )
    try:
        network = conflist.convert(parsed)
    except ValueError as error:
        raise conflist.Unreadable(
            f"CNI config list {file} could not be converted to a libpod config, skipping: {error}"
        ) from None
    network.created = timestamp(os.stat(file).st_ctime_ns)
    return network


def file_of(network: Network, path: str) -> str:
    """The name of the file that a network was read from, which need not be the network's."""
    for file in _files(path):
        try:
            if conflist.read(file)["name"] == network.name:
                return os.path.basename(file)
        except (FileNotFoundError, conflist.Unreadable):
            continue
    return network.name + SUFFIX


class _Versions:
    """Which plugins there are and which versions of the specification they speak."""

    def __init__(self, directories: list[str]) -> None:
        self._plugins = Plugins(directories, os.environ, _VERSION_SECONDS)
        self._known: dict[str, tuple[str, list[str]]] = {}

    def check(self, parsed: dict[str, Any]) -> list[str]:
        """What is wrong with the plugins of a list."""
        wanted = parsed.get("cniVersion") or "0.1.0"
        found = []
        for plugin in parsed["plugins"]:
            kind = plugin["type"]
            if kind not in self._known:
                self._known[kind] = self._ask(kind)
            wrong, versions = self._known[kind]
            if wrong:
                found.append(wrong)
            elif wanted not in versions:
                found.append(
                    f"plugin {kind} does not support config version {gojson.quote(wanted)}"
                )
        return found

    def _ask(self, kind: str) -> tuple[str, list[str]]:
        try:
            return "", self._plugins.versions(kind)
        except Error as error:
            return reason(error), []


# -- making ----------------------------------------------------------------------------------------


def default() -> Network:
    """The network that is always there."""
    network = definition.default(_PREFIX)
    network.id = conflist.id_of(network.name)
    return network


def complete(new: Network, networks: Mapping[str, Network]) -> None:
    """Check a new network and fill in what it does not say. Raises Error."""
    import time

    if new.dns_servers:
        raise Error("NetworkDNSServers cannot be configured for backend CNI: invalid argument")
    definition.name(new, networks, _PREFIX)
    ipam = new.ipam_options.get("driver", "")
    if ipam in (definition.DHCP, definition.NONE):
        if new.subnets:
            raise Error(f"{ipam} ipam driver is set but subnets are given")
    elif ipam not in ("", definition.HOST_LOCAL):
        raise Error(f"unsupported ipam driver {gojson.quote(ipam)}")
    taken = subnets.used(networks.values()) if new.driver == "bridge" else []
    if new.driver == "bridge":
        definition.bridge(new, networks, _PREFIX, taken)
    elif new.driver in definition.MODES:
        _vlan_device(new, ipam)
    else:
        raise Error(f"unsupported driver {new.driver}: invalid argument")
    definition.check_subnets(new, add_gateway=not new.internal, taken=taken)
    new.id = conflist.id_of(new.name)
    if ipam == definition.NONE:
        new.dns = False
    if new.dns and new.internal and conflist.has_dnsname():
        warn(
            "dnsname and internal networks are incompatible. dnsname plugin not configured for "
            f"network {new.name}"
        )
        new.dns = False
    conflist.plugins(new)
    new.created = timestamp(time.time_ns())


def _vlan_device(new: Network, ipam: str) -> None:
    definition.parent(new)
    if not ipam:
        new.ipam_options["driver"] = definition.HOST_LOCAL if new.subnets else definition.DHCP
    elif ipam == definition.HOST_LOCAL and not new.subnets:
        raise Error("host-local ipam driver set but no subnets are given")
    if new.ipam_options["driver"] == definition.DHCP and new.internal:
        raise Error("internal is not supported with macvlan and dhcp ipam driver")


def encode(network: Network) -> str:
    """The file of a network."""
    return conflist.encode(network)
