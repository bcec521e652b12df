"""Containers without a runtime: namespaces on networks of a home of the test's own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Net, own_processes, wait_for

OUTSIDE = "203.0.113.1"
"""The web server of the testbed's internet."""


class Lab(Net):
    """An instance, and a HOME with podman's networks that belongs to it alone."""

    def __init__(self, base: Path, backend: str = "netavark") -> None:
        super().__init__(base / "static")
        self.backend = backend
        self.has_names = backend == "netavark"
        """Whether containers are known by name; for CNI the plugin dnsname would be needed."""
        self.bridge = "podman1" if backend == "netavark" else "cni-podman1"
        """That of the first network."""
        self.home = base / "home"
        self.home.mkdir()
        conf = base / "containers.conf"
        conf.write_text(f'[network]\nnetwork_backend = "{backend}"\n')
        self.environment.update(HOME=str(self.home), CONTAINERS_CONF=str(conf))

    def network(self, name: str, *options: str) -> None:
        self.run("network", "create", *options, name)

    def setup(self, id: str, *options: str, **more: Any) -> dict[str, Any]:
        """Set a container up, in a new namespace if none is named; its description."""
        how = () if {"--pid", "--netns", "--new"} & set(options) else ("--new",)
        done = self.run("container", "setup", id, *how, *options, "--json", **more)
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def refused(self, *arguments: str) -> str:
        """What a command says that has to fail."""
        done = self.run(*arguments, check=False)
        assert (done.returncode, done.stdout) == (125, ""), (done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stderr

    def inspect(self, id: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.run("container", "inspect", id).stdout)
        return document

    def on(self, id: str, network: str) -> dict[str, Any]:
        """What a container has on a network."""
        found: dict[str, Any] = self.inspect(id)["Networks"][network]
        return found

    def ls(self) -> list[str]:
        return self.run("container", "ls", "--quiet").stdout.split()

    def inside_of(self, id: str, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in the network namespace of a container."""
        path = self.inspect(id)["SandboxKey"]
        return self.enter("nsenter", f"--net={path}", *command, **options)

    def answers(self, id: str, address: str) -> bool:
        """Whether a container gets an answer to a ping."""
        command = ("busybox", "ping", "-c1", "-W1", address)
        return self.inside_of(id, *command, check=False).returncode == 0

    def lookup(self, id: str, name: str, server: str) -> list[str]:
        """The addresses that a server tells a container for a name."""
        done = self.inside_of(id, "busybox", "nslookup", name, server, check=False)
        answer = done.stdout.partition("\n\n")[2]
        return [line.split()[-1] for line in answer.splitlines() if line.startswith("Address")]

    def resolves(self, id: str, name: str, server: str, addresses: list[str]) -> None:
        """Assert what a container is told for a name, where there are names."""
        if self.has_names:
            assert sorted(self.lookup(id, name, server)) == addresses

    def fetch(self, id: str, url: str) -> str:
        done = self.inside_of(id, "curl", "--silent", "--max-time", "2", url, check=False)
        return done.stdout.strip()

    def used_addresses(self) -> list[str]:
        """Every address that is in use: by the database, or by the plugin host-local's files."""
        import ipaddress
        import sqlite3

        if self.backend == "cni":
            files = self.directory.glob("root/var/lib/cni/networks/*/*")
            return sorted(each.name for each in files if each.name[0] not in "l.")
        with sqlite3.connect(self.directory / "addresses.db") as database:
            rows = database.execute("SELECT ip FROM ips").fetchall()
        database.close()
        return sorted(str(ipaddress.ip_address(raw)) for (raw,) in rows)

    def interfaces(self) -> set[str]:
        """The interfaces in the instance, but for those it has always."""
        out = self.inside("ip", "-o", "link")
        names = {line.split(": ")[1].partition("@")[0] for line in out.splitlines()}
        return names - {"lo", "tap0"}

    def clean(self) -> None:
        """End everything; afterwards nothing of it may be left but the lock."""
        self.run("down", "--force", check=False)
        self.end()
        self.wait_until_down(20)
        self.directory.with_name(f"{self.name}.lock").unlink(missing_ok=True)
        hashed = self.name.rpartition("-")[2][:12]
        pins = self.runtime / "netns"
        left = [each.name for each in pins.glob(f"*-{hashed}")] if pins.exists() else []
        assert not left, f"left in {pins}: {left}"


@contextlib.contextmanager
def lab_of(base: Path, backend: str = "netavark") -> Iterator[Lab]:
    """An instance with networks of its own, of which nothing is left."""
    before = set(own_processes())
    one = Lab(base, backend)
    yield one
    one.clean()

    def leaked() -> list[str]:
        ours = ("sleep infinity", "slirp4netns", "/usr/bin/slirp4netns", "rootlessnet", "/usr/lib")
        new = {pid: name for pid, name in own_processes().items() if pid not in before}
        return [name for name in new.values() if name.startswith(ours)]

    wait_for("no process of ours is left", lambda: not leaked(), 10)


BACKENDS = ("netavark", "cni")
NETAVARK = pytest.mark.parametrize("lab", ["netavark"], indirect=True)
"""For a test of what only netavark has, or says."""


@pytest.fixture(params=BACKENDS)
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    """The same, by each backend."""
    with lab_of(tmp_path, request.param) as one:
        yield one


def holder_of_a_namespace(lab: Lab, *words: str) -> subprocess.Popen[str]:
    """A process with a network namespace of its own in the instance."""
    script = "echo in; exec sleep 1000"
    child = lab.start("enter", *words, "unshare", "--net", "sh", "-c", script)
    assert child.stdout is not None
    assert child.stdout.readline() == "in\n"
    return child


def is_empty(path: Path) -> bool:
    return not path.exists() or not os.listdir(path)
