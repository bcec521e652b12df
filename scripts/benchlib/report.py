"""Groups of figures as text, and as JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from benchlib.measure import Check, Group, Row

VERSIONS = (
    ("rootlessnet", "--version"),
    ("podman", "--version"),
    ("slirp4netns", "--version"),
    ("rootlesskit", "--version"),
    ("iperf3", "--version"),
)


def machine() -> dict[str, Any]:
    versions = {}
    for command in VERSIONS:
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        except FileNotFoundError:
            continue
        versions[command[0]] = done.stdout.partition("\n")[0]
    return {
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
        "versions": versions,
    }


def document(about: dict[str, Any], groups: list[Group]) -> str:
    """One JSON document."""
    found: dict[str, Any] = {"machine": {**about, "load_after": round(os.getloadavg()[0], 1)}}
    for group in groups:
        found[group.title] = {
            "rows": [_row(row) for row in group.rows],
            "checks": [
                {
                    "name": check.name,
                    "value": round(check.value, 3),
                    "unit": check.unit,
                    "at_most" if check.at_most else "at_least": check.limit,
                    "ok": check.ok,
                }
                for check in group.checks
            ],
            "notes": group.notes,
        }
    return json.dumps(found, indent=1)


def _row(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {"name": row.name.strip(), "unit": row.unit}
    if row.column:
        found["column"] = row.column
    found |= {"median": round(row.median, 3), "min": round(min(row.values), 3)}
    found |= {"max": round(max(row.values), 3), "values": [round(v, 3) for v in row.values]}
    return found


def table(group: Group) -> str:
    """For people."""
    body = _by_column(group) if any(row.column for row in group.rows) else _by_row(group)
    lines = [*body, *(_check(check) for check in group.checks)]
    lines += [f"  note: {note}" for note in group.notes]
    return "\n".join([*lines, ""])


def _check(check: Check) -> str:
    verdict = "OK" if check.ok else "MISSED"
    sign = "<=" if check.at_most else ">="
    value = f"{check.value:.2f}" if isinstance(check.value, float) else str(check.value)
    return f"  {verdict:<8}{check.name:<38}{value:>9} {sign} {check.limit:g} {check.unit}".rstrip()


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 or value == int(value) else f"{value:.2f}"


def _by_row(group: Group) -> list[str]:
    lines = [f"{group.title:<46}{'median':>9}{'min':>9}{'max':>9}{'':<9}{'rounds':>7}"]
    for row in group.rows:
        numbers = (row.median, min(row.values), max(row.values))
        cells = "".join(f"{_number(number):>9}" for number in numbers)
        lines.append(f"  {row.name:<44}{cells} {row.unit:<8}{len(row.values):>7}")
    return lines


def _by_column(group: Group) -> list[str]:
    columns = list(dict.fromkeys(row.column for row in group.rows))
    names = list(dict.fromkeys(row.name for row in group.rows))
    cells = {
        (row.name, row.column): f"{_number(row.median)} ({_number(min(row.values))}"
        f"-{_number(max(row.values))})"
        for row in group.rows
    }
    wide = max(map(len, (*cells.values(), *columns))) + 2
    runs = max(len(row.values) for row in group.rows)
    title = f"{group.title}, {runs} rounds: median (min-max)"
    lines = [title, f"  {'':<28}" + "".join(f"{column:>{wide}}" for column in columns)]
    for name in names:
        line = "".join(f"{cells.get((name, column), ''):>{wide}}" for column in columns)
        lines.append(f"  {name:<28}{line}".rstrip())
    return lines
