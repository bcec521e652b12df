"""A scene in graphviz' language: `rootlessnet graph --format dot | dot -Tpng`."""

from __future__ import annotations

from rootlessnet.watch.label import printable
from rootlessnet.watch.scene import NETWORK, UPLINK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.watch.scene import Box, Scene


def draw(scene: Scene) -> str:
    """The drawing, without a newline at its end."""
    inside = [box for box in scene.boxes if box.column in (UPLINK, NETWORK)]
    lines = [
        "digraph rootlessnet {",
        "  rankdir=LR;",
        f"  label={_quoted(scene.title)};",
        '  node [shape=box, style=rounded, fontname="monospace"];',
        "  edge [dir=none];",
    ]
    lines += [f"  {_node(box)}" for box in scene.boxes if box not in inside]
    if inside:
        lines += ["  subgraph cluster_instance {", '    label="instance";', "    style=dashed;"]
        lines += [f"    {_node(box)}" for box in inside]
        lines.append("  }")
    lines += [f"  {start.id} -> {end.id};" for start, end in scene.lines]
    return "\n".join([*lines, "}"])


def _node(box: Box) -> str:
    # \l ends a row that is flush left.
    text = _escaped(box.title) + r"\n" + "".join(f"{_escaped(row)}\\l" for row in box.rows)
    colour = ", color=red" if box.is_bad else ""
    return f'{box.id} [label="{text}", class="{box.kind}"{colour}];'


def _escaped(text: str) -> str:
    # graphviz reads HTML's entities in labels too.
    text = printable(text).replace("&", "&amp;")
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'
