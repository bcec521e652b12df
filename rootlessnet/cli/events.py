"""rootlessnet events: what happens to the instance, as it happens."""

from __future__ import annotations

import sys

from rootlessnet.cli import arguments
from rootlessnet.cli.text import printable
from rootlessnet.instance import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.watch.changes import Event

OPTIONS = (*arguments.COMMON, arguments.Option("json", "print a JSON object a line"))
WHAT = "Tell what happens to the instance, until interrupted; also over its end and next start."


def main(argv: list[str]) -> int:
    values, words = arguments.parse(argv, OPTIONS)
    if "help" in values:
        print(arguments.help_text("events [OPTIONS]", WHAT, OPTIONS))
        return 0
    arguments.no_words(words)
    instance = paths.find(arguments.last(values, "static-dir"))
    from rootlessnet.watch.changes import Event
    from rootlessnet.watch.stream import Stream

    line = _json if "json" in values else _text
    stream = Stream(instance, sys.stdout.fileno())
    try:
        # From this line on nothing is missed.
        print(line(Event("watching", state=stream.begin()), instance.name), flush=True)
        _end_at_once()
        for event in stream.events():
            print(line(event, instance.name), flush=True)
    finally:
        stream.close()
    return 0


def _end_at_once() -> None:
    """Let the kernel end us at Ctrl-C: Python's own handler would be run too late by a wait without
    a timeout that the signal has come just before."""
    import signal

    from rootlessnet.kernel import signals

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signals.restore(signals.SIGINT)


def _now() -> str:
    from datetime import datetime

    return datetime.now().astimezone().isoformat(timespec="milliseconds")


def _json(event: Event, name: str) -> str:
    import json

    return json.dumps({"time": _now(), "instance": name, "event": event.name, **event.fields})


def _text(event: Event, name: str) -> str:
    pairs = [f"{key}={_value(value)}" for key, value in event.fields.items() if _says(value)]
    return " ".join([_now(), event.name, *pairs])


def _says(value: Any) -> bool:
    return value is not None and value != "" and value != []


def _value(value: Any) -> str:
    import shlex

    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return shlex.quote(printable(text))
