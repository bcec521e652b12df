"""The programs that are compared: how each is run, kept warm, and made cold again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from benchlib.measure import Failed, end, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

PYTHON = ["/usr/bin/python3", "-I", "-S", "-c", "pass"]
ROOTLESSKIT = ["rootlesskit", "--net=slirp4netns"]


def runtime_dir() -> Path:
    return Path(os.environ["XDG_RUNTIME_DIR"])


def need(program: str) -> None:
    if shutil.which(program) is None:
        raise Failed(f"not installed: {program}")


class Rootlessnet:
    """An instance: the user's default one, or the one of another static dir."""

    def __init__(self, static_dir: str = "", options: tuple[str, ...] = ()) -> None:
        need("rootlessnet")
        self.program = ["rootlessnet", *(["--static-dir", static_dir] if static_dir else [])]
        self.options = options
        status = self.status()
        if status["state"] != "down":
            raise Failed(f"{status['name']} is in use")
        self.directory = runtime_dir() / "rootlessnet" / status["name"]

    def enter(self, *command: str) -> list[str]:
        return [*self.program, "enter", *self.options, "--", *command]

    def status(self) -> dict[str, Any]:
        done = subprocess.run(
            [*self.program, "status", "--json"], stdout=subprocess.PIPE, check=True
        )
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def wait_until_down(self) -> None:
        wait_until(f"{self.directory} is removed", lambda: not self.directory.exists())

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep it running."""
        command = self.enter("sh", "-c", "echo in; read x")
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
            assert user.stdout is not None
            if user.stdout.readline() != b"in\n":
                raise Failed("the instance does not start")
            try:
                yield
            finally:
                user.communicate(b"\n")
        self.wait_until_down()


class Podman:
    """The user's `podman unshare --rootless-netns`. podman never takes the namespace down."""

    def __init__(self) -> None:
        need("podman")
        self.tmp = runtime_dir() / "libpod/tmp"
        self.pause_file = self.tmp / "pause.pid"
        self.driver_file = self.tmp / "rootless-netns/rootless-netns-slirp4netns.pid"

    def enter(self, *command: str) -> list[str]:
        return ["podman", "unshare", "--rootless-netns", *command]

    def clean(self) -> None:
        """No netns, no slirp4netns, no pause process: as after a boot."""
        for file, program in ((self.driver_file, "slirp4netns"), (self.pause_file, "catatonit")):
            try:
                pid = int(file.read_text())
                comm = Path(f"/proc/{pid}/comm").read_text().strip()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if comm == program:
                end(pid)
        self.pause_file.unlink(missing_ok=True)
        shutil.rmtree(self.driver_file.parent, ignore_errors=True)
        for file in (runtime_dir() / "netns").glob("rootless-netns-*"):
            file.unlink()


def smaps(pid: int) -> dict[str, float]:
    """Pss and Rss in MB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.findall(r"^(Pss|Rss):\s+(\d+) kB", text, re.MULTILINE)
    return {name.lower(): int(kib) * 1024 / 1e6 for name, kib in found}


def wake_ups(pid: int) -> int:
    """How often the process was switched to, since it began, all threads together."""
    found = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        text = (task / "status").read_text()
        found += sum(map(int, re.findall(r"ctxt_switches:\s+(\d+)", text)))
    return found
