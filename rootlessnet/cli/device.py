"""rootlessnet device: give network devices to other namespaces, count, list."""

from __future__ import annotations

from rootlessnet.cli import arguments, group, table
from rootlessnet.errors import UsageError

NAME = arguments.Option("name", "the name there; %d is the first free number", metavar="NEW")
BUNDLE = arguments.Option("bundle", "the OCI bundle whose config.json asks", metavar="DIR")

COMMANDS = {
    "move": "give a device to the network namespace NETNS (a path, or a name in /run/netns)",
    "apply": "give NETNS the devices that linux.netDevices of an OCI bundle asks for",
    "stats": "show the counters of a container by its device's host end",
    "ls": "show the devices of this network namespace, or of NETNS",
}


def main(argv: list[str]) -> int:
    """`rootlessnet device`: argv is everything but the word device."""
    chosen = group.choose(argv, "device", COMMANDS)
    if isinstance(chosen, int):
        return chosen
    name, argv = chosen
    command = {"move": _move, "apply": _apply, "stats": _stats, "ls": _ls}[name]
    return command(argv)


def _parse(
    argv: list[str], usage: str, options: tuple[arguments.Option, ...], least: int, most: int
) -> tuple[arguments.Values, list[str]] | None:
    """The values and words of a command, or None when it was asked for help only."""
    options = (*arguments.COMMON, *options)
    # To the counters of a container without a network belongs no name.
    values, words = arguments.parse(argv, options, may_be_empty=usage.startswith("stats "))
    name = usage.split()[0]
    if "help" in values:
        print(arguments.help_text(f"device {usage}", group.sentence(COMMANDS[name]), options))
        return None
    if len(words) < least:
        raise UsageError(f"device {name}: too few arguments: device {usage}")
    arguments.no_words(words[most:])
    return values, words


def _move(argv: list[str]) -> int:
    parsed = _parse(argv, "move DEVICE NETNS [--name NEW]", (NAME,), 2, 2)
    if parsed is None:
        return 0
    values, (name, path) = parsed
    new = arguments.last(values, "name")
    from rootlessnet.devices.move import move

    print(move(name, path, new))
    return 0


def _apply(argv: list[str]) -> int:
    parsed = _parse(argv, "apply --bundle DIR NETNS", (BUNDLE, arguments.JSON), 1, 1)
    if parsed is None:
        return 0
    values, (path,) = parsed
    if "bundle" not in values:
        raise UsageError("device apply: no bundle is given: --bundle DIR")
    from rootlessnet.devices import oci

    moved = oci.apply(arguments.last(values, "bundle"), path)
    if "json" in values:
        import json

        print(json.dumps([{"device": here, "name": there} for here, there in moved], indent=2))
        return 0
    for here, there in moved:
        print(f"{here} {there}")
    return 0


def _stats(argv: list[str]) -> int:
    parsed = _parse(argv, "stats DEVICE [--json]", (arguments.JSON,), 1, 1)
    if parsed is None:
        return 0
    values, (name,) = parsed
    from rootlessnet.devices.stats import stats

    result = stats(name)
    if "json" in values:
        import json

        print(json.dumps(result, indent=2))
        return 0
    counters = ("bytes", "packets", "errors", "dropped")
    rows = [["NAME", "", *map(str.upper, counters)]]
    for way in ("rx", "tx"):
        rows.append([name, way, *(str(result[f"{way}_{counter}"]) for counter in counters)])
    table.plain(rows)
    return 0


def _ls(argv: list[str]) -> int:
    parsed = _parse(argv, "ls [NETNS] [--json]", (arguments.JSON,), 0, 1)
    if parsed is None:
        return 0
    values, words = parsed
    from rootlessnet.devices.move import open_target
    from rootlessnet.devices.place import Place

    with open_target(words[0]) if words else Place.own() as place:
        found = [(link, place.links.addresses(link.index)) for link in place.links.all()]
    if "json" in values:
        import json

        devices = [
            {
                "name": link.name,
                "index": link.index,
                "kind": link.kind,
                "mac": link.mac,
                "mtu": link.mtu,
                "up": link.is_up,
                "alias": link.alias,
                "addresses": [str(address) for address in addresses],
            }
            for link, addresses in found
        ]
        print(json.dumps(devices, indent=2))
        return 0
    rows = [["NAME", "KIND", "STATE", "MTU", "MAC", "ADDRESSES"]]
    for link, addresses in found:
        state = "up" if link.is_up else "down"
        shown = " ".join(map(str, addresses))
        rows.append(
            [link.name, link.kind or "-", state, str(link.mtu), link.mac or "-", shown or "-"]
        )
    table.plain(rows)
    return 0
