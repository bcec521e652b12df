"""What the tests share: the program as a user runs it, and the search for what it left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

PROGRAM = shutil.which("rootlessnet") or str(Path(sys.executable).with_name("rootlessnet"))
RUNTIME = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")


both_drivers = pytest.mark.parametrize("net", ["slirp4netns", "pasta"], indirect=True)
"""For a test that has to hold whatever connects the instance."""


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 10) -> Any:
    """Poll until the condition is true and return its value; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.005)


def own_processes() -> dict[int, str]:
    """pid and command of every living process of this user (and of its subordinate ids)."""
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            if os.stat(f"/proc/{name}").st_uid != os.getuid():
                continue
            stat = Path(f"/proc/{name}/stat").read_text()
            if stat.rpartition(")")[2].split()[0] == "Z":
                continue
            command = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        found[int(name)] = command or stat
    return found


class Net:
    """One instance of the test's own: its static dir, and the program run for it."""

    def __init__(
        self, static_dir: Path, runtime: Path = RUNTIME, driver: str = "slirp4netns"
    ) -> None:
        self.static_dir = static_dir
        self.driver = driver
        self.runtime = runtime
        self.environment = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(runtime),
            "ROOTLESSNET_STATIC_DIR": str(static_dir),
        }
        if driver != "slirp4netns":
            # Read after whatever a test says is containers.conf.
            override = static_dir.with_name("driver.conf")
            override.write_text(f'[network]\ndefault_rootless_network_cmd = "{driver}"\n')
            self.environment["CONTAINERS_CONF_OVERRIDE"] = str(override)
        self.children: list[subprocess.Popen[str]] = []

    # -- running it --------------------------------------------------------------------------------

    def run(
        self,
        *arguments: str,
        check: bool = True,
        env: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
        timeout: float = 60,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run `rootlessnet ARGUMENTS` to its end; with check its exit status has to be 0."""
        done = subprocess.run(
            [*prefix, PROGRAM, *arguments],
            env={**self.environment, **(env or {})},
            text=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
            **options,
        )
        if check:
            assert done.returncode == 0, (done.returncode, done.stdout, done.stderr, self.log())
        return done

    def enter(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command inside."""
        return self.run("enter", "--", *command, **options)

    def inside(self, *command: str, **options: Any) -> str:
        """What a command inside prints."""
        output: str = self.enter(*command, **options).stdout
        return output

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start `rootlessnet ARGUMENTS` and leave it running; it is ended with the test."""
        options.setdefault("stdin", subprocess.PIPE)
        env = {**self.environment, **options.pop("env", {})}
        child = subprocess.Popen(
            [PROGRAM, *arguments],
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )
        self.children.append(child)
        return child

    def hold(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Keep the instance in use until the returned process' stdin is closed or it is killed."""
        child = self.start("enter", *arguments, "--", "sh", "-c", "echo in; read x", **options)
        assert child.stdout is not None
        line = child.stdout.readline()
        assert line == "in\n", (line, child.communicate())
        return child

    def release(self, child: subprocess.Popen[str]) -> None:
        """End what `hold` started."""
        child.communicate("\n", timeout=20)

    # -- looking at it -----------------------------------------------------------------------------

    @property
    def name(self) -> str:
        import hashlib

        digest = hashlib.sha256(str(self.static_dir).encode()).hexdigest()
        return f"rootless-netns-{digest[:20]}"

    @property
    def directory(self) -> Path:
        return self.runtime / "rootlessnet" / self.name

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.run("status", "--json").stdout)
        return document

    def log(self) -> str:
        try:
            return (self.directory / "log").read_text()
        except OSError:
            return ""

    def pids(self) -> dict[str, int]:
        """The pids of supervisor, holder and driver."""
        document = self.status()
        return {name: document[name]["pid"] for name in ("supervisor", "holder", "driver")}

    # -- the end -----------------------------------------------------------------------------------

    def wait_until_down(self, seconds: float = 10) -> None:
        """Until nothing of the instance is left but its lock."""
        wait_for("the state directory is removed", lambda: not self.directory.exists(), seconds)

    def end(self) -> None:
        for child in self.children:
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)
            child.communicate()


def failing(net: Net, environment: dict[str, str], *options: str) -> list[str]:
    """The error lines of an enter that has to fail with 125 and leave nothing."""
    done = net.run("enter", *options, "true", env=environment, check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert not net.directory.exists()
    net.enter("true")  # the next good run works
    return done.stderr.splitlines()


def kill(pid: int) -> None:
    """kill -9, and wait until it is gone or a zombie."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        import select

        assert select.select([pidfd], [], [], 10)[0], f"{pid} does not die"
    finally:
        os.close(pidfd)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
