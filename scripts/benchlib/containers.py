"""Containers on networks: attaching and detaching beside podman, and what many of them cost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchlib.contenders import PYTHON, Podman, Rootlessnet, need
from benchlib.measure import Check, Failed, Group, Row, ratio, rounds, timed
from benchlib.net import iperf3

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNS = 15
LISTED = 200
GROWING = 100
EDGE = 10
TRAFFIC_RUNS = 3

_CONF = '[network]\nnetwork_backend = "netavark"\n'


def measure(runs: int) -> Group:
    need("/usr/lib/podman/netavark")
    net, podman = Rootlessnet(), Podman()
    with _configured() as base, net.held():
        _run("rootlessnet", "network", "create", "bench-home")
        _run("rootlessnet", "network", "create", "bench-more")
        try:
            with _podmans_container(base):
                turns = _turns(net, runs)
                traffic = _throughput(net)
            listed, growth, at_once = _many(net)
        finally:
            _run("rootlessnet", "network", "rm", "--force", "bench-home", "bench-more")
    podman.clean()

    group = Group("containers")
    for text, key in (
        ("rootlessnet container setup", "setup"),
        ("rootlessnet container teardown", "teardown"),
        ("rootlessnet network connect", "connect"),
        ("rootlessnet network disconnect", "disconnect"),
        ("podman network connect", "podman connect"),
        ("podman network disconnect", "podman disconnect"),
    ):
        group.rows.append(Row(text, "ms", turns[key]))
    first, last = growth[:EDGE], growth[-EDGE:]
    group.rows += [
        Row(f"container ls with {LISTED}", "ms", listed),
        Row(f"setup, the first {EDGE} of {GROWING}", "ms", first),
        Row(f"setup, the last {EDGE} of {GROWING}", "ms", last),
        Row("50 setups at once, all of them", "ms", [at_once]),
    ]
    whole, detached = _sum(turns, "setup", "teardown"), _sum(turns, "connect", "disconnect")
    theirs = _sum(turns, "podman connect", "podman disconnect")
    for way in ("out", "in"):
        for name in ("rootlessnet", "podman"):
            group.rows.append(Row(f"{way}, {name}'s container", "Gbit/s", traffic[f"{name} {way}"]))
        quotient = ratio(traffic[f"rootlessnet {way}"], traffic[f"podman {way}"])
        group.checks.append(Check(f"{way} of a container : podman's", quotient, False, 1.0))
    group.checks += [
        Check("setup + teardown : podman connect + disconnect", ratio(whole, theirs), True, 1.0),
        Check("connect + disconnect : podman's", ratio(detached, theirs), True, 1.0),
        Check(f"container ls with {LISTED}", Row("", "ms", listed).median, True, 150, "ms"),
        Check(
            f"setup, last {EDGE} of {GROWING} : first",
            Row("", "ms", last).median / Row("", "ms", first).median,
            True,
            1.5,
        ),
    ]
    return group


def _sum(turns: dict[str, list[float]], one: str, other: str) -> list[float]:
    return [a + b for a, b in zip(turns[one], turns[other], strict=True)]


def _turns(net: Rootlessnet, runs: int) -> dict[str, list[float]]:
    """Both on a bridge that somebody else is on too, in turn."""
    command = [*net.program, "container"]
    _run(*command, "setup", "bench-other", "--new", "--network=bench-home", "--network=bench-more")
    _run(*command, "setup", "bench-app", "--new", "--network=bench-home")
    setup = [*command, "setup", "bench", "--new", "--network=bench-more"]

    def ours() -> dict[str, float]:
        return {"setup": timed(setup), "teardown": timed([*command, "teardown", "bench"])}

    def connected() -> dict[str, float]:
        words = ["bench-more", "bench-app"]
        return {
            "connect": timed([*net.program, "network", "connect", *words]),
            "disconnect": timed([*net.program, "network", "disconnect", *words]),
        }

    def theirs() -> dict[str, float]:
        words = ["bench-more", "bench-app"]
        return {
            "podman connect": timed(["podman", "network", "connect", *words]),
            "podman disconnect": timed(["podman", "network", "disconnect", *words]),
        }

    try:
        return rounds(runs, ours, theirs, connected, lambda: {"python": timed(PYTHON)})
    finally:
        _run(*command, "teardown", "--all")


def _throughput(net: Rootlessnet) -> dict[str, list[float]]:
    """From a container to the internet and back, in turn."""
    command = [*net.program, "container"]
    _run(*command, "setup", "bench-app", "--new", "--network=bench-home")
    path = json.loads(_output(*command, "inspect", "bench-app"))["SandboxKey"]
    pid = _output("podman", "inspect", "--format={{.State.Pid}}", "bench-app")
    ours = net.enter("nsenter", f"--net={path}")
    theirs = ["podman", "unshare", "nsenter", "--net", "--target", pid]

    def turn(*options: str) -> dict[str, float]:
        way = "in" if options else "out"
        return {
            f"rootlessnet {way}": iperf3(ours, *options),
            f"podman {way}": iperf3(theirs, *options),
        }

    try:
        return rounds(TRAFFIC_RUNS, turn, partial(turn, "--reverse"))
    finally:
        _run(*command, "teardown", "--all")


def _many(net: Rootlessnet) -> tuple[list[float], list[float], float]:
    """`ls` with many containers, a setup with more and more of them, and many at once."""
    command = [*net.program, "container"]

    def setup(number: int) -> list[str]:
        return [*command, "setup", f"bench-{number}", "--new", "--network=bench-home"]

    try:
        growth = [timed(setup(number)) for number in range(GROWING)]
        for number in range(GROWING, LISTED):
            _run(*setup(number))
        listed = [timed([*command, "ls"]) for _ in range(10)]
        _run(*command, "teardown", "--all")
        shell = " & ".join(" ".join(setup(number)) for number in range(50))
        return listed, growth, timed(["sh", "-c", f"{shell} & wait"])
    finally:
        _run(*command, "teardown", "--all")


@contextlib.contextmanager
def _configured() -> Iterator[Path]:
    """The same backend for both, whatever the user's storage would choose."""
    base = Path(tempfile.mkdtemp(prefix="rootlessnet-bench-"))
    (base / "containers.conf").write_text(_CONF)
    before = os.environ.get("CONTAINERS_CONF")
    os.environ["CONTAINERS_CONF"] = os.fspath(base / "containers.conf")
    try:
        yield base
    finally:
        if before is None:
            del os.environ["CONTAINERS_CONF"]
        else:
            os.environ["CONTAINERS_CONF"] = before
        shutil.rmtree(base, ignore_errors=True)


@contextlib.contextmanager
def _podmans_container(base: Path) -> Iterator[None]:
    """A container of podman's that runs on one network, beside one that is on both."""
    root = base / "root"
    for name in ("bin", "dev", "etc", "proc", "run", "sys", "tmp", "var"):
        (root / name).mkdir(parents=True)
    shutil.copy("/usr/bin/busybox", root / "bin/busybox")
    run = ["podman", "run", "--detach", "--pids-limit=0"]
    sleep = [os.fspath(root), "/bin/busybox", "sleep", "3000"]
    other = ["--name=bench-other", "--network=bench-home", "--network=bench-more"]
    app = ["--name=bench-app", "--network=bench-home"]
    try:
        for options in (other, app):
            _run(*run, *options, "--rootfs", *sleep)
        yield
    finally:
        _run("podman", "rm", "--force", "--time=0", "bench-other", "bench-app", check=False)


def _output(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def _run(*command: str, check: bool = True) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if check and done.returncode:
        raise Failed(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
