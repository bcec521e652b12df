"""rootlessnet network: podman's networks, and the backend that they belong to."""

from __future__ import annotations

import gc

from rootlessnet.cli import arguments, group
from rootlessnet.errors import Error, Failures

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.networks.network import Network, Subnet
    from rootlessnet.networks.subnets import Address

Option = arguments.Option

CREATE = (
    Option(
        "driver",
        "bridge (default), macvlan or, with CNI, ipvlan",
        metavar="NAME",
        may_be_empty=True,
        short="d",
        values=("bridge", "macvlan", "ipvlan"),
    ),
    Option("subnet", "a subnet; may be repeated", metavar="CIDR", may_be_empty=True),
    Option(
        "gateway", "the gateway of the subnet in the same place", metavar="IP", may_be_empty=True
    ),
    Option(
        "ip-range", "hand out addresses of the subnet from here", metavar="CIDR", may_be_empty=True
    ),
    Option("ipv6", "IPv4 and IPv6"),
    Option("internal", "nothing goes out"),
    Option("disable-dns", "containers find no others by name"),
    Option("dns", "name server for the containers (netavark)", metavar="IP"),
    Option(
        "ipam-driver",
        "host-local, none or, with CNI, dhcp",
        metavar="NAME",
        may_be_empty=True,
        values=("host-local", "none", "dhcp"),
    ),
    Option(
        "opt",
        "mtu=, vlan=, isolate=, mode=, parent=",
        metavar="KEY=VALUE",
        short="o",
        values=("mtu=", "vlan=", "isolate=", "mode=", "parent="),
    ),
    Option("label", "a label; may be repeated", metavar="KEY=VALUE"),
    Option(
        "interface-name", "name of the bridge, or the parent", metavar="NAME", may_be_empty=True
    ),
)
FORCE = Option("force", "do not ask", short="f")
DETACH = Option("force", "disconnect the containers that are on it", short="f")
LS = (
    arguments.JSON,
    Option("quiet", "print the names only", short="q"),
    Option(
        "filter",
        "name=, id=, driver=, label=, dangling=",
        metavar="KEY=VALUE",
        short="f",
        values=("name=", "id=", "driver=", "label=", "dangling="),
    ),
    Option("format", "a line for each, as {{.Name}} {{.Driver}}; or json", metavar="TEXT"),
)
CONNECT = (
    Option("ip", "the IPv4 address", metavar="A"),
    Option("ip6", "the IPv6 address", metavar="A"),
    Option("mac-address", "the MAC address", metavar="M"),
    Option("alias", "a name by which others find it; may be repeated", metavar="NAME"),
    Option("interface-name", "the name of the interface", metavar="NAME"),
    arguments.JSON,
)

COMMANDS = {
    "backend": "show which of podman's network backends counts, and why",
    "create": "make a network; without NAME one is made up",
    "connect": "attach a container to one more network",
    "disconnect": "detach a container from a network",
    "ls": "show the networks",
    "inspect": "print networks as podman's JSON",
    "rm": "remove networks",
    "prune": "remove all networks that are not in use",
}


def main(argv: list[str]) -> int:
    """`rootlessnet network`: argv is everything but the word network."""
    chosen = group.choose(argv, "network", COMMANDS)
    if isinstance(chosen, int):
        return chosen
    name, argv = chosen
    # Short-lived, and nothing to collect in it.
    gc.disable()
    command = {
        "backend": _backend,
        "create": _create,
        "connect": _connect,
        "disconnect": _disconnect,
        "ls": _ls,
        "inspect": _inspect,
        "rm": _rm,
        "prune": _prune,
    }[name]
    return command(argv)


def _parse(
    argv: list[str],
    usage: str,
    options: tuple[arguments.Option, ...] = (),
    least: int = 0,
    most: int | None = 0,
) -> tuple[arguments.Values, list[str]] | None:
    """The values and words of a command, or None when it was asked for help only."""
    what = COMMANDS[usage.split()[0]]
    return group.parse(argv, f"network {usage}", what, options, least, most)


def _backend(argv: list[str]) -> int:
    parsed = _parse(argv, "backend [--json]", (arguments.JSON,))
    if parsed is None:
        return 0
    from rootlessnet.networks import backend

    try:
        choice = backend.choose()
    except Error as error:
        raise Error("choose the network backend") from error
    choice.record()
    if "json" in parsed[0]:
        import json

        print(json.dumps(choice.document(), indent=2))
        return 0
    print(f"{choice.name}: {choice.reason}")
    return 0


def _create(argv: list[str]) -> int:
    parsed = _parse(argv, "create [OPTIONS] [NAME]", (*CREATE, arguments.JSON), 0, 1)
    if parsed is None:
        return 0
    values, words = parsed
    from rootlessnet.networks import api

    attempt = f"create network {words[0]}" if words and words[0] else "create a network"
    try:
        made = api.create(_described(values, words[0] if words else ""))
    except Error as error:
        raise Error(attempt) from error
    if "json" in values:
        _print_json(made.document())
    else:
        print(made.name)
    return 0


def _described(values: arguments.Values, name: str) -> Network:
    """The network that the command line describes. Raises Error."""
    from rootlessnet.networks.network import Network

    network = Network(
        name,
        driver=arguments.last(values, "driver") or "bridge",
        interface=arguments.last(values, "interface-name"),
        ipv6="ipv6" in values,
        internal="internal" in values,
        dns="disable-dns" not in values,
        dns_servers=_listed(values, "dns"),
        labels=_pairs(values, "label", "failed to parse labels"),
        options=_pairs(values, "opt", "unable to parse options"),
    )
    if "ipam-driver" in values:
        network.ipam_options["driver"] = arguments.last(values, "ipam-driver")
    if network.driver == "macvlan" and "parent" in network.options:
        network.interface = network.options.pop("parent")
    network.subnets = _subnets(values)
    return network


def _listed(values: arguments.Values, name: str) -> list[str]:
    return [item for value in values.get(name, ()) if value for item in value.split(",")]


def _pairs(values: arguments.Values, option: str, attempt: str) -> dict[str, str]:
    found = {}
    for text in values.get(option, ()):
        key, _, value = text.partition("=")
        if not key:
            raise Error(f'{attempt}: invalid label format: "{text}"')
        found[key] = value
    return found


def _subnets(values: arguments.Values) -> list[Subnet]:
    from rootlessnet.networks import subnets
    from rootlessnet.networks.network import Subnet

    gateways = [_gateway(text) for text in _listed(values, "gateway")]
    given, ranges = values.get("subnet", []), values.get("ip-range", [])
    if not given and (gateways or ranges):
        raise Error("cannot set gateway or range without subnet")
    if len(gateways) > len(given):
        raise Error("cannot set more gateways than subnets")
    if len(ranges) > len(given):
        raise Error("cannot set more ranges than subnets")
    found = []
    try:
        for number, text in enumerate(given):
            item = Subnet(subnets.parse_cidr(text))
            if number < len(ranges):
                lease = subnets.parse_cidr(ranges[number])
                item.start, item.end = subnets.first_address(lease), subnets.last_address(lease)
            if number < len(gateways):
                item.gateway = gateways[number]
            found.append(item)
    except ValueError as error:
        raise Error(str(error)) from None
    return found


def _gateway(text: str) -> Address:
    from rootlessnet.networks import subnets

    try:
        return subnets.parse_address(text.strip())
    except ValueError:
        raise Error(
            f'invalid argument "{text}" for "--gateway" flag: '
            f"invalid string being converted to IP address: {text}"
        ) from None


def _connect(argv: list[str]) -> int:
    parsed = _parse(argv, "connect [OPTIONS] NETWORK CONTAINER", CONNECT, 2, 2)
    if parsed is None:
        return 0
    values, (name, id) = parsed
    from rootlessnet.cli.container import print_record, untold
    from rootlessnet.instance import paths
    from rootlessnet.networks import api
    from rootlessnet.networks.connection import Connection

    wanted = Connection(
        name,
        static_ips=[*values.get("ip", ()), *values.get("ip6", ())],
        static_mac=arguments.last(values, "mac-address"),
        aliases=values.get("alias", ()),
        interface=arguments.last(values, "interface-name"),
    )
    instance = paths.find(arguments.last(values, "static-dir"))
    attempt = f"connect container {id} to network {name}"
    try:
        record = api.connect(id, wanted, instance=instance)
    except Error as error:
        raise Error(attempt) from error
    try:
        print_record(record, "json" in values)
    except OSError as error:
        api.disconnect(id, name, instance=instance)
        untold(error, attempt)
    arguments.leave(0)


def _disconnect(argv: list[str]) -> int:
    parsed = _parse(argv, "disconnect NETWORK CONTAINER", (), 2, 2)
    if parsed is None:
        return 0
    values, (name, id) = parsed
    from rootlessnet.instance import paths
    from rootlessnet.networks import api

    try:
        api.disconnect(id, name, instance=paths.find(arguments.last(values, "static-dir")))
    except Error as error:
        raise Error(f"disconnect container {id} from network {name}") from error
    arguments.leave(0)


def _ls(argv: list[str]) -> int:
    parsed = _parse(argv, "ls [--filter KEY=VALUE]... [--format TEXT] [--json] [--quiet]", LS)
    if parsed is None:
        return 0
    from rootlessnet.networks import api, filters

    values, _ = parsed
    try:
        networks = filters.chosen(values.get("filter", []), api.list_all())
    except Error as error:
        raise Error("list the networks") from error
    if "json" in values:
        _print_json([network.document() for network in networks], indent=2)
        return 0
    if "quiet" in values:
        for network in networks:
            print(network.name)
        return 0
    if "format" in values:
        from rootlessnet.cli import template

        template.show(
            arguments.last(values, "format"),
            [
                {"labels": {}, "options": {}, "subnets": [], **network.document()}
                for network in networks
            ],
        )
        return 0
    from rootlessnet.cli import table

    rows = [["NETWORK ID", "NAME", "DRIVER", "INTERFACE", "SUBNETS", "DNS", "INTERNAL"]]
    for network in networks:
        shown = " ".join(str(item.subnet) for item in network.subnets)
        rows.append([network.id[:12], network.name, network.driver, network.interface or "-"])
        rows[-1] += [shown or "-", _yes(network.dns), _yes(network.internal)]
    table.show(rows)
    return 0


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _inspect(argv: list[str]) -> int:
    parsed = _parse(argv, "inspect NETWORK...", (arguments.JSON,), 1, None)
    if parsed is None:
        return 0
    from rootlessnet.networks import api, definition

    try:
        networks = {network.name: network for network in api.list_all()}
    except Error as error:
        raise Error("inspect networks") from error
    found, failed = [], []
    for name in parsed[1]:
        try:
            found.append(definition.find(networks, name).document())
        except Error as error:
            failed.append(error)
    _print_json(found)
    if failed:
        raise Failures("inspect networks", failed)
    return 0


def _print_json(value: object, indent: int = 5) -> None:
    from rootlessnet.networks import gojson

    # podman escapes for HTML in `ls` and not in `inspect`.
    print(gojson.encode(value, indent, for_html=indent != 5))


def _rm(argv: list[str]) -> int:
    parsed = _parse(argv, "rm [--force] NETWORK...", (DETACH,), 1, None)
    if parsed is None:
        return 0
    from rootlessnet.networks import api

    failed = []
    for name in parsed[1]:
        try:
            api.remove(name, force="force" in parsed[0])
        except Error as error:
            failed.append(error)
        else:
            print(name)
    if failed:
        raise Failures("remove networks", failed)
    return 0


def _prune(argv: list[str]) -> int:
    parsed = _parse(argv, "prune [--force]", (FORCE, arguments.JSON))
    if parsed is None:
        return 0
    import sys

    from rootlessnet.networks import api

    if "force" not in parsed[0] and sys.stdin.isatty():
        sys.stderr.write("Remove all networks that no container uses? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            return 0
    try:
        removed = api.prune()
    except Error as error:
        raise Error("remove unused networks") from error
    if "json" in parsed[0]:
        import json

        print(json.dumps([network.name for network in removed], indent=2))
        return 0
    for network in removed:
        print(network.name)
    return 0
