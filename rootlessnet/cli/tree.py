"""A tree for people: rich's where they look at a terminal, else indented lines."""

from __future__ import annotations

import sys

from rootlessnet.cli.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Node:
    """A line, and what is below it."""

    def __init__(self, text: str, children: list[Node] | None = None) -> None:
        self.text = printable(text)
        self.children = list(children or ())

    def add(self, text: str) -> Node:
        """A new node below this one."""
        self.children.append(Node(text))
        return self.children[-1]


def show(root: Node, indent: str = "  ") -> None:
    """Print it. NO_COLOR and TERM=dumb are respected."""
    if sys.stdout.isatty():
        _rich(root)
    else:
        print("\n".join(lines(root, indent)))


def lines(node: Node, indent: str = "") -> list[str]:
    """The tree as lines, two columns further in at each level."""
    found = [indent + node.text]
    for child in node.children:
        found += lines(child, indent + "  ")
    return found


def _rich(root: Node) -> None:
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    def grow(tree: Tree, node: Node) -> None:
        for child in node.children:
            grow(tree.add(Text(child.text)), child)

    top: Any = Tree(Text(root.text, style="bold"))
    grow(top, root)
    Console(highlight=False).print(top)
