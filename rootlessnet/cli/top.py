"""rootlessnet top: the traffic of the instance, live."""

from __future__ import annotations

import os
import sys

from rootlessnet.cli import arguments
from rootlessnet.errors import Error, reason
from rootlessnet.instance import paths, request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.watch import rates
    from rootlessnet.watch.snapshot import Observer, Snapshot

OPTIONS = (
    *arguments.COMMON,
    arguments.Option("interval", "from one look to the next (1)", metavar="SECONDS"),
    arguments.Option("once", "print what goes on in one interval, and end"),
)
WHAT = "Watch the traffic of the instance; q ends it."
_LEAST, _MOST = 0.1, 3600.0


def main(argv: list[str]) -> int:
    values, words = arguments.parse(argv, OPTIONS)
    if "help" in values:
        print(arguments.help_text("top [OPTIONS]", WHAT, OPTIONS))
        return 0
    arguments.no_words(words)
    text = arguments.last(values, "interval") or "1"
    interval = request.seconds("--interval", text, minimum=_LEAST, maximum=_MOST)
    instance = paths.find(arguments.last(values, "static-dir"))
    from rootlessnet.watch.snapshot import Observer

    can_move = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    with Observer(instance) as observer:
        if "once" in values or not can_move:
            return _once(observer, interval)
        return _live(observer, interval)


def _once(observer: Observer, interval: float) -> int:
    import time

    from rootlessnet.watch import rates, screen

    before = observer.look()
    if before.is_down:
        print(screen.plain(before, []))
        return 0
    time.sleep(interval)
    after = observer.look()
    print(screen.plain(after, rates.flows(before, after)))
    return 0


def _live(observer: Observer, interval: float) -> int:
    from rich.console import Console

    from rootlessnet.kernel import signals
    from rootlessnet.watch.terminal import Ended, Terminal

    console = Console(highlight=False)
    try:
        with Terminal(console) as terminal:
            _follow(terminal, console, observer, interval)
    except Ended as ended:
        return signals.die_of(ended.number)
    return 0


def _follow(terminal: Any, console: Any, observer: Observer, interval: float) -> None:
    import time

    from rich.text import Text

    from rootlessnet.watch import rates, screen

    before: Snapshot | None = None
    flows: list[rates.Flow] = []
    while True:
        problem = ""
        try:
            after = observer.look()
            flows, before = rates.flows(before, after), after
        except Error as error:
            # It may be between two states: the next look tells more.
            problem = reason(error)
        due = time.monotonic() + interval
        while True:
            width, height = console.size
            if problem or before is None:
                terminal.show(Text(problem))
            else:
                note = "q: quit"
                if before.is_down:
                    note = "Waiting for it to start.  q: quit"
                terminal.show(screen.rich(before, flows, width, height, note))
            left = due - time.monotonic()
            if left <= 0:
                break
            keys = terminal.wait(left)
            # Arrows and the like begin with an escape, and may have any letter in them.
            if "q" in keys.lower() and not keys.startswith("\x1b"):
                return
            if time.monotonic() >= due:
                break
