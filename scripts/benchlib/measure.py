"""Rounds, rows and limits: what every group of figures is made of."""

from __future__ import annotations

import os
import select
import signal
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Step = Callable[[], dict[str, float]]


class Failed(Exception):
    """No figures: what went wrong."""


@dataclass
class Row:
    """One figure, measured several times. A column makes its group a table by name and column."""

    name: str
    unit: str
    values: list[float]
    column: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass
class Check:
    """A figure that has a limit."""

    name: str
    value: float
    at_most: bool
    limit: float
    unit: str = "x"

    @property
    def ok(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit


@dataclass
class Group:
    title: str
    rows: list[Row] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def rounds(runs: int, *steps: Step, warm_up: bool = True) -> dict[str, list[float]]:
    """Call the steps in turn, runs times; the values by name. A warm-up is a round uncounted."""
    found: dict[str, list[float]] = {}
    for number in range(-1 if warm_up else 0, runs):
        for step in steps:
            for name, value in step().items():
                if number >= 0:
                    found.setdefault(name, []).append(value)
    return found


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Of two series from the same rounds: the median of each round's ratio."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def timed(argv: Sequence[str], count: int = 1) -> float:
    """Milliseconds from the start of a command, or of several at once, to the end of the last.

    It has nothing to read, and nobody sees what it says unless it fails.
    """
    with tempfile.TemporaryFile() as errors:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, errors.fileno(), 2),
        ]
        began = time.perf_counter()
        pids = [
            os.posix_spawnp(argv[0], argv, os.environ, file_actions=actions) for _ in range(count)
        ]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        milliseconds = (time.perf_counter() - began) * 1000
        if any(codes):
            errors.seek(0)
            said = errors.read().decode(errors="replace")
            raise Failed(f"{' '.join(argv)}: exit {next(filter(None, codes))}\n{said}")
    return milliseconds


def wait_until(what: str, condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"not within {seconds} s: {what}")
        # Short, as some of what is timed ends here; and a sleep, as it needs the processor.
        time.sleep(0.0005)


def end(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal, and wait until the process has gone; it need not be a child."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(fd, number)
        if not select.select([fd], [], [], 10)[0]:
            raise Failed(f"process {pid} does not end")
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)
