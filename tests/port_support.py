"""What the tests of published ports share: servers inside, clients outside."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
from pathlib import Path
from typing import Any

from support import Net, own_processes, wait_for

from rootlessnet.instance import paths

SERVER = ["/usr/bin/python3", "-I", str(Path(__file__).with_name("port_server.py"))]
MACHINE, MACHINE6 = "203.0.113.2", "2001:db8::2"
INTERNET, INTERNET6 = "203.0.113.1", "2001:db8::1"
HERE = ("127.0.0.1", "::1", MACHINE, MACHINE6)
"""Where a client of this machine finds a published port."""


def instance(net: Net) -> paths.Instance:
    return paths.Instance(str(net.runtime / "rootlessnet"), str(net.static_dir))


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    """Free on all addresses; whoever asks next gets another one."""
    with socket.socket(socket.AF_INET6, kind) as s:
        s.bind(("::", 0))
        number: int = s.getsockname()[1]
        return number


def serve(
    net: Net, *options: str, port: int = 80, address: str = "::", env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """A server inside that is up, with these options of enter."""
    child = net.start("enter", *options, "--", *SERVER, str(port), address, env=env or {})
    assert child.stdout is not None
    line = child.stdout.readline()
    assert line == "up\n", (line, child.communicate(timeout=10), net.log())
    return child


def ask(host: str, port: int, data: bytes = b"hello") -> str:
    """Who the server says that we are, checked against who we are: "ADDRESS PORT SERVER"."""
    with connect(host, port) as s:
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)
        reply = b""
        while chunk := s.recv(65536):
            reply += chunk
        line, _, echo = reply.partition(b"\n")
        assert echo == data
        return line.decode()


def who(host: str, port: int) -> tuple[str, str]:
    """(address and port that the server sees, our own), by TCP."""
    with connect(host, port) as s:
        s.sendall(b"x")
        seen = s.makefile().readline().split()
        own = s.getsockname()
        return f"{seen[0]} {seen[1]}", f"{own[0]} {own[1]}"


def who_udp(host: str, port: int, count: int = 1) -> tuple[str, str]:
    """The same by UDP; the answer comes from where we asked, or it would not be received."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.settimeout(5)
        s.connect((host, port))
        for number in range(count):
            s.send(f"datagram{number}".encode())
            seen = s.recv(65536).decode().split()
            assert seen[2] == f"datagram{number}"
        own = s.getsockname()
        return f"{seen[0]} {seen[1]}", f"{own[0]} {own[1]}"


def who_far(proto: str, host: str, port: int) -> tuple[str, str]:
    """The same of a client on another machine."""
    number = random.randrange(20000, 30000)
    there = f"[{host}]" if ":" in host else host
    url = f"http://{INTERNET}/{proto}?to={there}:{port}&say=x&from={number}"
    command = ["curl", "--silent", "--show-error", "--fail", "--globoff", "--max-time", "6", url]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seen = done.stdout.split()
    assert seen[-1] == "x"
    return f"{seen[0]} {seen[1]}", f"{INTERNET6 if ':' in host else INTERNET} {number}"


def connect(host: str, port: int, seconds: float = 10) -> socket.socket:
    """A connection; while nothing listens inside it is refused, so it is tried for a moment."""

    def attempt() -> socket.socket | None:
        try:
            return socket.create_connection((host, port), seconds)
        except ConnectionRefusedError:
            return None

    found: socket.socket = wait_for(f"{host} port {port} listens", attempt, 5)
    return found


def is_refused(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 5).close()
    except ConnectionRefusedError:
        return True
    return False


def listing(net: Net) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(net.run("port", "ls", "--json").stdout)
    return found


def add(net: Net, *rules: str) -> list[int]:
    """Publish by `port add`; the ports of the host."""
    made = json.loads(net.run("port", "add", "--json", *rules).stdout)
    return [entry["host_port"] for entry in made]


def processes(net: Net) -> list[int]:
    """The forwarder first, then its children."""
    found = [
        pid
        for pid, line in own_processes().items()
        if line.startswith(f"rootlessnet: ports of {net.name}"[: len(line.rstrip())])
        and line.startswith("rootlessnet: ports of")
        and str(net.name) in line
    ]
    try:
        first = int((net.directory / "ports/forwarder").read_text().split()[0])
    except FileNotFoundError:
        return found
    return sorted(found, key=lambda pid: pid != first)


def helper(net: Net) -> int:
    """The process of the forwarder that makes the sockets inside."""
    own = os.readlink("/proc/self/ns/user")
    (found,) = [pid for pid in processes(net) if os.readlink(f"/proc/{pid}/ns/user") != own]
    return found


def is_reset(s: socket.socket) -> bool:
    """Whether the next word is answered by a reset."""
    try:
        s.sendall(b"more")
    except (BrokenPipeError, ConnectionResetError):
        return True
    return False


def cpu_ticks(*pids: int) -> int:
    """What the processes have had of the processors, in units of SC_CLK_TCK."""
    return sum(
        int(word)
        for pid in pids
        for word in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    )


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def entries(net: Net) -> list[dict[str, object]]:
    """What slirp4netns says that it forwards."""
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(str(net.directory / "slirp4netns.sock"))
        s.sendall(b'{"execute": "list_hostfwd"}')
        s.shutdown(socket.SHUT_WR)
        reply = b""
        while chunk := s.recv(65536):
            reply += chunk
    found: list[dict[str, object]] = json.loads(reply)["entries"]
    return found


def talk(s: socket.socket) -> None:
    """The connection is alive in both directions."""
    s.sendall(b"are you there?\n")
    reply = b""
    while not reply.endswith(b"are you there?\n"):
        chunk = s.recv(4096)
        assert chunk
        reply += chunk


def works_again(port: int) -> None:
    def attempt() -> bool:
        try:
            return bool(ask("127.0.0.1", port))
        except (OSError, AssertionError):
            return False

    wait_for("the port works again", attempt)
