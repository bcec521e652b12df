"""Networks in the files of podman's netavark backend.

<graphroot>/networks/          0700
    netavark.lock              a POSIX record lock (fcntl F_SETLKW), podman's: guards the directory
    <name>.json                one network: name as in it, id of 64 characters, 5 spaces indent

The default network is in no file unless somebody wrote one. A file that makes no sense is skipped
with a warning, as podman does: one damaged file must not take the others away.
"""

from __future__ import annotations

import os

from rootlessnet.config import containers
from rootlessnet.config import network as config
from rootlessnet.errors import Error, warn
from rootlessnet.kernel import files
from rootlessnet.networks import definition, gojson, subnets
from rootlessnet.networks.network import (
    NAME_RULE,
    from_document,
    is_name,
    timestamp,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from rootlessnet.networks.network import Network

NAME = "netavark"
LOCK = "netavark.lock"
SUFFIX = ".json"

_PREFIX = "podman"
_DEFAULT_ID = "2f259bab93aaaaa2542ba43ef33eb990d0999ee1b9924b557b7be53c0b7a1bb9"
_MAX_SIZE = 1 << 20


def directory() -> str:
    """Where the files are."""
    own = config.config_dir()
    if own:
        return own
    if not containers.is_rootless():
        return "/etc/containers/networks"
    return f"{containers.graphroot()[0]}/networks"


def check_usable() -> None:
    """Raise Error when there is no netavark to use."""
    if not config.find_helper(NAME):
        directories = " ".join(d for d in config.helper_dirs())
        raise Error(
            f'could not find "{NAME}" in one of [{directories}].  To resolve this error, set the '
            "helper_binaries_dir key in the `[engine]` section of containers.conf to the directory "
            "containing your helper binaries."
        )


def load(path: str) -> dict[str, Network]:
    """The networks of the files in a directory, by name; without the default network."""
    found: dict[str, Network] = {}
    try:
        names = sorted(os.listdir(path))
    except FileNotFoundError:
        return found
    except OSError as error:
        raise Error("read the networks") from error
    for name in names:
        file = f"{path}/{name}"
        if not name.endswith(SUFFIX) or (os.path.isdir(file) and not os.path.islink(file)):
            continue
        network = _read(file, name)
        if network is not None:
            found[network.name] = network
    return found


def _read(path: str, file_name: str) -> Network | None:
    import json

    shown = gojson.quote(path)
    try:
        text = files.read(path, _MAX_SIZE, follow=True).decode(errors="replace")
        # What follows the first value is nobody's business: podman does not read it either.
        network = from_document(json.JSONDecoder().raw_decode(text.lstrip(" \t\r\n"))[0])
    except FileNotFoundError:
        return None
    except OSError as error:
        warn(f"Error loading network config file {shown}: {error.strerror}")
        return None
    except (ValueError, RecursionError) as error:
        warn(f"Error reading network config file {shown}: {error}")
        return None
    name = gojson.quote(network.name)
    if network.name + SUFFIX != file_name:
        warn(
            f"Network config name {name} does not match file name {gojson.quote(file_name)}, "
            "skipping"
        )
        return None
    if not is_name(network.name):
        warn(f"Network config {shown} has invalid name: {name}, skipping: {NAME_RULE}")
        return None
    try:
        if len(network.id.encode()) != 64:
            raise Error(f"invalid network ID {gojson.quote(network.id)}")
        definition.check_subnets(network, add_gateway=_wants_gateway(network), taken=[])
    except Error as error:
        warn(f"Network config {shown} could not be parsed, skipping: {error}")
        return None
    return network


def file_of(network: Network, _directory: str) -> str:
    """The name of a network's file."""
    return network.name + SUFFIX


def _wants_gateway(network: Network) -> bool:
    # A DNS server has to listen somewhere, also where nothing goes out.
    return not network.internal or network.dns


def default() -> Network:
    """The network that is always there."""
    network = definition.default(_PREFIX)
    network.id = _DEFAULT_ID
    return network


def complete(new: Network, networks: Mapping[str, Network]) -> None:
    """Check a new network and fill in what it does not say. Raises Error."""
    import time

    new.id = _new_id(networks)
    definition.name(new, networks, _PREFIX)
    ipam = new.ipam_options.get("driver", "")
    if ipam == definition.NONE:
        if new.subnets:
            raise Error("none ipam driver is set but subnets are given")
    elif ipam == definition.DHCP:
        raise Error("dhcp ipam driver is not yet supported with netavark")
    elif ipam not in ("", definition.HOST_LOCAL):
        raise Error(f"unsupported ipam driver {gojson.quote(ipam)}")
    taken = subnets.used(networks.values()) if new.driver == "bridge" else []
    if new.driver == "bridge":
        definition.bridge(new, networks, _PREFIX, taken)
    elif new.driver == "macvlan":
        _macvlan(new, ipam)
    else:
        raise Error(f"unsupported driver {new.driver}: invalid argument")
    _check_options(new)
    if ipam == definition.NONE:
        new.dns = False
    _check_dns_servers(new)
    definition.check_subnets(new, add_gateway=_wants_gateway(new), taken=taken)
    new.created = timestamp(time.time_ns())


def _new_id(networks: Mapping[str, Network]) -> str:
    while True:
        value = os.urandom(32).hex()
        # The short form must not look like a number.
        if not value[:12].isdecimal() and not definition.has(networks, value):
            return value


def _macvlan(new: Network, ipam: str) -> None:
    definition.parent(new)
    if not new.subnets and not ipam:
        raise Error(
            "macvlan driver needs at least one subnet specified, "
            "DHCP is not yet supported with netavark"
        )
    if not new.subnets and ipam == definition.HOST_LOCAL:
        raise Error(
            "macvlan driver needs at least one subnet specified, "
            "when the host-local ipam driver is set"
        )
    new.ipam_options.setdefault("driver", definition.HOST_LOCAL)


def _check_options(new: Network) -> None:
    for key, value in sorted(new.options.items()):
        if key == "mtu":
            definition.mtu(value)
        elif key == "vlan" and new.driver == "bridge":
            definition.vlan(value)
        elif key == "isolate" and new.driver == "bridge":
            # netavark knows no other spelling.
            new.options[key] = "true" if definition.truth(value) else "false"
        elif key == "mode" and new.driver == "macvlan":
            definition.mode(new.driver, value)
        else:
            raise Error(f"unsupported {new.driver} network option {key}")


def _check_dns_servers(new: Network) -> None:
    # podman has these from 4.5 on; 4.3 passes over them in the file.
    if new.dns_servers and not new.dns:
        raise Error(
            "cannot set NetworkDNSServers if DNS is not enabled for the network: invalid argument"
        )
    for server in new.dns_servers:
        try:
            subnets.parse_address(server)
        except ValueError:
            raise Error(
                f"unable to parse ip {server} specified in NetworkDNSServers: invalid argument"
            ) from None


def encode(network: Network) -> str:
    """The file of a network."""
    return gojson.encode(network.document(), 5) + "\n"
