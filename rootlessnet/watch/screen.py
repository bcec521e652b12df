"""What `top` shows, as rows of text: on a terminal in colours, elsewhere plain."""

from __future__ import annotations

from rootlessnet.watch.label import cut, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.watch.rates import Flow
    from rootlessnet.watch.snapshot import Snapshot

_LEAST = 3
"""Rows of ports and of leases that are shown if there is any room, however busy it is."""
_WIDE = 110
_MEDIUM = 78


class Table:
    """Column heads (those that begin with ">" are flush right) and rows of cells."""

    __slots__ = ("heads", "left_out", "rows")

    def __init__(self, heads: list[str], rows: list[list[str]], most: int) -> None:
        self.heads = heads
        self.rows = rows[:most]
        self.left_out = len(rows) - len(self.rows)


def head(snapshot: Snapshot) -> list[str]:
    """The lines above the tables."""
    document = snapshot.document
    first = f"{document['name']}: {document['state']}"
    if snapshot.is_down:
        return [first, f"static dir {printable(document['static_dir'])}"]
    driver, supervisor = document["driver"], document["supervisor"]
    state = f"pid {driver['pid']}" if driver["pid"] else "not running"
    rss = supervisor["rss_bytes"]
    return [
        first,
        f"driver {driver['name']} {driver['version']}, {state}, restarts {driver['restarts']}, "
        f"{driver['address']} in {driver['cidr']}, mtu {driver['mtu']}",
        f"supervisor {supervisor['pid'] or 'not running'}"
        + (f", {amount(rss)}B" if rss else "")
        + f"; {_plural(len(document['leases']), 'lease')}, "
        + f"{_plural(snapshot.processes, 'process', 'processes')}",
    ]


def tables(
    snapshot: Snapshot, flows: list[Flow], *, width: int = 200, height: int = 0
) -> list[Table]:
    """The tables, with as many columns and rows as there is room for; height 0 is any."""
    if snapshot.is_down:
        return []
    document = snapshot.document
    makers: list[tuple[Any, list[Any]]] = [
        (_traffic, flows),
        (_ports, document["ports"]),
        (_leases, document["leases"]),
    ]
    makers = [(make, items) for make, items in makers if items]
    most = [10_000] * len(makers)
    if height:
        # Each table has two lines of its own and, where rows are left out, one that says so.
        room = height - len(head(snapshot))
        while len(makers) > 1 and room < 4 * len(makers):
            makers.pop()
        most = _shares(room - 3 * len(makers), [len(items) for _, items in makers])
    return [make(items, width, rows) for (make, items), rows in zip(makers, most, strict=False)]


def _shares(room: int, wanted: list[int]) -> list[int]:
    """How many rows each table gets: all of them a few, the first one the rest, and what that
    has no use for goes to the others in turn."""
    least = min(_LEAST, max(1, room // max(1, len(wanted))))
    shares = [min(count, least) for count in wanted]
    left = room - sum(shares)
    for number, count in enumerate(wanted):
        more = max(0, min(count - shares[number], left))
        shares[number] += more
        left -= more
    return [max(1, share) for share in shares]


def _traffic(flows: list[Flow], width: int, most: int) -> Table:
    heads = ["NAME", ">RX/s", ">TX/s"]
    if width >= _MEDIUM:
        heads += [">RX", ">TX", ">ERR", ">DROP"]
    if width >= _WIDE:
        heads += [">RX pkt/s", ">TX pkt/s", "ADDRESS"]
    rows = []
    for flow in flows:
        row = [flow.name]
        row += [f"{amount(flow.rate(key))}B" for key in ("rx_bytes", "tx_bytes")]
        if width >= _MEDIUM:
            row += [f"{amount(flow.total(key))}B" for key in ("rx_bytes", "tx_bytes")]
            row += [
                str(flow.total(f"rx_{what}") + flow.total(f"tx_{what}"))
                for what in ("errors", "dropped")
            ]
        if width >= _WIDE:
            row += [amount(flow.rate(key)) for key in ("rx_packets", "tx_packets")]
            row.append(flow.where)
        if not flow.is_known:
            row[1:] = ["-"] * (len(row) - 1)
            if width >= _WIDE:
                row[-1] = flow.where
        rows.append(_fit(row, width))
    return Table(heads, rows, most)


def _ports(ports: list[dict[str, Any]], width: int, most: int) -> Table:
    rows = []
    for port in sorted(ports, key=lambda port: -(port.get("connections") or 0)):
        count = port.get("connections")
        host = f"{port.get('host_ip') or '*'}:{port.get('host_port')}/{port.get('proto')}"
        inside = f"{port.get('target')}:{port.get('port')}"
        rows.append(_fit([host, inside, "-" if count is None else str(count)], width))
    return Table(["PUBLISHED", "INSIDE", ">CONNECTIONS"], rows, most)


def _leases(leases: list[dict[str, Any]], width: int, most: int) -> Table:
    rows = [
        _fit([str(lease["id"]), lease["kind"], str(lease["pid"] or "-"), lease["command"]], width)
        for lease in leases
    ]
    return Table(["LEASE", "KIND", ">PID", "COMMAND"], rows, most)


def _fit(row: list[str], width: int) -> list[str]:
    """No cell is longer than what leaves room for the others; the first is the name of the row."""
    first = 28 if width >= _MEDIUM else max(8, width - 26)
    return [cut(printable(cell), first if n == 0 else 48) for n, cell in enumerate(row)]


def _plural(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def amount(number: float) -> str:
    """A number in at most five characters, with a decimal prefix; a unit goes right behind it."""
    if number < 999.5:
        return f"{number:.0f} "
    for prefix in "kMGTPE":
        number /= 1000
        if number < 999.5:
            return f"{number:.{0 if number >= 99.95 else 1}f} {prefix}"
    return f"{number:.0f} E"


def plain(snapshot: Snapshot, flows: list[Flow]) -> str:
    """All of it as text, without a newline at its end."""
    parts = ["\n".join(head(snapshot))]
    for table in tables(snapshot, flows):
        rows = [table.heads, *table.rows]
        right = [name.startswith(">") for name in table.heads]
        rows[0] = [name.lstrip(">") for name in table.heads]
        widths = [max(len(row[column]) for row in rows) for column in range(len(right))]
        lines = []
        for row in rows:
            cells = zip(row, widths, right, strict=True)
            lines.append(
                "  ".join(c.rjust(n) if flush else c.ljust(n) for c, n, flush in cells).rstrip()
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def rich(snapshot: Snapshot, flows: list[Flow], width: int, height: int, note: str) -> Any:
    """All of it for a terminal of this size, as a renderable of rich; note is the last line."""
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    lines = head(snapshot)
    colour = {"running": "green", "degraded": "yellow"}.get(snapshot.document["state"], "red")
    # Text, not str: a name must not be taken for markup.
    parts: list[Any] = [Text(lines[0], style=f"bold {colour}", no_wrap=True, overflow="ellipsis")]
    parts += [Text(line, no_wrap=True, overflow="ellipsis") for line in (*lines[1:], note)]
    for table in tables(snapshot, flows, width=width, height=height - 1):
        shown = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="reverse")
        for number, name in enumerate(table.heads):
            shown.add_column(
                Text(name.lstrip(">")),
                justify="right" if name.startswith(">") else "left",
                style="bold" if number == 0 else "",
                no_wrap=True,
                overflow="ellipsis",
            )
        for row in table.rows:
            shown.add_row(*map(Text, row))
        parts += [Text(""), shown]
        if table.left_out:
            parts.append(Text(f"and {table.left_out} more", style="dim"))
    return Group(*parts)
