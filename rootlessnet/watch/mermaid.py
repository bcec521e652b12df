"""A scene as a mermaid flowchart, as web pages and Markdown files show them."""

from __future__ import annotations

from rootlessnet.watch.label import printable
from rootlessnet.watch.scene import NETWORK, UPLINK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.watch.scene import Box, Scene

# In quotes these stand for themselves. All others are written by number, as quotes, markup, links
# and the marks of mermaid's own Markdown could end or change the label.
_PLAIN = frozenset(" .,:/()[]=_-+@")


def draw(scene: Scene) -> str:
    """The drawing, without a newline at its end."""
    inside = [box for box in scene.boxes if box.column in (UPLINK, NETWORK)]
    lines = ["flowchart LR"]
    lines += [f"  {_node(box)}" for box in scene.boxes if box not in inside]
    if inside:
        lines.append(f'  subgraph instance ["{_escaped(scene.title)}"]')
        lines += [f"    {_node(box)}" for box in inside]
        lines.append("  end")
    lines += [f"  {start.id} --- {end.id}" for start, end in scene.lines]
    bad = [box.id for box in scene.boxes if box.is_bad]
    if bad:
        lines += ["  classDef bad stroke:#c00,stroke-width:2px", f"  class {','.join(bad)} bad"]
    return "\n".join(lines)


def _node(box: Box) -> str:
    text = "<br/>".join(map(_escaped, (box.title, *box.rows)))
    return f'{box.id}["{text}"]'


def _escaped(text: str) -> str:
    return "".join(
        c if c.isalnum() or c in _PLAIN else f"#{ord(c)};" for c in printable(text).strip()
    )
