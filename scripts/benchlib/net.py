"""Throughput through slirp4netns: the instance's beside podman's, and beside no slirp4netns."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchlib.contenders import Podman, Rootlessnet, need
from benchlib.measure import Check, Failed, Group, Row, ratio, rounds, timed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

RUNS = 5
SECONDS = 3
# The same thing twice: what differs between these two is noise, and so is less than that elsewhere.
AGAIN = "podman again"
PROBE = ["/usr/bin/python3", "-I", str(Path(__file__).with_name("probe.py"))]
INTERNET = "203.0.113.1"


def iperf3(prefix: Sequence[str] = (), *options: str) -> float:
    """Gbit/s of one connection to the internet, as received; -R for the other direction."""
    command = [*prefix, "iperf3", "--client", INTERNET, "--json", f"--time={SECONDS}", *options]
    for _ in range(10):
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        answer = json.loads(done.stdout or "{}")
        # With --json it may fail and say so in the document alone.
        if "error" not in answer and done.returncode == 0:
            return float(answer["end"]["sum_received"]["bits_per_second"]) / 1e9
        # The server takes one client at a time, and may still be saying goodbye to the last.
        if "busy" not in answer.get("error", ""):
            break
        time.sleep(0.2)
    raise Failed(f"{' '.join(command)}: {answer.get('error', f'exit {done.returncode}')}")


def probe(prefix: Sequence[str], *arguments: str) -> dict[str, Any]:
    """What probe.py says in there."""
    command = [*prefix, *PROBE, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}: exit {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def measure(runs: int) -> Group:
    need("iperf3")
    net, podman = Rootlessnet(), Podman()
    ways = {
        "rootlessnet": net.enter(),
        "podman": podman.enter(),
        AGAIN: podman.enter(),
        "no slirp4netns": [],
    }

    def out() -> dict[str, float]:
        return {f"{name} out": iperf3(prefix) for name, prefix in ways.items()}

    def back() -> dict[str, float]:
        return {f"{name} in": iperf3(prefix, "--reverse") for name, prefix in ways.items()}

    timed(podman.enter("true"))
    with net.held():
        mtu = net.status()["driver"]["mtu"]
        found = rounds(runs, out, back)
        many = {name: probe(prefix, "refused") for name, prefix in ways.items() if name != AGAIN}
    podman.clean()

    group = Group("net")
    for way in ("out", "in"):
        for name in ways:
            text = f"{way:<4}{name}{f', MTU {mtu}' if name == 'rootlessnet' else ''}"
            group.rows.append(Row(text, "Gbit/s", found[f"{name} {way}"]))
    for way, limit in (("out", 1.0), ("in", 1.0)):
        quotient = ratio(found[f"rootlessnet {way}"], found[f"podman {way}"])
        group.checks.append(Check(f"{way}, rootlessnet : podman", quotient, False, limit))
        pairs = zip(found[f"{AGAIN} {way}"], found[f"podman {way}"], strict=True)
        noise = sorted(a / b for a, b in pairs)
        group.notes.append(
            f"{way}: podman against itself {noise[0]:.2f} to {noise[-1]:.2f} in a round, "
            f"median {statistics.median(noise):.2f}; a verdict within that is none"
        )
    for name, answer in many.items():
        text = f"refused of {answer['connections']} in a row, {name}"
        group.rows.append(Row(text, "", [answer["refused"]]))
    refused = many["rootlessnet"]["refused"]
    group.checks.append(Check("connections refused", refused, True, 0, ""))
    return group
