"""A scene as a tree of text."""

from __future__ import annotations

from rootlessnet.watch.label import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.watch.scene import Box, Scene

_PLAIN = ("|-- ", "`-- ", "|   ", "    ")
_LINES = ("├── ", "└── ", "│   ", "    ")


def draw(scene: Scene, *, plain: bool = False) -> str:
    """The drawing; with plain in ASCII, but for names that are not. It ends without a newline."""
    found = [f"{printable(scene.title)}  ({printable(scene.static_dir)})"]
    _branch(scene, scene.host, None, "", "", found, _PLAIN if plain else _LINES)
    if not plain:
        return "\n".join(found)
    return "\n".join(found).encode("ascii", "backslashreplace").decode()


def _branch(
    scene: Scene,
    box: Box,
    above: Box | None,
    first: str,
    other: str,
    found: list[str],
    strokes: tuple[str, str, str, str],
) -> None:
    # Below a network a container shows what is about that network, and what is about none.
    rows = [row for row, via in zip(box.rows, box.via, strict=True) if via in (None, above)]
    mark = "!" if box.is_bad else ""
    words = [printable(box.title) + mark, *(printable(row.strip()) for row in rows)]
    # The title, and what there is to say, on one line: a tree is read downwards.
    found.append(first + words[0] + ("  " + ", ".join(words[1:]) if words[1:] else ""))
    below = scene.after(box)
    tee, corner, bar, blank = strokes
    for number, each in enumerate(below):
        is_last = number == len(below) - 1
        _branch(
            scene, each, box,
            other + (corner if is_last else tee), other + (blank if is_last else bar),
            found, strokes,
        )  # fmt: skip
