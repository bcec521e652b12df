"""The choice of the default MTU: one instance for each, all at once, measured in turns.

65520 is podman's and RootlessKit's, and known for transfers that hang for seconds (slirp4netns
issues 128 and 284). So beside the throughput there are latencies, and a count of such transfers.

A host that is far away is missing here: it takes the kernel's netem, which not every kernel has.
"""

from __future__ import annotations

import contextlib
import tempfile
from functools import partial

from benchlib.contenders import Podman, Rootlessnet, need
from benchlib.measure import Group, Row, rounds, timed
from benchlib.net import iperf3, probe

RUNS = 5
PODMAN = "podman 65520"
CHOICES = (1500, 4000, 9000, 16384, 20000, 32000, 48000, 65520)
COLUMNS = {
    "out": ("out, Gbit/s", "Gbit/s"),
    "in": ("in, Gbit/s", "Gbit/s"),
    "out_ratio": ("out : {base}", "x"),
    "in_ratio": ("in : {base}", "x"),
    "echo_us": ("UDP echo, us", "us"),
    "connect_us": ("connect+get, us", "us"),
    "megabyte_ms": ("get 1 MB, ms", "ms"),
    "stalled": ("stalled", "transfers"),
}


def compare(
    group: Group, ways: dict[str, list[str]], base: str, runs: int, *, warm_up: bool = True
) -> None:
    """Measure the ways (name and what to put before a command) in turns; ratios are to base."""
    unanswered: dict[str, set[int]] = {}
    transfers = 0

    def step(name: str, prefix: list[str]) -> dict[str, float]:
        nonlocal transfers
        found: dict[str, float] = {"out": iperf3(prefix), "in": iperf3(prefix, "--reverse")}
        answer = probe(prefix)
        transfers = answer.pop("transfers")
        unanswered.setdefault(name, set()).update(answer.pop("unanswered"))
        return {f"{name} {what}": value for what, value in (found | answer).items()}

    steps = (partial(step, name, prefix) for name, prefix in ways.items())
    found = rounds(runs, *steps, warm_up=warm_up)
    program = base.partition(" ")[0]
    for name in ways:
        for way in ("out", "in"):
            pairs = zip(found[f"{name} {way}"], found[f"{base} {way}"], strict=True)
            found[f"{name} {way}_ratio"] = [a / b for a, b in pairs]
        for what, (column, unit) in COLUMNS.items():
            title = column.format(base=program)
            group.rows.append(Row(name, unit, found[f"{name} {what}"], title))
        if unanswered[name]:
            group.notes.append(
                f"{name}: no answer to datagrams of {sorted(unanswered[name])} bytes"
            )
    group.notes.append(f"stalled: for a second or more, of {transfers} transfers a round")


def measure(runs: int) -> Group:
    need("iperf3")
    group = Group("mtu")
    podman = Podman()
    timed(podman.enter("true"))
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        ways = {PODMAN: podman.enter()}
        for mtu in CHOICES:
            net = Rootlessnet(f"{directory}/{mtu}", ("-o", f"mtu={mtu}"))
            stack.enter_context(net.held())
            ways[str(mtu)] = net.enter()
        compare(group, ways, PODMAN, runs)
    podman.clean()
    return group
