"""rootlessnet ps: the leases and the processes inside."""

from __future__ import annotations

from rootlessnet.cli import arguments
from rootlessnet.cli.text import printable
from rootlessnet.instance import paths, start, view

OPTIONS = (*arguments.COMMON, arguments.JSON)
WHAT = "Show the processes inside, and which of them hold a lease."


def main(argv: list[str]) -> int:
    given = arguments.read(argv, "ps [OPTIONS]", WHAT, OPTIONS)
    if given is None:
        return 0
    values, _ = given
    instance = paths.find(arguments.last(values, "static-dir"))
    start.heal(instance)
    leases, processes = view.leases(instance), view.processes(instance)
    if "json" in values:
        import json

        print(json.dumps({"leases": leases, "processes": processes}, indent=2))
        return 0
    rows = [("PID", "USER", "SINCE", "LEASE", "COMMAND")]
    rows += [
        (
            str(p["pid"]),
            p["user"],
            p["since"],
            "yes" if p["lease"] else "no",
            printable(p["command"]),
        )
        for p in processes
    ]
    rows += [
        (str(each["pid"] or "-"), "-", each["since"] or "-", "container", each["id"])
        for each in leases
        if each["kind"] == "container"
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        left = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        print(f"{left}  {row[4]}")
    return 0
