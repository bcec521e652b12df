"""A scene as an SVG file that stands alone: no script, no font and nothing else from elsewhere.

Columns from left to right, as wide as their widest box. The containers are stacked; each network
stands at the height of the middle of its containers, moved down where another one is already, and
all other columns in the middle of the whole. Lines go through the gaps between columns alone, so
none of them crosses a box, and end at the row that they are about.
"""

from __future__ import annotations

from rootlessnet.watch.label import cells, cut, printable
from rootlessnet.watch.scene import CONTAINER, NETWORK, UPLINK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.watch.scene import Box, Scene

_ROW = 17.0
_LETTER = 7.4
"""Width of a letter: 12 px in a font of which each letter is 0.6 em wide, and a little room."""
_BOLD = 8.0
_MOST = 38
_SHORT = 12
"""Text of more cells is told its width: it stays in its box in any font."""
_PADDING = 11.0
_GAP_X = 64.0
_GAP_Y = 16.0
_MARGIN = 24.0
_HEAD = 46.0
_FRAME = 18.0

_STYLE = """
  svg { --paper: #ffffff; --ink: #1f2328; --faint: #59636e; --box: #f6f8fa; --edge: #818b98;
    --host: #ddf4ff; --driver: #fff8c5; --net: #dafbe1; --bad: #cf222e; background: #ffffff; }
  .paper { fill: #ffffff; fill: var(--paper); }
  text { font: 12px "DejaVu Sans Mono", Menlo, Consolas, "Liberation Mono", monospace;
    fill: #59636e; fill: var(--faint); white-space: pre; }
  .title { font-weight: bold; font-size: 13px; fill: #1f2328; fill: var(--ink); }
  .box { fill: #f6f8fa; fill: var(--box); stroke: #818b98; stroke: var(--edge); }
  .host .box { fill: #ddf4ff; fill: var(--host); }
  .driver .box { fill: #fff8c5; fill: var(--driver); }
  .uplink .box, .bridge .box, .network .box { fill: #dafbe1; fill: var(--net); }
  .bad .box { stroke: #cf222e; stroke: var(--bad); stroke-width: 2.5; }
  .line { fill: none; stroke: #818b98; stroke: var(--edge); stroke-width: 1.5; }
  .frame { fill: none; stroke: #818b98; stroke: var(--edge); stroke-dasharray: 5 4; }
  @media (prefers-color-scheme: dark) {
    svg { --paper: #0d1117; --ink: #f0f6fc; --faint: #9da7b3; --box: #1b222b; --edge: #656d76;
      --host: #0d2d4d; --driver: #3d2e00; --net: #0f3320; --bad: #f85149; background: #0d1117; }
  }
"""


class _Place:
    """Where a box is, and its text."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.title = cut(printable(box.title), _MOST)
        self.rows = [cut(printable(row), _MOST) for row in box.rows]
        inner = [cells(self.title) * _BOLD, *(cells(row) * _LETTER for row in self.rows)]
        self.width = max(inner) + 2 * _PADDING
        self.height = (1 + len(self.rows)) * _ROW + 2 * _PADDING - 4
        self.x = self.y = 0.0

    @property
    def middle(self) -> float:
        return self.y + self.height / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height

    def row_of(self, start: Box) -> float:
        """The height of the row that is about the line from start."""
        if start in self.box.via and len(set(self.box.via) - {None}) > 1:
            return self.y + _PADDING + (1.5 + self.box.via.index(start)) * _ROW
        return self.middle


def draw(scene: Scene) -> str:
    """The drawing, without a newline at its end."""
    places = {box: _Place(box) for box in scene.boxes}
    columns = [[places[box] for box in scene.column(number)] for number in range(CONTAINER + 1)]
    columns[CONTAINER].sort(key=lambda place: _above(scene, place.box))
    _stand(scene, columns, places)
    right = _spread(columns, max(0, len(scene.lines) - len(scene.boxes) + 1))
    bottom = max(place.bottom for place in places.values())
    framed = [*columns[UPLINK], *columns[NETWORK]]
    if framed:
        bottom = max(bottom, max(place.bottom for place in framed) + _FRAME)
    title = cut(printable(scene.title), 60)
    width = max(right, cells(title) * _BOLD + _MARGIN) + _MARGIN
    height = bottom + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-labelledby="title desc">',
        f'<title id="title">{_escaped(scene.title)}</title>',
        f'<desc id="desc">{_escaped(_description(scene))}</desc>',
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" width="{width:.0f}" height="{height:.0f}"/>',
        f'<text class="title" x="{_MARGIN:.0f}" y="{_MARGIN:.0f}">{_escaped(title)}</text>',
    ]
    if framed:
        parts.append(_frame(framed))
    parts += [_line(places[start], places[end]) for start, end in scene.lines]
    parts += [_group(place) for place in places.values()]
    return "\n".join([*parts, "</svg>"])


def _above(scene: Scene, box: Box) -> tuple[float, int]:
    """Where a container belongs in its column: near its networks, as they were named."""
    networks = scene.column(NETWORK)
    found = [networks.index(start) for start, end in scene.lines if end is box]
    return sum(found) / max(1, len(found)), scene.boxes.index(box)


def _stand(scene: Scene, columns: list[list[_Place]], places: dict[Box, _Place]) -> None:
    """Give every box its height above the bottom."""
    top = _MARGIN + _HEAD
    y = top
    for place in columns[CONTAINER]:
        place.y = y
        y = place.bottom + _GAP_Y
    wanted = {}
    for number, place in enumerate(columns[NETWORK]):
        ends = [places[box].middle for box in scene.after(place.box)]
        # What nobody is on comes below all others.
        wanted[place] = (not ends, sum(ends) / len(ends) if ends else 0.0, number)
    columns[NETWORK].sort(key=wanted.__getitem__)
    y = top
    for place in columns[NETWORK]:
        _, middle, _ = wanted[place]
        place.y = max(y, middle - place.height / 2)
        y = place.bottom + _GAP_Y
    stacked = [place.bottom for place in (*columns[NETWORK], *columns[CONTAINER])]
    tallest = max(place.height for column in columns[:NETWORK] for place in column)
    middle = max((max(stacked, default=top) + top) / 2, top + tallest / 2)
    for column in columns[:NETWORK]:
        for place in column:
            place.y = middle - place.height / 2
    # Few and small on the right: in the middle too.
    for column in columns[NETWORK:]:
        if column and not scene.column(CONTAINER):
            shift = middle - (column[0].y + column[-1].bottom) / 2
            for place in column:
                place.y += max(0.0, shift)


def _spread(columns: list[list[_Place]], crossing: int) -> float:
    """Give every box its place from left to right; the right end of all. The more lines cross each
    other the wider is the gap in which they do."""
    x, gap = _MARGIN, 0.0
    for column in columns:
        if not column:
            continue
        width = max(place.width for place in column)
        for place in column:
            place.x, place.width = x, width
        gap = _GAP_X + (min(crossing, 24) * 4 if column is columns[NETWORK] else 0)
        x += width + gap
    return x - gap


def _frame(framed: list[_Place]) -> str:
    left = min(place.x for place in framed) - _FRAME
    top = min(place.y for place in framed) - _FRAME
    right = max(place.x + place.width for place in framed) + _FRAME
    bottom = max(place.bottom for place in framed) + _FRAME
    return (
        f'<rect class="frame" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
        f'height="{bottom - top:.1f}" rx="10"/>'
        f'<text x="{left + 4:.1f}" y="{top - 6:.1f}">inside</text>'
    )


def _line(start: _Place, end: _Place) -> str:
    x1, y1 = start.x + start.width, start.middle
    x2, y2 = end.x, end.row_of(start.box)
    bend = (x1 + x2) / 2
    return (
        f'<path class="line" d="M{x1:.1f} {y1:.1f} C{bend:.1f} {y1:.1f} {bend:.1f} {y2:.1f} '
        f'{x2:.1f} {y2:.1f}"/>'
    )


def _group(place: _Place) -> str:
    box = place.box
    x, y = place.x + _PADDING, place.y + _PADDING + 10
    parts = [
        f'<g class="{box.kind}{" bad" if box.is_bad else ""}">',
        # The whole text, of which the box may show a part, where the pointer rests.
        f"<title>{_escaped(chr(10).join(map(printable, (box.title, *box.rows))))}</title>",
        f'<rect class="box" x="{place.x:.1f}" y="{place.y:.1f}" width="{place.width:.1f}" '
        f'height="{place.height:.1f}" rx="6"/>',
        _text(place.title, x, y, _BOLD - 0.17, ' class="title"'),
    ]
    for number, row in enumerate(place.rows, 1):
        indent = len(row) - len(row.lstrip())
        left = x + indent * _LETTER
        parts.append(_text(row.lstrip(), left, y + number * _ROW, _LETTER - 0.18))
    return "\n".join([*parts, "</g>"])


def _text(text: str, x: float, y: float, letter: float, more: str = "") -> str:
    if cells(text) > _SHORT:
        more += f' textLength="{cells(text) * letter:.1f}" lengthAdjust="spacingAndGlyphs"'
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{_escaped(text)}</text>'


def _description(scene: Scene) -> str:
    """For those who do not see it."""
    containers = len(scene.column(CONTAINER))
    networks = ", ".join(printable(box.title) for box in scene.column(NETWORK))
    return (
        f"The network of the instance of {printable(scene.static_dir)}: the host, the driver, "
        f"the interface that it connects, {networks or 'no networks'}, {containers} on them."
    )


def _escaped(text: str) -> str:
    """Markup as text. The caller made it printable: XML has no way to write a control character."""
    return (
        text.replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
        .replace('"', "&quot;")
        .replace("'", "&#39;")
    )
