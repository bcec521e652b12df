"""A home of its own for podman and for us, to see that both do the same in it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import PROGRAM

BACKENDS = ("netavark", "cni")


class Home:
    """HOME, XDG_RUNTIME_DIR and, with a backend, a containers.conf that chooses it."""

    def __init__(self, base: Path, backend: str = "") -> None:
        self.path = base / "home"
        self.path.mkdir(parents=True)
        self.runtime = base / "runtime"
        self.runtime.mkdir(mode=0o700)
        self.conf = base / "containers.conf"
        self._has_podmans = False
        self.environment = {
            "HOME": str(self.path),
            "PATH": os.environ["PATH"],
            "XDG_RUNTIME_DIR": str(self.runtime),
            "CONTAINERS_CONF": str(self.conf),
        }
        self.configure(f'network_backend = "{backend}"' if backend else "")

    def configure(self, network: str, engine: str = "") -> None:
        """Write containers.conf: the lines of two tables."""
        self.conf.write_text(f"[network]\n{network}\n[engine]\n{engine}\n")

    @property
    def graphroot(self) -> Path:
        return self.path / ".local/share/containers/storage"

    @property
    def sentinel(self) -> Path:
        return self.graphroot / "defaultNetworkBackend"

    def directory(self, backend: str) -> Path:
        """Where the backend has its networks."""
        return self.path / ".config/cni/net.d" if backend == "cni" else self.graphroot / "networks"

    def files(self, backend: str) -> dict[str, str]:
        """The networks' files by name, without what differs from one run to the next."""
        found = {}
        for path in sorted(self.directory(backend).iterdir()):
            if path.suffix in (".json", ".conflist"):
                found[path.name] = masked(path.read_text())
        return found

    def tree(self) -> dict[str, bytes]:
        """Every file and directory, to see that nothing changed."""
        return {
            str(path): path.read_bytes() if path.is_file() else b""
            for path in sorted(self.path.rglob("*"))
        }

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`rootlessnet network ARGUMENTS`."""
        return self._run([PROGRAM, "network", *arguments], check)

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments).stdout)

    def podman(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        self._has_podmans = True
        return self._run(["podman", "--log-level=error", *arguments], check)

    def _run(self, command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, env=self.environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done

    def end(self) -> None:
        """Remove what podman made, files of other ids and its pause process included."""
        if self._has_podmans and self.graphroot.exists():
            self.podman("unshare", "rm", "-rf", str(self.path), check=False)
        for name in ("libpod/tmp/pause.pid", "libpod/pause.pid"):
            pid = self.runtime / name
            if pid.exists():
                os.kill(int(pid.read_text()), 9)


def masked(text: str) -> str:
    """A network's JSON without its random id, its time, and random IPv6 subnets."""
    text = re.sub(r'"id": "[0-9a-f]{64}"', '"id": ID', text)
    text = re.sub(r'"created": "[^"]*"', '"created": TIME', text)
    return re.sub(r"fd[0-9a-f]{2}(:[0-9a-f]{1,4}){1,3}::", "RANDOM::", text)


def error_of(stderr: str) -> str:
    """What podman says went wrong."""
    lines = [line for line in stderr.splitlines() if line.startswith("Error: ")]
    return lines[0].removeprefix("Error: ") if lines else ""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A fresh home in which no backend is chosen."""
    one = Home(tmp_path)
    yield one
    one.end()


@pytest.fixture(params=BACKENDS)
def chosen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Home, str]]:
    """A fresh home and the backend that its configuration chooses."""
    one = Home(tmp_path, request.param)
    yield one, request.param
    one.end()
