"""A CNI configuration list: podman's view of one, and the one that podman writes for a network."""

from __future__ import annotations

import os

from rootlessnet.config import network as config
from rootlessnet.errors import Error
from rootlessnet.kernel import files
from rootlessnet.networks import definition, gojson, subnets
from rootlessnet.networks.network import Network, Subnet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_VERSION = "0.4.0"  # what plugins of any age understand
_SAME_BRIDGE = "same-bridge"
_MAX_SIZE = 1 << 20


class Unreadable(Exception):
    """Why podman would skip a file."""


def read(path: str) -> dict[str, Any]:
    """The list in a file, with what everything relies on checked.

    Raises FileNotFoundError when it is gone, and Unreadable.
    """
    import json

    try:
        value = json.loads(files.read(path, _MAX_SIZE, follow=True).decode(errors="replace"))
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
        _check_form(value)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreadable(
            f"Error loading CNI config file {path}: error reading {path}: {error.strerror}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise Unreadable(
            f"Error loading CNI config file {path}: error parsing configuration list: {error}"
        ) from None
    return value


def _check_form(value: dict[str, Any]) -> None:
    if "name" not in value:
        raise ValueError("no name")
    if not isinstance(value["name"], str):
        raise ValueError("invalid name type")
    if not isinstance(value.get("cniVersion", ""), str):
        raise ValueError("invalid cniVersion type")
    plugins = value.get("plugins")
    if not isinstance(plugins, list):
        raise ValueError("no 'plugins' key" if plugins is None else "invalid 'plugins' type")
    if not plugins:
        raise ValueError("no plugins in list")
    for number, plugin in enumerate(plugins):
        kind = plugin.get("type") if isinstance(plugin, dict) else None
        if not isinstance(kind, str) or not kind:
            raise ValueError(f"failed to parse plugin config {number}: missing 'type'")


def convert(conflist: dict[str, Any]) -> Network:
    """podman's view of a conflist. Raises ValueError."""
    network = Network(conflist["name"], dns=False)
    network.id = id_of(network.name)
    args = conflist.get("args")
    if isinstance(args, dict):
        network.labels = _texts(args.get("podman_labels"))
        network.options = _texts(args.get("podman_options"))
    plugins = {plugin["type"]: plugin for plugin in reversed(conflist["plugins"])}
    first = conflist["plugins"][0]
    network.driver = first["type"]
    if network.driver == "bridge":
        network.interface = _value(first, "bridge", str)
        network.internal = not _value(first, "isGateway", bool)
        _numbers(network, first, ("mtu", "vlan"))
    elif network.driver in definition.MODES:
        network.interface = _value(first, "master", str)
        _numbers(network, first, ("mtu",))
        if _value(first, "mode", str):
            network.options["mode"] = first["mode"]
    if network.driver == "bridge" or network.driver in definition.MODES:
        _ipam(network, _value(first, "ipam", dict))
    network.dns = "dnsname" in plugins
    firewall = plugins.get("firewall", {})
    if _value(firewall, "ingressPolicy", str) == _SAME_BRIDGE:
        network.options["isolate"] = "true"
    return network


def _texts(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {key: text for key, text in value.items() if isinstance(text, str)}


def _value(plugin: dict[str, Any], key: str, kind: type) -> Any:
    value = plugin.get(key)
    if value is None:
        return kind()
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"failed to unmarshal the plugin config: {key} has the wrong type")
    return value


def _numbers(network: Network, plugin: dict[str, Any], keys: tuple[str, ...]) -> None:
    for key in keys:
        number = _value(plugin, key, int)
        if number:
            network.options[key] = str(number)


def _ipam(network: Network, ipam: dict[str, Any]) -> None:
    kind = _value(ipam, "type", str)
    network.ipam_options["driver"] = kind or definition.NONE
    if kind != definition.HOST_LOCAL:
        return
    for ranges in _value(ipam, "ranges", list):
        for item in ranges if isinstance(ranges, list) else ():
            texts = {
                key: _value(item, key, str)
                for key in ("subnet", "gateway", "rangeStart", "rangeEnd")
            }
            subnet = Subnet(subnets.parse_cidr(texts["subnet"]))
            subnet.gateway = _address(texts["gateway"], "gateway")
            if subnet.gateway is None and not network.internal:
                subnet.gateway = subnets.first_address(subnet.subnet)
            subnet.start = _address(texts["rangeStart"], "range start")
            subnet.end = _address(texts["rangeEnd"], "range end")
            if subnet.subnet.version == 6:
                network.ipv6 = True
            network.subnets.append(subnet)


def _address(text: str, what: str) -> subnets.Address | None:
    if not text:
        return None
    try:
        return subnets.parse_address(text)
    except ValueError:
        raise ValueError(f"failed to parse {what} ip {text}") from None


def id_of(name: str) -> str:
    import hashlib

    return hashlib.sha256(name.encode()).hexdigest()


def encode(network: Network) -> str:
    """The file of a network."""
    conflist: dict[str, Any] = {}
    args = {"podman_labels": network.labels, "podman_options": network.options}
    args = {key: dict(sorted(value.items())) for key, value in args.items() if value}
    if args:
        conflist["args"] = args
    conflist["cniVersion"] = _VERSION
    conflist["name"] = network.name
    conflist["plugins"] = plugins(network)
    return gojson.encode(conflist, 3)


def plugins(network: Network) -> list[dict[str, Any]]:
    """The chain of plugins. Raises Error for options that none of them has."""
    options = _options(network)
    ipam = _ipam_section(network)
    capabilities = {}
    if ipam["type"] == definition.HOST_LOCAL:
        capabilities = {"capabilities": {"ips": True}}
    extra = {key: options[key] for key in ("mtu", "mode") if options.get(key)}
    if network.driver != "bridge":
        first = {"type": network.driver, "master": network.interface, "ipam": ipam}
        return [{**first, **extra, **capabilities}]
    bridge: dict[str, Any] = {"type": "bridge", "bridge": network.interface}
    bridge["isGateway"] = not network.internal
    if not network.internal:
        bridge["ipMasq"] = True
    bridge |= extra
    bridge["hairpinMode"] = True
    if options.get("vlan"):
        bridge["vlan"] = options["vlan"]
    bridge["ipam"] = ipam
    bridge |= capabilities
    firewall = {"type": "firewall", "backend": ""}
    if options.get("isolate"):
        firewall["ingressPolicy"] = _SAME_BRIDGE
    chain: list[dict[str, Any]] = [
        bridge,
        {"type": "portmap", "capabilities": {"portMappings": True}},
        firewall,
        {"type": "tuning"},
    ]
    if network.dns and has_dnsname():
        chain.append(
            {"type": "dnsname", "domainName": "dns.podman", "capabilities": {"aliases": True}}
        )
    return chain


def _options(network: Network) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in sorted(network.options.items()):
        if key == "mtu":
            found[key] = definition.mtu(value)
        elif key == "vlan":
            found[key] = definition.vlan(value)
        elif key == "mode":
            if network.driver not in definition.MODES:
                raise Error(f'cannot set option "mode" with driver {gojson.quote(network.driver)}')
            found[key] = definition.mode(network.driver, value)
        elif key == "isolate":
            if network.driver != "bridge":
                raise Error("isolate option is only supported with the bridge driver")
            try:
                found[key] = definition.truth(value)
            except Error as error:
                raise Error("failed to parse isolate option") from error
        else:
            raise Error(f"unsupported network option {key}")
    return found


def _ipam_section(network: Network) -> dict[str, Any]:
    kind = network.ipam_options.get("driver", "")
    if kind != definition.HOST_LOCAL:
        return {"type": "" if kind == definition.NONE else kind}
    section: dict[str, Any] = {"type": kind}
    if not network.internal and network.subnets:
        # One default route a family, in the order of the subnets.
        families = dict.fromkeys(item.subnet.version for item in network.subnets)
        section["routes"] = [{"dst": "::/0" if f == 6 else "0.0.0.0/0"} for f in families]
    section["ranges"] = [[_range(item)] for item in network.subnets]
    return section


def _range(item: Subnet) -> dict[str, str]:
    values = {
        "subnet": item.subnet,
        "rangeStart": item.start,
        "rangeEnd": item.end,
        "gateway": item.gateway,
    }
    return {key: str(value) for key, value in values.items() if value is not None}


def has_dnsname() -> bool:
    return any(os.path.exists(f"{path}/dnsname") for path in config.cni_plugin_dirs())
