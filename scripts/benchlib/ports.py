"""Published ports: ours, podman's rootlessport, RootlessKit's two drivers and plain loopback.

All contenders run at once, each with servers of its own, and take turns. --listen is measured with
a client and a server of our own, as no other takes a socket that way, against the same pair on
plain loopback.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchlib.contenders import Rootlessnet, need, runtime_dir
from benchlib.measure import Check, Failed, Group, Row, ratio, rounds, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNS = 5
SECONDS = 1
OFFERED = 1000
"""Mbit/s, more than most can forward on two processors together with client and server."""
CONNECTIONS = 500
REQUESTS = 10000
IDLE = 1000
SERVE = ["/usr/bin/python3", "-I", str(Path(__file__).with_name("serve.py"))]
BASE = 5301
OURS, ROOTLESSPORT, BUILTIN, API, LOOPBACK = (
    "rootlessnet",
    "rootlessport",
    "builtin",
    "slirp API",
    "loopback",
)
FIRST = {LOOPBACK: BASE, OURS: 21300, ROOTLESSPORT: 21400, BUILTIN: 21500, API: 21600}
PODMAN = [
    "podman", "run", "--rm", "-i", "--pids-limit=0", "--network=slirp4netns", "--log-driver=none",
    "--ulimit=nofile=20000:20000",
]  # fmt: skip


def mappings(first: int) -> list[tuple[int, int, str]]:
    """(port of the host, port inside, protocol)."""
    found = [(first + number, BASE + number, "tcp") for number in range(4)]
    return [*found, (first, BASE, "udp")]


def commands(rootfs: Path, net: Rootlessnet) -> dict[str, list[str]]:
    serve = [*SERVE, str(BASE)]
    found = {}
    publish = [f"--publish=127.0.0.1:{a}:{b}/{c}" for a, b, c in mappings(FIRST[OURS])]
    found[OURS] = [*net.program, "enter", *publish, "--", *serve]
    publish = [f"-p=127.0.0.1:{a}:{b}/{c}" for a, b, c in mappings(FIRST[ROOTLESSPORT])]
    here = str(Path(__file__).parent)
    mounts = ["-v=/usr:/usr:ro", "-v=/etc:/etc:ro", f"-v={here}:{here}:ro", "--tmpfs=/tmp"]
    found[ROOTLESSPORT] = [
        *PODMAN, *publish, *mounts, "--tmpfs=/var/lib/nginx", "--rootfs", str(rootfs), *serve,
    ]  # fmt: skip
    for name, driver in ((BUILTIN, "builtin"), (API, "slirp4netns")):
        publish = []
        for a, b, c in mappings(FIRST[name]):
            publish += ["-p", f"127.0.0.1:{a}:{b}/{c}"]
        found[name] = [
            "rootlesskit", "--net=slirp4netns", f"--port-driver={driver}", "--mtu=65520",
            "--disable-host-loopback", *publish, *serve,
        ]  # fmt: skip
    found[LOOPBACK] = serve
    return found


@contextlib.contextmanager
def running() -> Iterator[None]:
    """All contenders."""
    net = Rootlessnet()
    with (
        tempfile.TemporaryDirectory(dir=runtime_dir()) as directory,
        contextlib.ExitStack() as stack,
    ):
        rootfs = Path(directory) / "rootfs"
        rootfs.mkdir()
        for name in ("proc", "sys", "dev", "tmp", "run", "usr", "etc", "var", "opt"):
            (rootfs / name).mkdir()
        for name in ("bin", "sbin", "lib", "lib64"):
            (rootfs / name).symlink_to(f"usr/{name}")
        for name, command in commands(rootfs, net).items():
            child = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
            stack.callback(child.stdin.close)  # type: ignore[union-attr]
            assert child.stdout is not None
            if child.stdout.readline() != b"up\n":
                raise Failed(f"{name} does not start: {' '.join(command)}")
        for name, first in FIRST.items():
            wait_until(f"{name} forwards", lambda first=first: answers(first + 1))  # type: ignore[misc]
        yield
    net.wait_until_down()


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as s:
            return s.recv(1) == b"x"
    except OSError:
        return False


def iperf3(first: int, *options: str) -> dict[str, float]:
    command = [
        "timeout",
        "10",
        "iperf3",
        "-c",
        "127.0.0.1",
        "-p",
        str(first),
        "-J",
        "-t",
        str(SECONDS),
        *options,
    ]
    # One that still serves the last client says so; that is not for long.
    deadline = time.monotonic() + 10
    while True:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        answer = json.loads(done.stdout or "{}")
        if "error" not in answer and done.returncode == 0:
            end = answer["end"]
            whole = end.get("sum_received", end.get("sum", {}))
            lost = 0.0
            if "-u" in options:
                whole = end["sum"]
                lost = whole["lost_percent"] / 100
            return {"gbits": whole["bits_per_second"] * (1 - lost) / 1e9}
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


def datagrams(first: int) -> float:
    """Mbit/s that arrive of OFFERED in datagrams of 1,400 bytes."""
    return iperf3(first, "-u", "-t", "1", "-l", "1400", "-b", f"{OFFERED}M")["gbits"] * 1000


def forwarders() -> dict[str, list[int]]:
    """The processes that forward, by contender; servers are none of them."""
    found: dict[str, list[int]] = {OURS: [], ROOTLESSPORT: [], BUILTIN: []}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if line.startswith("rootlessnet: ports of"):
                found[OURS].append(int(entry.name))
            elif "rootlessport" in line.partition(" ")[0]:
                found[ROOTLESSPORT].append(int(entry.name))
            elif "port-driver=builtin" in line:
                found[BUILTIN].append(int(entry.name))
    return found


def resident(pids: list[int]) -> float:
    """Kilobytes of their own, all together."""
    total = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += sum(map(int, re.findall(r"^Private_\w+:\s+(\d+)", text, re.MULTILINE)))
    return float(total)


def idle(name: str) -> float:
    """Kilobytes that a connection costs which does nothing."""
    before = resident(forwarders()[name])
    clients = []
    try:
        for _ in range(IDLE):
            clients.append(socket.create_connection(("127.0.0.1", FIRST[name] + 3)))
        time.sleep(0.5)
        return (resident(forwarders()[name]) - before) / IDLE
    finally:
        for client in clients:
            client.close()


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


def measure(runs: int) -> Group:
    for program in ("rootlesskit", "iperf3", "ab", "podman"):
        need(program)
    if not shutil.which("nginx") and not Path("/usr/sbin/nginx").exists():
        raise Failed("not installed: nginx")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    only = [name for name in os.environ.get("BENCH_PORTS", "").split(",") if name]

    def wanted(what: str) -> bool:
        return not only or what in only

    group = Group("ports")
    kinds = {
        "TCP out": ("one", ()),
        "TCP back": ("one", ("-R",)),
        "TCP four": ("four", ("-P", "4")),
    }
    with running():
        series: dict[str, dict[str, list[float]]] = {}
        for title, (kind, options) in kinds.items():
            if wanted(kind):
                series[title] = rounds(
                    runs,
                    lambda options=options: {  # type: ignore[misc]
                        name: iperf3(first, *options)["gbits"] for name, first in FIRST.items()
                    },
                    warm_up=False,
                )
        for title, found in series.items():
            for name, values in found.items():
                group.rows.append(Row(name, "Gbit/s", values, title))
            better = [max(a, b) for a, b in zip(found[ROOTLESSPORT], found[BUILTIN], strict=True)]
            limit = 1.1 if title == "TCP four" else 1.5
            text = f"{title} : better of rootlessport, builtin"
            group.checks.append(Check(text, ratio(found[OURS], better), False, limit))
            if title != "TCP four":
                group.checks.append(
                    Check(f"{title} : loopback", ratio(found[OURS], found[LOOPBACK]), False, 0.7)
                )
        if wanted("connect"):
            both = rounds(
                runs,
                lambda: {
                    f"{name} {key}": value
                    for name, first in FIRST.items()
                    for key, value in zip(("p50", "p99"), connects(first), strict=True)
                },
            )
            for name in FIRST:
                for key in ("p50", "p99"):
                    group.rows.append(Row(name, "us", both[f"{name} {key}"], f"connect {key}, us"))
            for key, limit in (("p50", 0.6), ("p99", 1.0)):
                quotient = ratio(both[f"{OURS} {key}"], both[f"{ROOTLESSPORT} {key}"])
                group.checks.append(Check(f"connect {key} : rootlessport", quotient, True, limit))
        for what, title, unit, function, skipped in (
            ("http", "HTTP, requests/s", "1/s", requests, ""),
            # slirp4netns answers no datagrams of clients on loopback.
            ("udp", "UDP, Mbit/s", "Mbit/s", datagrams, API),
        ):
            if not wanted(what):
                continue
            found = rounds(
                runs,
                lambda function=function, skipped=skipped: {  # type: ignore[misc]
                    name: function(first) for name, first in FIRST.items() if name != skipped
                },
                warm_up=what == "http",
            )
            for name, values in found.items():
                group.rows.append(Row(name, unit, values, title))
            better = [
                max(a, b, 1.0) for a, b in zip(found[ROOTLESSPORT], found[BUILTIN], strict=True)
            ]
            text = f"{title.partition(',')[0]} : better peer"
            group.checks.append(Check(text, ratio(found[OURS], better), False, 1.0))
        if wanted("idle"):
            found = {name: [idle(name)] for name in (OURS, ROOTLESSPORT, BUILTIN)}
            for name, values in found.items():
                group.rows.append(Row(name, "kB", values, f"kB each of {IDLE} idle"))
            quotient = statistics.median(found[OURS]) / max(0.01, found[ROOTLESSPORT][0])
            group.checks.append(Check("idle connection : rootlessport", quotient, True, 1.0))
        if wanted("listen"):
            with listening(21700):
                found = rounds(
                    max(runs, 3),
                    lambda: {"listen": push(21700), "loopback": push(FIRST[LOOPBACK] + 3)},
                )
            for name, values in found.items():
                group.rows.append(Row(name, "Gbit/s", values, "own client, Gbit/s"))
            quotient = ratio(found["listen"], found["loopback"])
            group.checks.append(Check("--listen : loopback", quotient, False, 0.95))
    print(file=sys.stderr)
    return group
