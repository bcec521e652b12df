"""Rows for people: plain columns, or a table of rich's where they look at a terminal."""

from __future__ import annotations

import sys

from rootlessnet.cli.text import printable


def show(rows: list[list[str]]) -> None:
    """Print rows, the first of which is the head. NO_COLOR and TERM=dumb are respected."""
    rows = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich(rows)
    else:
        plain(rows)


def plain(rows: list[list[str]]) -> None:
    """Columns two spaces apart."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _rich(rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(rows[0]):
        table.add_column(Text(name), style="bold" if number == 0 else "", overflow="fold")
    for row in rows[1:]:
        # Text, not str: a name must not be taken for markup.
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)
