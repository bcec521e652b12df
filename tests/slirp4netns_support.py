"""A namespace to connect, and rootlessnet-slirp4netns as podman and the like start it."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
from pathlib import Path
from typing import Any

from support import PROGRAM, RUNTIME, is_alive, wait_for

WRAPPER = str(Path(PROGRAM).with_name("rootlessnet-slirp4netns"))
REAL = "/usr/bin/slirp4netns"
USUAL = ["--disable-host-loopback", "--mtu=4000", "--enable-sandbox", "--enable-seccomp"]


class Namespace:
    """A network namespace in a user namespace of its own, kept by one process."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            ["unshare", "-Urn", "sh", "-c", "echo in; exec sleep 1000"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None and self.process.stdout.readline() == "in\n"
        self.pid = self.process.pid

    def run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(
            ["nsenter", "-t", str(self.pid), "-U", "-n", "--preserve-credentials", *command],
            text=True, capture_output=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def interface(self, name: str = "tap0") -> dict[str, Any]:
        """What identifies the interface: number, hardware address, MTU, addresses."""
        (found,) = json.loads(self.run("ip", "-json", "address", "show", name))
        return {
            "number": found["ifindex"],
            "mac": found["address"],
            "mtu": found["mtu"],
            "addresses": sorted(one["local"] for one in found["addr_info"]),
        }

    def interfaces(self) -> list[str]:
        return [one["ifname"] for one in json.loads(self.run("ip", "-json", "link"))]

    def reaches_internet(self) -> bool:
        return "internet" in self.run(
            "curl", "-sS", "-m", "5", "http://203.0.113.1/", check=False
        )  # fmt: skip

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Wrapped:
    """One rootlessnet-slirp4netns with ready and exit pipe."""

    def __init__(self, *arguments: str, log: Path, program: str = WRAPPER, **options: Any) -> None:
        self.ready, ready = os.pipe()
        exit_read, self.exit = os.pipe()
        self.log = log
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                [program, "-r", str(ready), "-e", str(exit_read), *arguments],
                pass_fds=[ready, exit_read, *options.pop("pass_fds", ())],
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, **options,
            )  # fmt: skip
        os.close(ready)
        os.close(exit_read)
        self.pid = self.process.pid
        self._open = [self.ready, self.exit]

    def wait_until_ready(self, seconds: float = 20) -> bytes:
        """All that comes through the ready pipe until it is closed."""
        data = b""
        while select.select([self.ready], [], [], seconds)[0]:
            chunk = os.read(self.ready, 16)
            if not chunk:
                return data
            data += chunk
        raise AssertionError(f"not ready within {seconds} s: {self.text()}")

    def close(self, fd: int) -> None:
        os.close(fd)
        self._open.remove(fd)

    def text(self) -> str:
        return self.log.read_text()

    def real(self) -> int:
        """The pid of the real slirp4netns; 0 when there is none just now."""
        return real_of(self.pid)

    def wait_until_restarted(self, before: int) -> int:
        def other() -> int:
            text = self.text()
            pid = self.real()
            return pid if pid and pid != before and f"restarted as {pid}" in text else 0

        pid: int = wait_for(f"another than {before} runs", other, 10)
        return pid

    def end(self) -> None:
        pids = [self.pid, self.real()]
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        for fd in self._open:
            os.close(fd)
        wait_for("nothing of it is left", lambda: not any(map(is_alive, filter(None, pids))))


def real_of(pid: int) -> int:
    """The slirp4netns that is a child of this process, else 0."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    for child in children:
        try:
            if Path(f"/proc/{child}/comm").read_text() == "slirp4netns\n" and is_alive(int(child)):
                return int(child)
        except OSError:
            continue
    return 0


def api(path: Path | str, request: object, *, finish: bool = True) -> dict[str, Any]:
    """What the API socket answers; a string is sent as it is."""
    text = request if isinstance(request, (str, bytes)) else json.dumps(request)
    data = text.encode() if isinstance(text, str) else text
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        client.sendall(data)
        if finish:
            client.shutdown(socket.SHUT_WR)
        reply = b""
        while chunk := client.recv(65536):
            reply += chunk
    document: dict[str, Any] = json.loads(reply)
    return document


def forward(host_port: int, guest_port: int, proto: str = "tcp") -> dict[str, Any]:
    return {
        "execute": "add_hostfwd",
        "arguments": {
            "proto": proto, "host_addr": "127.0.0.1", "host_port": host_port,
            "guest_port": guest_port,
        },
    }  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def private_directories() -> list[Path]:
    return list((RUNTIME / "rootlessnet").glob("slirp4netns-*"))
