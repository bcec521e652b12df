"""The choice of the default MTU: one instance for each, all at once, measured in turns.

65520 is podman's and RootlessKit's, and known for stalls (slirp4netns issues 128 and 284: a
transfer larger than the MTU takes seconds, because the window that the kernel opens first holds no
whole segment). So beside the throughput: requests on new connections for answers around the MTU,
and the slowest of them all.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from pathlib import Path

from benchlib.contenders import Podman, Rootlessnet, need
from benchlib.measure import Failed, Group, Row, rounds, timed
from benchlib.net import iperf3

RUNS = 5
CHOICES = (1500, 4000, 9000, 16384, 20000, 32000, 48000, 65520)
PROBE = ["/usr/bin/python3", "-I", str(Path(__file__).with_name("probe.py"))]
COLUMNS = {
    "out": ("out, Gbit/s", "Gbit/s"),
    "in": ("in, Gbit/s", "Gbit/s"),
    "request_us": ("request, us", "us"),
    "connect_us": ("connect+request, us", "us"),
    "megabyte_ms": ("1 MB, ms", "ms"),
    "slowest_ms": ("slowest, ms", "ms"),
}


def probe(prefix: list[str]) -> dict[str, object]:
    done = subprocess.run([*prefix, *PROBE], stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise Failed(f"the probe failed in {' '.join(prefix)}: exit {done.returncode}")
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def measure(runs: int) -> Group:
    need("iperf3")
    group = Group("mtu")
    podman = Podman()
    timed(podman.enter("true"))
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        ways = {"podman 65520": podman.enter()}
        for mtu in CHOICES:
            net = Rootlessnet(f"{directory}/{mtu}", ("-o", f"mtu={mtu}"))
            stack.enter_context(net.held())
            ways[str(mtu)] = net.enter()

        def step(name: str, prefix: list[str]) -> dict[str, float]:
            found = {
                "out": iperf3(prefix),
                "in": iperf3(prefix, "--reverse"),
            }
            for what, value in probe(prefix).items():
                if what in COLUMNS:
                    assert isinstance(value, float)
                    found[what] = value
                elif value:
                    group.notes.append(f"{name}: UDP, no answer to {value} bytes")
            return {f"{name} {what}": value for what, value in found.items()}

        steps = [
            lambda name=name, prefix=prefix: step(name, prefix)  # type: ignore[misc]
            for name, prefix in ways.items()
        ]
        found = rounds(runs, *steps)
    podman.clean()
    group.notes = sorted(set(group.notes))
    for name in ways:
        for what, (column, unit) in COLUMNS.items():
            group.rows.append(Row(name, unit, found[f"{name} {what}"], column))
    return group
