"""The rate at which datagrams pass without loss, found by many short runs of iperf3.

Each contender is offered more after a run without loss and less after one with, in steps that
become smaller; so its rate ends where every other run loses something, and goes up and down there.
A single run that was disturbed moves it by one step only, and not for long, which a bisection would
not forgive. The contenders take turns run by run.

Up to 0.1 % lost counts as nothing: on processors that are shared a receiver is now and then not
run for longer than its queue lasts, on plain loopback too. Client and server have the largest queue
that any kernel allows, so that what is lost is lost on the way, as far as that can be had.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import time

from benchlib.measure import Failed, rounds
from benchlib.publish import API, FIRST

SIZE = 1400
SECONDS = 0.5
LOST = 0.001
QUEUE = 212992
BEGIN = 400.0
"""Mbit/s."""
STEPS = (2.0, 1.2)
"""The first and the smallest."""
TURNS_BEFORE, TURNS = 4, 2
"""Until the first round, which finds the way, and in each."""
WAYS = {"out": (), "back": ("-R",)}
NOTES = [
    f"UDP: {SIZE} bytes; the rate at which every other run of {SECONDS} s loses less than "
    f"{LOST:.1%}",
    # slirp4netns answers no datagrams of clients on loopback.
    f"UDP: none through the {API} from loopback",
]


class Search:
    """One contender, one way."""

    def __init__(self, first: int, options: tuple[str, ...]) -> None:
        self.first = first
        self.options = options
        self.rate = BEGIN
        self.step = STEPS[0]
        self.was_free: bool | None = None

    def turn(self) -> float:
        """One run; the rate that was offered."""
        lost, offered = datagrams(self.first, self.rate, *self.options)
        free = lost < LOST
        if self.was_free is not None and free != self.was_free:
            self.step = max(STEPS[1], math.sqrt(self.step))
        self.was_free = free
        if not free:
            self.rate /= self.step
        elif offered > self.rate / STEPS[1]:  # else the sender cannot do more
            self.rate *= self.step
        return offered


def datagrams(first: int, rate: float, *options: str) -> tuple[float, float]:
    """The part of them that was lost, and Mbit/s that were really offered."""
    count = int(rate * 1e6 * SECONDS / 8 / SIZE)
    command = ["timeout", "10", "iperf3", "-c", "127.0.0.1", "-p", str(first), "-J", "-u"]
    # -t takes whole seconds only.
    command += ["-l", str(SIZE), "-b", f"{rate:.0f}M", "-k", str(count), "-w", str(QUEUE)]
    command += options
    deadline = time.monotonic() + 10
    while True:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        answer = json.loads(done.stdout or "{}")
        if "error" not in answer and done.returncode == 0:
            whole = answer["end"]["sum"]
            return whole["lost_packets"] / max(1, whole["packets"]), whole["bits_per_second"] / 1e6
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    raise Failed(f"{' '.join(command)}: {answer.get('error', done.returncode)}")


def measure(runs: int) -> dict[str, dict[str, list[float]]]:
    """Mbit/s by way and contender, a value a round."""
    searches = {
        (way, name): Search(first, options)
        for way, options in WAYS.items()
        for name, first in FIRST.items()
        if name != API
    }
    for _ in range(TURNS_BEFORE):
        for search in searches.values():
            search.turn()

    def turns() -> dict[str, float]:
        rates: dict[str, list[float]] = {}
        for _ in range(TURNS):
            for (way, name), search in searches.items():
                rates.setdefault(f"{way} {name}", []).append(search.turn())
        return {name: statistics.geometric_mean(values) for name, values in rates.items()}

    found = rounds(runs, turns, warm_up=False)
    return {
        way: {name: found[f"{way} {name}"] for name in FIRST if f"{way} {name}" in found}
        for way in WAYS
    }
