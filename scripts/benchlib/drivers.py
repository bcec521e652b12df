"""slirp4netns and pasta: one instance of each, pasta at several MTUs, measured in turns."""

from __future__ import annotations

import contextlib
import tempfile

from benchlib.contenders import Rootlessnet, need
from benchlib.measure import Failed, Group
from benchlib.mtu import compare

RUNS = 3
BASE = "slirp4netns 20000"
CHOICES = (BASE, "pasta 1500", "pasta 9000", "pasta 20000", "pasta 65520")


def measure(runs: int) -> Group:
    need("iperf3")
    need("pasta")
    group = Group("drivers")
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
        compare(group, ways, BASE, runs, warm_up=False)
    return group
