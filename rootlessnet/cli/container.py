"""rootlessnet container: attach containers to networks, detach, list, describe, count."""

from __future__ import annotations

import gc

from rootlessnet.cli import arguments, group
from rootlessnet.errors import Error, Failures, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from rootlessnet.instance.paths import Instance

Option = arguments.Option

PID = Option("pid", "the network namespace of a process", metavar="P")
NETNS = Option("netns", "the network namespace of a path", metavar="PATH")

SETUP = (
    PID,
    NETNS,
    Option("new", "a new network namespace, removed with the container"),
    Option(
        "network",
        "a network (the default one), with ip=, ip6=, mac=, alias=, interface_name=",
        metavar="NAME[:KEY=VALUE,...]",
    ),
    Option(
        "publish",
        "lead ports of the host to it: [IP:][PORT:]PORT[-PORT][/udp]",
        metavar="RULE",
        short="p",
    ),
    Option("hostname", "a name by which others find it", metavar="NAME"),
    *arguments.CREATE,
    arguments.JSON,
)
ALL = Option("all", "every container", short="a")
GONE = Option("gone", "every container whose network namespace is gone")
QUIET = Option("quiet", "print the ids only", short="q")
FORMAT = Option("format", "a line for each, as {{.ID}} {{.Addresses}}; or json", metavar="TEXT")

COMMANDS = {
    "setup": "attach a container to networks",
    "teardown": "detach containers from everything; again is no error",
    "reload": "restore firewall rules and ports; IP and MAC stay",
    "check": "whether its networks are what they were set up as",
    "inspect": "print podman's NetworkSettings of a container or a network namespace",
    "stats": "show what went through the interfaces of a container",
    "ls": "show the containers",
}


def main(argv: list[str]) -> int:
    """`rootlessnet container`: argv is everything but the word container."""
    chosen = group.choose(argv, "container", COMMANDS)
    if isinstance(chosen, int):
        return chosen
    name, argv = chosen
    # Short-lived, and nothing to collect in it.
    gc.disable()
    command = {
        "setup": _setup,
        "teardown": _teardown,
        "reload": _reload,
        "check": _check,
        "inspect": _inspect,
        "stats": _stats,
        "ls": _ls,
    }[name]
    return command(argv)


def _parse(
    argv: list[str],
    usage: str,
    options: tuple[arguments.Option, ...] = (),
    least: int = 0,
    most: int | None = 0,
) -> tuple[arguments.Values, list[str], Instance] | None:
    """The values and words of a command and its instance; None when only help was wanted."""
    what = COMMANDS[usage.split()[0]]
    parsed = group.parse(argv, f"container {usage}", what, options, least, most)
    if parsed is None:
        return None
    values, words = parsed
    from rootlessnet.instance import paths

    return values, words, paths.find(arguments.last(values, "static-dir"))


def _pid(values: arguments.Values) -> int:
    text = arguments.last(values, "pid")
    if "pid" not in values:
        return 0
    plain = text.isascii() and text.isdecimal() and len(text) <= 10
    if not (plain and 0 < int(text) < 1 << 31):
        raise Error(f"--pid {text}: not a process id", hint="a number from 1 on, as ps shows it")
    return int(text)


def _setup(argv: list[str]) -> int:
    usage = "setup ID (--new | --pid P | --netns PATH) [--network NAME]... [OPTIONS]"
    parsed = _parse(argv, usage, SETUP, 1, 1)
    if parsed is None:
        return 0
    values, (id,), instance = parsed
    from rootlessnet.cli.enter import read_request
    from rootlessnet.networks import api, connection

    if sum(name in values for name in ("new", "pid", "netns")) != 1:
        raise UsageError("container setup: one of --new, --pid and --netns has to be given")
    attempt = f"set up container {id}"
    try:
        record = api.setup(
            id,
            [connection.parse(text) for text in values.get("network", ())],
            new="new" in values,
            pid=_pid(values),
            netns=arguments.last(values, "netns"),
            hostname=arguments.last(values, "hostname"),
            publish=values.get("publish", ()),
            instance=instance,
            requested=read_request(values),
        )
    except Error as error:
        raise Error(attempt) from error
    try:
        print_record(record, "json" in values)
    except OSError as error:
        # A failure leaves nothing, and who was not told will not tear it down.
        api.teardown(id, instance=instance)
        untold(error, attempt)
    arguments.leave(0)


def untold(error: OSError, attempt: str) -> NoReturn:
    """Raise what there is to say when a result that was undone could not be written."""
    import os

    if isinstance(error, BrokenPipeError):
        raise error
    # Or Python tries again at its end, and complains.
    os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)
    raise Error(f"{attempt}: write the result") from error


def print_record(record: dict[str, Any], as_json: bool) -> None:
    """What a setup has led to: as `inspect` shows it, or a line a network. Raises OSError."""
    import sys

    _print_record(record, as_json)
    sys.stdout.flush()


def _print_record(record: dict[str, Any], as_json: bool) -> None:
    from rootlessnet.instance import containers

    if as_json:
        from rootlessnet.networks import describe

        _print_json(describe.settings(record))
        return
    for name, item in record["networks"].items():
        print(name, item["interface"], *containers.addresses(item))


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2))


def _each(
    argv: list[str], usage: str, attempt: str, options: tuple[arguments.Option, ...]
) -> tuple[arguments.Values, list[str], Instance] | None:
    """As _parse, for a command that takes ids or --all."""
    parsed = _parse(argv, usage, options, 0, None)
    if parsed is None:
        return None
    values, words, instance = parsed
    groups = [name for name in ("all", "gone") if name in values]
    if groups and (words or len(groups) > 1):
        raise UsageError(f"container {attempt}: ids, --all or --gone")
    if not groups and not words:
        raise UsageError(f"container {attempt}: no container is named: container {usage}")
    if "all" in values:
        from rootlessnet.instance import containers

        words = containers.names(instance)
    return values, words, instance


def _teardown(argv: list[str]) -> int:
    parsed = _each(argv, "teardown ID... | --all | --gone", "teardown", (ALL, GONE))
    if parsed is None:
        return 0
    values, words, instance = parsed
    from rootlessnet.instance import containers
    from rootlessnet.networks import api

    for id in words:
        containers.check(id)
    if "gone" in values:
        for id in api.teardown_gone(instance=instance):
            print(id)
    failed = []
    for id in words:
        try:
            api.teardown(id, instance=instance)
        except Error as error:
            failed.append(error)
        else:
            print(id)
    if failed:
        raise Failures("tear down containers", failed)
    arguments.leave(0)


def _reload(argv: list[str]) -> int:
    parsed = _each(argv, "reload ID... | --all", "reload", (ALL,))
    if parsed is None:
        return 0
    _, words, instance = parsed
    from rootlessnet.networks import api

    failed = []
    for id in words:
        try:
            api.reload(id, instance=instance)
        except Error as error:
            failed.append(error)
        else:
            print(id)
    if failed:
        raise Failures("reload containers", failed)
    return 0


_DIFFERENT = 1
"""Exit status of check when something is not as it was set up."""


def _check(argv: list[str]) -> int:
    parsed = _each(argv, "check ID... | --all", "check", (ALL,))
    if parsed is None:
        return 0
    _, words, instance = parsed
    from rootlessnet.networks import api

    failed = []
    status = 0
    for id in words:
        try:
            found = api.check(id, instance=instance)
        except Error as error:
            failed.append(error)
            continue
        for text in found:
            print(f"{id}: {text}")
            status = _DIFFERENT
    if failed:
        raise Failures("check containers", failed)
    return status


def _inspect(argv: list[str]) -> int:
    usage = "inspect ID | --pid P | --netns PATH"
    parsed = _parse(argv, usage, (PID, NETNS, arguments.JSON), 0, 1)
    if parsed is None:
        return 0
    values, words, instance = parsed
    from rootlessnet.networks import api

    if len(words) + sum(name in values for name in ("pid", "netns")) != 1:
        raise UsageError(f"container inspect: one of them has to be given: container {usage}")
    try:
        if words:
            found = api.inspect_container(words[0], instance=instance)
        else:
            found = api.inspect_namespace(
                pid=_pid(values), netns=arguments.last(values, "netns"), instance=instance
            )
    except Error as error:
        raise Error("inspect") from error
    _print_json(found)
    return 0


def _stats(argv: list[str]) -> int:
    parsed = _parse(argv, "stats ID [--json]", (arguments.JSON,), 1, 1)
    if parsed is None:
        return 0
    values, (id,), instance = parsed
    from rootlessnet.networks import api

    try:
        found = api.stats(id, instance=instance)
    except Error as error:
        raise Error(f"count what went through container {id}") from error
    if "json" in values:
        _print_json(found)
        return 0
    from rootlessnet.cli import table

    kinds = ("bytes", "packets", "errors", "dropped")
    rows = [["INTERFACE", "", *map(str.upper, kinds)]]
    for counted in [*found["interfaces"], {"name": "sum", **found["sum"]}]:
        for way in ("rx", "tx"):
            numbers = (str(counted[f"{way}_{kind}"]) for kind in kinds)
            rows.append([counted["name"], way, *numbers])
    table.show(rows)
    return 0


def _ls(argv: list[str]) -> int:
    parsed = _parse(argv, "ls [--json] [--quiet] [--format TEXT]", (arguments.JSON, QUIET, FORMAT))
    if parsed is None:
        return 0
    values, _, instance = parsed
    from rootlessnet.networks import api

    found = api.list_containers(instance=instance)
    if "json" in values:
        _print_json(found)
        return 0
    if "quiet" in values:
        for each in found:
            print(each["id"])
        return 0
    from rootlessnet.cli import published

    for each in found:
        each["addresses"] = [
            text for item in each["networks"].values() for text in item["addresses"]
        ]
        each["ports"] = published.lines(each["ports"], "->")
    if "format" in values:
        from rootlessnet.cli import template

        named = [{**each, "networks": list(each["networks"])} for each in found]
        template.show(arguments.last(values, "format"), named)
        return 0
    from rootlessnet.cli import table

    rows = [["ID", "NETWORKS", "ADDRESSES", "PORTS", "STATE", "SINCE"]]
    for each in found:
        shown = (each["networks"], each["addresses"], each["ports"])
        rows.append([each["id"], *(" ".join(words) or "-" for words in shown)])
        rows[-1] += [each["state"], each["since"] or "-"]
    table.show(rows)
    return 0
