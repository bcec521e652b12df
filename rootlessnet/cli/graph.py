"""rootlessnet graph: a drawing of the instance."""

from __future__ import annotations

import sys

from rootlessnet.cli import arguments
from rootlessnet.errors import UsageError
from rootlessnet.instance import paths

FORMATS = ("text", "svg", "dot", "mermaid")
OPTIONS = (
    *arguments.COMMON,
    arguments.Option("format", f"{', '.join(FORMATS)} (text)", metavar="FORMAT", values=FORMATS),
)
WHAT = "Draw the instance: host, driver, networks, containers, ports."


def main(argv: list[str]) -> int:
    values, words = arguments.parse(argv, OPTIONS)
    if "help" in values:
        print(arguments.help_text("graph [OPTIONS]", WHAT, OPTIONS))
        return 0
    arguments.no_words(words)
    chosen = arguments.last(values, "format") or "text"
    if chosen not in FORMATS:
        raise UsageError(f"--format {chosen}: one of {', '.join(FORMATS)}")
    from rootlessnet.watch import dot, mermaid, svg, tree
    from rootlessnet.watch.scene import Scene
    from rootlessnet.watch.snapshot import Observer

    with Observer(paths.find(arguments.last(values, "static-dir"))) as observer:
        scene = Scene(observer.look())
    if chosen == "text":
        encoding = (sys.stdout.encoding or "").lower().replace("-", "")
        print(tree.draw(scene, plain=encoding != "utf8"))
        return 0
    text = {"svg": svg.draw, "dot": dot.draw, "mermaid": mermaid.draw}[chosen](scene)
    # These are files, in the encoding that their readers expect in any locale.
    sys.stdout.flush()
    sys.stdout.buffer.write(f"{text}\n".encode())
    return 0
