"""Published ports of five contenders, all at once, each with servers of its own (serve.py)."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchlib.contenders import Rootlessnet, runtime_dir
from benchlib.measure import Failed, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVE = ["/usr/bin/python3", "-I", str(Path(__file__).with_name("serve.py"))]
BASE = 5301
SERVERS = 5
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
    found = [(first + number, BASE + number, "tcp") for number in range(SERVERS)]
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
