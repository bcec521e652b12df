"""Published ports: ours, podman's rootlessport, RootlessKit's two drivers and plain loopback.

All contenders run at once (publish.py) and take turns. --listen is measured with a client and a
server of our own, as no other takes a socket that way, against the same pair on plain loopback.

BENCH_PORTS names parts, separated by commas: one, four, connect, http, udp, idle, listen.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchlib import datagrams
from benchlib.contenders import need
from benchlib.measure import Check, Failed, Group, Row, ratio, rounds
from benchlib.publish import (
    BUILTIN,
    FIRST,
    LOOPBACK,
    OURS,
    ROOTLESSPORT,
    SERVE,
    forwarders,
    resident,
    running,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNS = 5
SECONDS = 1
CONNECTIONS = 500
REQUESTS = 10000
IDLE = 5000
LISTEN_PORT = 21700


def iperf3(first: int, *options: str) -> float:
    """Gbit/s that arrive."""
    command = ["timeout", "10", "iperf3", "-c", "127.0.0.1", "-p", str(first), "-J"]
    command += ["-t", str(SECONDS), *options]
    # One that still serves the last client says so; that is not for long.
    deadline = time.monotonic() + 10
    while True:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        answer = json.loads(done.stdout or "{}")
        if "error" not in answer and done.returncode == 0:
            return float(answer["end"]["sum_received"]["bits_per_second"]) / 1e9
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    raise Failed(f"{' '.join(command)}: {answer.get('error', done.returncode)}")


def connects(first: int) -> tuple[float, float]:
    """Microseconds for connect, one byte and the end: median and 99th percentile."""
    found = []
    for _ in range(CONNECTIONS):
        began = time.perf_counter()
        with socket.create_connection(("127.0.0.1", first + 1)) as s:
            if s.recv(1) != b"x":
                raise Failed(f"port {first + 1} gives no byte")
        found.append((time.perf_counter() - began) * 1e6)
    found.sort()
    return found[len(found) // 2], found[len(found) * 99 // 100]


def requests(first: int) -> float:
    """Per second, over 64 connections that stay."""
    url = f"http://127.0.0.1:{first + 2}/"
    command = ["ab", "-q", "-k", "-c", "64", "-n", str(REQUESTS), url]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = re.search(r"Requests per second:\s+([0-9.]+)", done.stdout)
    if not found or not re.search(r"Failed requests:\s+0\b", done.stdout):
        raise Failed(f"{' '.join(command)}:\n{done.stdout}")
    return float(found[1])


def idle(name: str) -> tuple[float, int]:
    """Kilobytes that a connection costs which does nothing, and how many there were of IDLE."""
    before = resident(forwarders()[name])
    with contextlib.ExitStack() as stack:
        held = 0
        with contextlib.suppress(OSError):
            for _ in range(IDLE):
                client = stack.enter_context(
                    socket.create_connection(("127.0.0.1", FIRST[name] + 4), 5)
                )
                # Accepted is not forwarded: this comes from the server.
                if client.recv(1) != b"x":
                    break
                held += 1
        time.sleep(0.5)
        return (resident(forwarders()[name]) - before) / max(1, held), held


def push(port: int) -> float:
    """Gbit/s of our own client into a server that reads all."""
    data = bytes(1 << 20)
    total = 0
    with socket.create_connection(("127.0.0.1", port)) as s:
        began = time.perf_counter()
        while time.perf_counter() - began < SECONDS:
            s.sendall(data)
            total += len(data)
    return total * 8 / (time.perf_counter() - began) / 1e9


@contextlib.contextmanager
def listening(port: int) -> Iterator[None]:
    """A server inside, behind enter --listen."""
    command = ["rootlessnet", "enter", f"--listen=127.0.0.1:{port}", "--", *SERVE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdin is not None
        if child.stdout.readline() != b"up\n":
            raise Failed("enter --listen does not start")
        try:
            yield
        finally:
            child.stdin.close()


def better(found: dict[str, list[float]]) -> list[float]:
    """Of the peers that forward as we do, in each round."""
    return [max(a, b) for a, b in zip(found[ROOTLESSPORT], found[BUILTIN], strict=True)]


def streams(group: Group, runs: int, title: str, options: tuple[str, ...]) -> None:
    found = rounds(
        runs,
        lambda: {name: iperf3(first, *options) for name, first in FIRST.items()},
        warm_up=False,
    )
    group.rows += [Row(name, "Gbit/s", values, title) for name, values in found.items()]
    limit = 1.1 if title == "TCP four" else 1.5
    quotient = ratio(found[OURS], better(found))
    group.checks.append(Check(f"{title} : better of rootlessport, builtin", quotient, False, limit))
    if title != "TCP four":
        quotient = ratio(found[OURS], found[LOOPBACK])
        group.checks.append(Check(f"{title} : loopback", quotient, False, 0.7))


def connecting(group: Group, runs: int) -> None:
    found = rounds(
        runs,
        lambda: {
            f"{name} {key}": value
            for name, first in FIRST.items()
            for key, value in zip(("p50", "p99"), connects(first), strict=True)
        },
    )
    for name in FIRST:
        for key in ("p50", "p99"):
            group.rows.append(Row(name, "us", found[f"{name} {key}"], f"connect {key}, us"))
    for key, limit in (("p50", 0.6), ("p99", 1.0)):
        quotient = ratio(found[f"{OURS} {key}"], found[f"{ROOTLESSPORT} {key}"])
        group.checks.append(Check(f"connect {key} : rootlessport", quotient, True, limit))


def http(group: Group, runs: int) -> None:
    found = rounds(runs, lambda: {name: requests(first) for name, first in FIRST.items()})
    group.rows += [Row(name, "1/s", values, "HTTP, requests/s") for name, values in found.items()]
    group.checks.append(Check("HTTP : better peer", ratio(found[OURS], better(found)), False, 1.0))


def udp(group: Group, runs: int) -> None:
    for way, found in datagrams.measure(runs).items():
        title = f"UDP {way}"
        group.rows += [
            Row(name, "Mbit/s", values, f"{title}, Mbit/s") for name, values in found.items()
        ]
        quotient = ratio(found[OURS], better(found))
        group.checks.append(Check(f"{title} : better peer", quotient, False, 1.0))
    group.notes += datagrams.NOTES


def idling(group: Group, runs: int) -> None:
    found = {}
    for name in (OURS, ROOTLESSPORT, BUILTIN):
        found[name], held = idle(name)
        group.rows.append(Row(name, "kB", [found[name]], f"kB each of {IDLE} idle"))
        if held < IDLE:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            group.notes.append(
                f"{name} has only {held} connections at once, not {IDLE}, with {limit} descriptors"
            )
        if name == OURS:
            group.checks.append(Check("idle connections held", held, False, IDLE, ""))
    quotient = found[OURS] / max(0.01, found[ROOTLESSPORT])
    group.checks.append(Check("idle connection : rootlessport", quotient, True, 1.0))


def listen(group: Group, runs: int) -> None:
    with listening(LISTEN_PORT):
        found = rounds(
            3 * runs,  # the two do the same, so all that is to be seen is how much they vary
            lambda: {"listen": push(LISTEN_PORT), "loopback": push(FIRST[LOOPBACK] + 3)},
        )
    group.rows += [Row(name, "Gbit/s", got, "own client, Gbit/s") for name, got in found.items()]
    quotient = ratio(found["listen"], found["loopback"])
    group.checks.append(Check("--listen : loopback", quotient, False, 0.95))


PARTS = {
    "one": (
        partial(streams, title="TCP out", options=()),
        partial(streams, title="TCP back", options=("-R",)),
    ),
    "four": (partial(streams, title="TCP four", options=("-P", "4")),),
    "connect": (connecting,),
    "http": (http,),
    "udp": (udp,),
    "idle": (idling,),
    "listen": (listen,),
}


def measure(runs: int) -> Group:
    for program in ("rootlesskit", "iperf3", "ab", "podman"):
        need(program)
    if not shutil.which("nginx") and not Path("/usr/sbin/nginx").exists():
        raise Failed("not installed: nginx")
    only = [name for name in os.environ.get("BENCH_PORTS", "").split(",") if name]
    if unknown := set(only) - set(PARTS):
        raise Failed(f"BENCH_PORTS: no such part: {', '.join(sorted(unknown))}")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    group = Group("ports")
    with running():
        for name, steps in PARTS.items():
            if not only or name in only:
                for step in steps:
                    step(group, runs)
    print(file=sys.stderr)
    return group
