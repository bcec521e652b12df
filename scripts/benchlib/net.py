"""Throughput through slirp4netns: the instance's beside podman's, and beside no slirp4netns."""

from __future__ import annotations

import json
import subprocess
import time
from typing import TYPE_CHECKING

from benchlib.contenders import Podman, Rootlessnet, need
from benchlib.measure import Check, Failed, Group, Row, ratio, rounds, timed

if TYPE_CHECKING:
    from collections.abc import Sequence

RUNS = 5
SECONDS = 3
INTERNET = "203.0.113.1"


def iperf3(prefix: Sequence[str] = (), *options: str) -> float:
    """Gbit/s of one connection to the internet, as received; -R for the other direction."""
    command = [*prefix, "iperf3", "--client", INTERNET, "--json", f"--time={SECONDS}", *options]
    for _ in range(10):
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        answer = json.loads(done.stdout or "{}")
        if done.returncode == 0:
            return float(answer["end"]["sum_received"]["bits_per_second"]) / 1e9
        # The server takes one client at a time, and may still be saying goodbye to the last.
        if "busy" not in answer.get("error", ""):
            break
        time.sleep(0.2)
    raise Failed(f"{' '.join(command)}: {answer.get('error', f'exit {done.returncode}')}")


def measure(runs: int) -> Group:
    need("iperf3")
    net, podman = Rootlessnet(), Podman()
    ways = {"rootlessnet": net.enter(), "podman": podman.enter(), "no slirp4netns": []}

    def out() -> dict[str, float]:
        return {f"{name} out": iperf3(prefix) for name, prefix in ways.items()}

    def back() -> dict[str, float]:
        return {f"{name} in": iperf3(prefix, "--reverse") for name, prefix in ways.items()}

    timed(podman.enter("true"))
    with net.held():
        mtu = net.status()["driver"]["mtu"]
        found = rounds(runs, out, back)
    podman.clean()

    group = Group("net")
    for way in ("out", "in"):
        for name in ways:
            text = f"{way:<4}{name}{f', MTU {mtu}' if name == 'rootlessnet' else ''}"
            group.rows.append(Row(text, "Gbit/s", found[f"{name} {way}"]))
    for way, limit in (("out", 1.0), ("in", 1.0)):
        quotient = ratio(found[f"rootlessnet {way}"], found[f"podman {way}"])
        group.checks.append(Check(f"{way}, rootlessnet : podman", quotient, False, limit))
    return group
