"""Network devices to play with: a host, a container, and the CNI plugins that go between them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PLUGIN = str(Path(sys.executable).with_name("rootlessnet-host-device"))
REFERENCE = "/usr/lib/cni/host-device"
CNI_PATH = "/usr/lib/cni"
DEVICE = "rndev0"
MAC = "02:00:00:00:00:01"
# Whatever a test makes in the machine's own namespace has this at the beginning of its name.
PREFIX = "rn"
IFNAME = "eth0"
CONTAINER = "c1"


class Namespace:
    """A process that keeps namespaces in being, and commands run in them."""

    def __init__(self, command: Sequence[str], flags: Sequence[str], prefix: str = "") -> None:
        self._prefix = prefix
        self._holder = subprocess.Popen(
            [*command, "sh", "-c", "echo ready; exec sleep infinity"],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"
        self.enter = ["nsenter", "-t", str(self._holder.pid), *flags, "--"]
        self.path = f"/proc/{self._holder.pid}/ns/net"

    def end(self) -> None:
        """Let the namespaces go."""
        self._holder.kill()
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()

    def run(
        self, *argv: str, check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there."""
        options.setdefault("stdin", None if "input" in options else subprocess.DEVNULL)
        if "input" in options:
            del options["stdin"]
        done = subprocess.run(
            [*self.enter, *argv], capture_output=True, text=True, timeout=30, check=False, **options
        )
        assert not check or done.returncode == 0, f"{argv}: {done.stderr}{done.stdout}"
        return done

    def ip(self, *lines: str) -> None:
        """Run ip with each line as its arguments."""
        self.run("ip", "-batch", "-", input="".join(f"{line}\n" for line in lines))

    def links(self) -> dict[str, dict[str, Any]]:
        """Every link that is the test's, so never lo."""
        found = {}
        # `addr show` leaves the alias out.
        output = json.loads(self.run("ip", "-j", "link", "show").stdout)
        aliases = {link["ifname"]: link.get("ifalias", "") for link in output}
        for link in json.loads(self.run("ip", "-j", "addr", "show").stdout):
            name = link["ifname"]
            if name == "lo" or not name.startswith(self._prefix):
                continue
            found[name] = {
                "up": "UP" in link["flags"],
                "mac": link.get("address"),
                "mtu": link["mtu"],
                "alias": aliases.get(name, ""),
                "master": link.get("master", ""),
                "addresses": sorted(
                    f"{address['local']}/{address['prefixlen']}"
                    for address in link["addr_info"]
                    if not address["local"].startswith("fe80:")
                ),
            }
        return found

    def routes(self) -> list[str]:
        """The routes of both families, but those for link-local addresses, as ip prints them."""
        lines = []
        for family in ("-4", "-6"):
            output = self.run("ip", family, "route", "show").stdout
            lines += [" ".join(line.split()) for line in output.splitlines()]
        return sorted(line for line in lines if "fe80::/64" not in line)


class Answer:
    """What a plugin said."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.status = done.returncode
        self.text = done.stdout
        self.stderr = done.stderr
        self.document: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}

    @property
    def error(self) -> tuple[int, str]:
        """Code and message of a failure."""
        return self.document.get("code", 0), self.document.get("msg", "")


class World:
    """A host with a device on it, and a container.

    As root the host is this machine's own network namespace, else one of a user namespace of ours.
    """

    def __init__(self, directory: Path, *, as_root: bool) -> None:
        self.directory = directory
        self._as_root = as_root
        self._others: list[Namespace] = []
        if as_root:
            self.host = Namespace(["unshare", "-m"], ["-m"], PREFIX)
        else:
            self.host = Namespace(
                ["unshare", "-Urnm"], ["-U", "--preserve-credentials", "-n", "-m"]
            )
        self.container = self.make_container()

    def make_container(self) -> Namespace:
        """Another network namespace that the host's owner owns."""
        flags = ["-n"] if self._as_root else ["-U", "--preserve-credentials", "-n"]
        made = Namespace([*self.host.enter, "unshare", "-n"], flags)
        self._others.append(made)
        return made

    def end(self) -> None:
        """Take everything away."""
        if self._as_root:
            for name in self.host.links():
                self.host.run("ip", "link", "del", name, check=False)
        for other in self._others:
            other.end()
        self.host.end()

    def add_device(self, name: str = DEVICE, mac: str = MAC) -> None:
        """Make a device on the host."""
        self.host.ip(f"link add {name} address {mac} type ifb")

    def call(
        self,
        command: str,
        config: dict[str, Any] | str | None = None,
        *,
        plugin: str = PLUGIN,
        crash_at: str = "",
        **environment: str | None,
    ) -> Answer:
        """Call a plugin; environment variables of None are left out."""
        if not isinstance(config, str):
            config = json.dumps(
                {"cniVersion": "1.0.0", "name": "test", "type": "host-device", **(config or {})}
            )
        variables = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": CONTAINER,
            "CNI_NETNS": self.container.path,
            "CNI_IFNAME": IFNAME,
            "CNI_PATH": f"{self.directory}:{CNI_PATH}",
            **environment,
        }
        inherited = {key: value for key, value in os.environ.items() if "CNI_" not in key}
        if crash_at:
            inherited["ROOTLESSNET_CRASH_AT"] = crash_at
        wanted = {key: value for key, value in variables.items() if value is not None}
        done = self.host.run(plugin, check=False, input=config, env={**inherited, **wanted})
        if crash_at:
            assert done.returncode == -9, f"not killed at {crash_at}: {done.stdout}{done.stderr}"
            done.stdout = ""
        return Answer(done)

    def device(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `rootlessnet device ...` on the host."""
        command = [sys.executable, "-m", "rootlessnet", "device", *arguments]
        return self.host.run(*command, check=False, **options)

    def script(self, text: str) -> None:
        """Run a shell script on the host, whose mounts are its own."""
        self.host.run("sh", "-euc", text)

    def add_plugin(self, name: str, script: str) -> Path:
        """Put a plugin made of a shell script on CNI_PATH; returns the list of its commands."""
        log = self.directory / f"{name}.log"
        path = self.directory / name
        text = f'#!/bin/sh\necho "$CNI_COMMAND" >> {shlex.quote(str(log))}\n{script}\n'
        path.write_text(text)
        path.chmod(0o755)
        log.touch()
        return log

    def leases(self) -> list[str]:
        """The addresses that host-local has given away."""
        store = self.directory / "ipam" / "test"
        names = os.listdir(store) if store.exists() else []
        return sorted(name for name in names if name[0].isdigit())

    def host_local(self) -> dict[str, Any]:
        """A configuration of the IPAM plugin host-local."""
        return {
            "type": "host-local",
            "dataDir": str(self.directory / "ipam"),
            "ranges": [[{"subnet": "10.99.0.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
