"""slirp4netns and pasta: one instance of each, pasta at several MTUs, measured in turns."""

from __future__ import annotations

import contextlib
import tempfile
from functools import partial

from benchlib.contenders import Rootlessnet, need
from benchlib.measure import Failed, Group, Row, rounds
from benchlib.mtu import COLUMNS
from benchlib.net import iperf3, probe

RUNS = 3
BASE = "slirp4netns 20000"
CHOICES = (BASE, "pasta 1500", "pasta 9000", "pasta 20000", "pasta 65520")


def measure(runs: int) -> Group:
    need("iperf3")
    need("pasta")
    group = Group("drivers")
    unanswered: dict[str, set[int]] = {}
    transfers = 0

    def step(name: str, prefix: list[str]) -> dict[str, float]:
        nonlocal transfers
        found: dict[str, float] = {"out": iperf3(prefix), "in": iperf3(prefix, "--reverse")}
        answer = probe(prefix)
        transfers = answer.pop("transfers")
        unanswered.setdefault(name, set()).update(answer.pop("unanswered"))
        return {f"{name} {what}": value for what, value in (found | answer).items()}

    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        ways = {}
        for name in CHOICES:
            driver, mtu = name.split()
            options = ("--driver", driver, "-o", f"mtu={mtu}")
            net = Rootlessnet(f"{directory}/{name}", options)
            stack.enter_context(net.held())
            if net.status()["driver"]["name"] != driver:
                raise Failed(f"{name}: another driver runs")
            ways[name] = net.enter()
        steps = [partial(step, name, prefix) for name, prefix in ways.items()]
        found = rounds(runs, *steps, warm_up=False)

    columns = {
        what: (column.replace("podman", "slirp4netns"), unit)
        for what, (column, unit) in COLUMNS.items()
    }
    for name in ways:
        for way in ("out", "in"):
            pairs = zip(found[f"{name} {way}"], found[f"{BASE} {way}"], strict=True)
            found[f"{name} {way}_ratio"] = [a / b for a, b in pairs]
        for what, (column, unit) in columns.items():
            group.rows.append(Row(name, unit, found[f"{name} {what}"], column))
        if unanswered[name]:
            group.notes.append(
                f"{name}: no answer to datagrams of {sorted(unanswered[name])} bytes"
            )
    group.notes.append(f"stalled: for a second or more, of {transfers} transfers a round")
    return group
