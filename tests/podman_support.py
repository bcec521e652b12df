"""podman and buildah in a home of their own, with rootlessnet-slirp4netns as their slirp4netns."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from slirp4netns_support import WRAPPER, real_of
from support import own_processes, wait_for

BUS = f"unix:path=/run/user/{os.getuid()}/bus"


class Podman:
    """Its paths are short: podman puts sockets below them."""

    def __init__(self, engine: str = f'network_cmd_path = "{WRAPPER}"', network: str = "") -> None:
        self.base = Path(tempfile.mkdtemp(prefix="rn-", dir="/tmp"))
        self.home, self.runtime = self.base / "h", self.base / "r"
        self.home.mkdir()
        self.runtime.mkdir(mode=0o700)
        conf = self.base / "containers.conf"
        conf.write_text(
            f'[network]\nnetwork_backend = "netavark"\n{network}\n'
            f'[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n{engine}\n'
        )
        self.environment = {
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            "XDG_RUNTIME_DIR": str(self.runtime),
            "DBUS_SESSION_BUS_ADDRESS": BUS,
            "CONTAINERS_CONF": str(conf),
        }
        self.rootfs = make_rootfs(self.base / "rootfs")
        self._before = set(own_processes())

    def run(
        self, *command: str, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, env=self.environment, stdin=subprocess.DEVNULL, cwd="/",
            capture_output=True, text=True, check=False, timeout=timeout,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done

    def podman(self, *arguments: str, check: bool = True) -> str:
        return self.run("podman", "--log-level=error", *arguments, check=check).stdout

    def container(self, name: str, network: str, *more: str, command: str = "sleep 1000") -> None:
        """Run one in the background."""
        self.podman(
            "run", "-d", "--pids-limit=0", "--name", name, "--network", network, *more,
            "--rootfs", str(self.rootfs), "sh", "-c", command,
        )  # fmt: skip

    def execute(self, name: str, command: str, check: bool = True) -> str:
        return self.podman("exec", name, "sh", "-c", command, check=check)

    def inspect(self, name: str) -> Any:
        return json.loads(self.podman("inspect", name))[0]

    def reaches_internet(self, name: str) -> bool:
        fetch = "wget -q -O - http://203.0.113.1/"
        return "internet" in self.execute(name, fetch, check=False)

    def named(self, program: str) -> list[tuple[int, str]]:
        """New processes that run a script of this path."""
        return [
            (pid, command)
            for pid, command in own_processes().items()
            if pid not in self._before and program in command.split()[:2]
        ]

    def wrappers(self) -> list[int]:
        """The processes that podman takes for its slirp4netns."""
        return [pid for pid, _ in self.named(WRAPPER)]

    def restart_real(self, wrapper: int = 0) -> None:
        """kill -9 the real slirp4netns, of the only wrapper unless told, and wait for the next."""
        if not wrapper:
            (wrapper,) = self.wrappers()
        before = real_of(wrapper)
        assert before
        os.kill(before, 9)
        wait_for("another one runs", lambda: real_of(wrapper) not in (0, before))

    def end(self) -> None:
        self.podman("rm", "-af", "-t", "0", check=False)
        self.run("podman", "unshare", "rm", "-rf", str(self.home), str(self.rootfs), check=False)
        for name in ("libpod/tmp/pause.pid", "libpod/pause.pid"):
            pid = self.runtime / name
            if pid.exists():
                os.kill(int(pid.read_text()), 9)
        wait_for("no slirp4netns is left", lambda: not self.wrappers())
        shutil.rmtree(self.base, ignore_errors=True)


def make_rootfs(path: Path) -> Path:
    """The least that runs: a static busybox under the names that are used here."""
    (path / "bin").mkdir(parents=True)
    for name in ("dev", "proc", "sys", "tmp", "run", "etc"):
        (path / name).mkdir()
    shutil.copy("/usr/bin/busybox", path / "bin/busybox")
    # Without it the static busybox dies of looking names up.
    (path / "etc/nsswitch.conf").write_text("hosts: files\n")
    for name in ("sh", "sleep", "wget", "ip", "httpd", "nc", "cat", "nslookup", "id", "true"):
        (path / "bin" / name).symlink_to("busybox")
    return path
