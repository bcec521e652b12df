"""What it takes to come back, and what living with systemd costs a start."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from benchlib.contenders import Rootlessnet
from benchlib.measure import Check, Group, Row, end, ratio, rounds, timed

RUNS = 15

# Asks the driver's DNS server until it answers; a line on stdin starts it, a line says it has.
ASK = """
import socket, sys
query = b"\\x12\\x34\\x01\\0\\0\\1\\0\\0\\0\\0\\0\\0\\3web\\x08internet\\4test\\0\\0\\1\\0\\1"
print("in", flush=True)
for line in sys.stdin:
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.settimeout(0.01)
            try:
                asker.sendto(query, ("10.0.2.3", 53))
                if asker.recv(512)[:2] == query[:2]:
                    break
            except OSError:
                pass
    print("answered", flush=True)
"""

# The same start twice, in a mount namespace of its own: with systemd to be seen, and without.
WITH = ["unshare", "-Urm", "sh", "-c", "mount -t tmpfs x /mnt; exec rootlessnet enter true"]
WITHOUT = [*WITH[:-1], "mount -t tmpfs x /run/systemd; exec rootlessnet enter true"]


def measure(runs: int) -> Group:
    net = Rootlessnet()
    restarts: list[float] = []
    command = net.enter(sys.executable, "-I", "-c", ASK.replace("\\\\", "\\"))
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as asker:
        assert asker.stdin is not None and asker.stdout is not None
        asker.stdout.readline()
        for _ in range(runs):
            driver = net.status()["driver"]["pid"]
            began = time.perf_counter()
            end(driver, signal.SIGKILL)
            asker.stdin.write("go\n")
            asker.stdout.readline()
            restarts.append((time.perf_counter() - began) * 1000)
            # So that the next one is no driver that keeps dying, which would be made to wait.
            time.sleep(STABLE_SECONDS)
        asker.communicate()
    net.wait_until_down()

    def start(command: list[str], name: str) -> dict[str, float]:
        milliseconds = timed(command)
        net.wait_until_down()
        return {name: milliseconds}

    starts = rounds(runs, lambda: start(WITH, "with"), lambda: start(WITHOUT, "without"))
    added = [a - b for a, b in zip(starts["with"], starts["without"], strict=True)]
    group = Group("recover")
    group.rows += [
        Row("killed slirp4netns, to working DNS", "ms", restarts),
        Row("cold enter with systemd, until it returns", "ms", starts["with"]),
        Row("cold enter without systemd", "ms", starts["without"]),
        Row("  the difference, round by round", "ms", added),
    ]
    group.checks += [
        Check("restart to working DNS, median", group.rows[0].median, True, 300, "ms"),
        Check("the scope's share of a cold enter, median", group.rows[3].median, True, 15, "ms"),
    ]
    group.notes.append(f"with : without systemd {ratio(starts['with'], starts['without']):.2f}")
    return group


STABLE_SECONDS = 10.5
