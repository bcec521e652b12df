"""rootlessnet port: publish ports of the host, withdraw them, list them."""

from __future__ import annotations

from rootlessnet.cli import arguments, group, table
from rootlessnet.cli.text import printable
from rootlessnet.errors import Error, UsageError
from rootlessnet.instance import lease, lock, paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.instance.paths import Instance
    from rootlessnet.ports.rules import Rule

RULE = "[HOST_IP:][HOST_PORT:]PORT[-PORT][/tcp|udp]"
ALL = arguments.Option("all", "every rule of port add")
SOURCE_IP = arguments.Option(
    "source-ip",
    "whether the server sees the client's address: preserve, snat",
    metavar="HOW",
    values=("preserve", "snat"),
)

COMMANDS = {
    "add": "publish ports until they are removed, or the instance ends",
    "rm": "withdraw ports that add has published",
    "ls": "show what is published, and for whom",
}


def main(argv: list[str]) -> int:
    """`rootlessnet port`: argv is everything but the word port."""
    chosen = group.choose(argv, "port", COMMANDS)
    if isinstance(chosen, int):
        return chosen
    name, argv = chosen
    command = {"add": _add, "rm": _remove, "ls": _list}[name]
    return command(argv)


def _parse(
    argv: list[str], usage: str, options: tuple[arguments.Option, ...]
) -> tuple[arguments.Values, list[str]] | None:
    """The values and words of a command, or None when it was asked for help only."""
    options = (*arguments.COMMON, *options)
    values, words = arguments.parse(argv, options)
    if "help" in values:
        name = usage.split()[0]
        print(arguments.help_text(f"port {usage}", group.sentence(COMMANDS[name]), options))
        return None
    return values, words


def _add(argv: list[str]) -> int:
    parsed = _parse(argv, f"add [OPTIONS] {RULE} ...", (SOURCE_IP, arguments.JSON))
    if parsed is None:
        return 0
    values, words = parsed
    if not words:
        raise UsageError("port add: no rule is given")
    source_ip = arguments.last(values, "source-ip")
    if source_ip not in ("", "preserve", "snat"):
        raise UsageError(f"--source-ip {source_ip}: preserve or snat")
    from rootlessnet.ports import api, rules

    wanted = rules.parse_all(words, "port add")
    instance = paths.find(arguments.last(values, "static-dir"))
    with _Use(instance):
        made = api.add(instance, api.USER, wanted, source_ip=source_ip)
        if "json" in values:
            _print_json(api.listing(instance, made))
    if "json" not in values:
        for rule in made:
            print(rule)
    return 0


def _remove(argv: list[str]) -> int:
    parsed = _parse(argv, "rm --all | RULE...", (ALL,))
    if parsed is None:
        return 0
    values, words = parsed
    if bool(words) == ("all" in values):
        raise UsageError("port rm: either rules as port ls shows them, or --all")
    from rootlessnet.ports import api, rules

    wanted = [rules.parse(text, "port rm") for text in words]
    instance = paths.find(arguments.last(values, "static-dir"))
    with _Use(instance):
        chosen = None
        if wanted:
            chosen = [_chosen(instance, rule) for rule in wanted]
        api.remove(instance, api.USER, chosen)
    return 0


def _chosen(instance: Instance, wanted: Rule) -> Rule:
    """The rule of port add that is meant; without a port of the host the only one that fits."""
    from rootlessnet.ports import api

    found = api.records(instance)
    fitting = [
        rule
        for owner, rule, _ in found
        if owner == api.USER
        and (rule.proto, rule.host_ip, rule.port, rule.count)
        == (wanted.proto, wanted.host_ip, wanted.port, wanted.count)
        and wanted.host_port in (0, rule.host_port)
    ]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise Error(
            f"port rm {wanted}: there are {len(fitting)} such rules",
            hint="name the port of the host: " + ", ".join(map(str, fitting)),
        )
    others = [owner for owner, rule, _ in found if rule == wanted]
    if others:
        raise Error(
            f"port rm {wanted}: it belongs to {printable(others[0])}",
            hint="it goes with its owner",
        )
    raise Error(f"port rm {wanted}: there is no such rule", hint="see them: rootlessnet port ls")


def _list(argv: list[str]) -> int:
    parsed = _parse(argv, "ls [--json]", (arguments.JSON,))
    if parsed is None:
        return 0
    values, words = parsed
    arguments.no_words(words)
    from rootlessnet.ports import api

    instance = paths.find(arguments.last(values, "static-dir"))
    if "json" in values:
        _print_json(api.listing(instance))
        return 0
    rows = [["PROTO", "HOST", "PORT", "TARGET", "OWNER"]]
    for owner, rule, target in api.records(instance):
        address = f"[{rule.host_ip}]" if ":" in rule.host_ip else rule.host_ip or "*"
        rows.append(
            [
                rule.proto,
                f"{address}:{_span(rule.host_port, rule.count)}",
                _span(rule.port, rule.count),
                target,
                owner,
            ]
        )
    table.show(rows)
    return 0


def _span(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first}-{first + count - 1}"


def _print_json(document: Any) -> None:
    import json

    print(json.dumps(document, indent=2))


class _Use:
    """A lease of the running instance while a command works with it. Raises Error without one."""

    def __init__(self, instance: Instance) -> None:
        from rootlessnet.instance import start

        start.heal(instance)
        fd = lock.open_file(instance)
        try:
            lock.acquire(fd, lock.SHARED, 10.0)
            self._taken = lease.take(instance)
        finally:
            import os

            os.close(fd)
        if self._taken is None:
            raise Error(
                f"publish ports: {instance.name} is not running", hint="rootlessnet up starts it"
            )

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        import os

        assert self._taken is not None
        os.close(self._taken)
