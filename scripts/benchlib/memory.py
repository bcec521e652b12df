"""What an idle instance costs: memory, and how often anything of it wakes up."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchlib.contenders import ROOTLESSKIT, Podman, Rootlessnet, need, smaps, wake_ups
from benchlib.measure import Check, Group, Row, end, timed, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNS = 2
SETTLE_SECONDS = 1.0
IDLE_SECONDS = 10.0


def children(pid: int) -> dict[str, int]:
    """pid by name. None of a process that has just ended."""
    found = {}
    for task in Path("/proc").glob(f"{pid}/task/*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found[Path(f"/proc/{child}/comm").read_text().strip()] = child
    return found


@contextlib.contextmanager
def rootlesskit() -> Iterator[dict[str, int]]:
    """A running one: the pids of its parent, child and driver."""
    command = [*ROOTLESSKIT, "sleep", "1000"]
    null = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=null, stderr=null) as parent:

        def complete() -> bool:
            # The child is the program again, as /proc/self/exe.
            below = children(parent.pid)
            return "slirp4netns" in below and "exe" in below and "sleep" in children(below["exe"])

        try:
            wait_until("rootlesskit runs its command", complete)
            below = children(parent.pid)
            yield {
                "rootlesskit parent": parent.pid,
                "rootlesskit child": below["exe"],
                "rootlesskit slirp4netns": below["slirp4netns"],
            }
        finally:
            end(parent.pid, signal.SIGTERM)


def measure(runs: int) -> Group:
    need("rootlesskit")
    net, podman = Rootlessnet(), Podman()
    pss: dict[str, list[float]] = {}
    rss: dict[str, list[float]] = {}
    woken: dict[str, list[float]] = {}
    for _ in range(runs):
        podman.clean()
        with net.held(), rootlesskit() as peer:
            timed(podman.enter("true"))
            status = net.status()
            pids = {name: status[name]["pid"] for name in ("supervisor", "holder", "driver")}
            pids |= peer
            pids["podman pause"] = int(podman.pause_file.read_text())
            pids["podman slirp4netns"] = int(podman.driver_file.read_text())
            time.sleep(SETTLE_SECONDS)
            before = {name: wake_ups(pid) for name, pid in pids.items()}
            time.sleep(IDLE_SECONDS)
            for name, pid in pids.items():
                woken.setdefault(name, []).append(wake_ups(pid) - before[name])
                memory = smaps(pid)
                pss.setdefault(name, []).append(memory["pss"])
                rss.setdefault(name, []).append(memory["rss"])
    podman.clean()

    group = Group("memory")
    for name in pss:
        group.rows.append(Row(name, "MB", pss[name], "PSS, MB"))
        group.rows.append(Row(name, "MB", rss[name], "RSS, MB"))
        group.rows.append(Row(name, "wake-ups", woken[name], f"wake-ups in {IDLE_SECONDS:.0f} s"))
    together = [a + b for a, b in zip(pss["supervisor"], pss["holder"], strict=True)]
    kit = [a + b for a, b in zip(pss["rootlesskit parent"], pss["rootlesskit child"], strict=True)]
    group.rows.append(Row("supervisor + holder", "MB", together, "PSS, MB"))
    group.rows.append(Row("rootlesskit parent + child", "MB", kit, "PSS, MB"))
    group.checks += [
        Check("supervisor + holder, PSS", max(together), True, 15, "MB"),
        Check(
            f"wake-ups of both, {IDLE_SECONDS:.0f} s idle",
            max(woken["supervisor"] + woken["holder"]),
            True,
            0,
            "",
        ),
    ]
    group.notes.append("PSS shares out what processes share: RSS is what one would cost alone")
    return group
