"""What scripts/try shows: the network outside and inside, and a page fetched through slirp4netns.

    show.py DIR       the whole show; DIR is a temporary directory of the caller's
    show.py facts     what the network looks like from here, as JSON
    show.py fetch URL the page

The page comes from a web server in a network namespace of its own. A namespace that an ordinary
user makes cannot be reached from the host, so it brings one thing along: a socket that was bound
to the host's loopback before. slirp4netns, which lives in the host's namespace, connects to that.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.server
import json
import os
import pwd
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

PYTHON = [sys.executable, "-IB", __file__]
PROGRAM = Path(sys.executable).with_name("rootlessnet")
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
WIDTHS = (20, 38, 38)


class Failed(Exception):
    """The show is over."""


# --- what is looked at, outside and inside -------------------------------------------------------


def ip(*arguments: str) -> list[dict[str, Any]]:
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    command = ["ip", "-json", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, env={"PATH": path}, check=False)
    return json.loads(done.stdout or "[]")


def facts() -> dict[str, list[str]]:
    addresses = [
        f"{link['ifname']}  {address['local']}/{address['prefixlen']}"
        for link in ip("address")
        for address in link.get("addr_info", [])
        if address["scope"] != "link"
    ]
    routes = [
        f"via {route['gateway']} dev {route['dev']}"
        for family in ("-4", "-6")
        for route in ip(family, "route", "show", "default")
        if "gateway" in route
    ]
    try:
        resolv = Path("/etc/resolv.conf").read_text().splitlines()
    except OSError as e:
        resolv = [f"({e.strerror})"]
    uid = os.getuid()
    return {
        "user": [f"{pwd.getpwuid(uid).pw_name}, uid {uid}"],
        "network namespace": [os.readlink("/proc/self/ns/net")],
        "addresses": addresses,
        "default route": routes,
        "/etc/resolv.conf": [line for line in resolv if line.strip() and line[0] not in "#;"],
    }


def fetch(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10) as answer:
            return answer.read().decode().strip()
    except urllib.error.URLError as e:
        reason = getattr(e.reason, "strerror", None) or str(e.reason)
        return f"({reason})"


# --- the web server ------------------------------------------------------------------------------


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        host, port = self.client_address
        here = os.readlink("/proc/self/ns/net")
        body = f"Hello, {host}:{port}! This is {here}.\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def web_server() -> Iterator[int]:
    """A server in a network namespace of its own; the port of the host's loopback it listens on."""
    server = http.server.HTTPServer(("127.0.0.1", 0), Page)
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            libc = ctypes.CDLL(None)
            libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
            if libc.unshare(CLONE_NEWNET | (CLONE_NEWUSER if os.getuid() else 0)) == 0:
                server.serve_forever()
        finally:
            os._exit(1)
    server.socket.close()
    try:
        yield server.server_port
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# --- the instance --------------------------------------------------------------------------------


class Net:
    """An instance of its own, which no other program of the user's will meet."""

    def __init__(self, directory: Path) -> None:
        self.env = {**os.environ, "ROOTLESSNET_STATIC_DIR": str(directory / "static")}
        if "XDG_RUNTIME_DIR" not in self.env and not is_ours(f"/run/user/{os.getuid()}"):
            # As in a container, or under su: a session would have one.
            (directory / "run").mkdir(mode=0o700)
            self.env["XDG_RUNTIME_DIR"] = str(directory / "run")

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [PROGRAM, *arguments], env=self.env, stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode != 0:
            raise Failed(f"rootlessnet {arguments[0]} failed with status {done.returncode}")
        return done.stdout

    def enter(self, *command: str) -> str:
        return self.run("enter", "--", *command)

    @contextlib.contextmanager
    def held(self) -> Iterator[float]:
        """Keep it running; how many milliseconds it took to get in."""
        options = ("-o", "allow_host_loopback=true")
        began = time.perf_counter()
        with subprocess.Popen(
            [PROGRAM, "enter", *options, "--", "sh", "-c", "echo in; read x"],
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as first:
            assert first.stdin is not None and first.stdout is not None
            if first.stdout.readline() != b"in\n":
                raise Failed("rootlessnet enter failed")
            try:
                yield (time.perf_counter() - began) * 1000
            finally:
                first.stdin.close()

    def wait_until_down(self) -> float:
        """Milliseconds until it has cleaned up after itself."""
        began = time.perf_counter()
        while json.loads(self.run("status", "--json"))["state"] != "down":
            if time.perf_counter() - began > 10:
                raise Failed("the instance does not end")
        return (time.perf_counter() - began) * 1000

    def forget(self, name: str) -> None:
        """Remove the lock, the one file that an instance leaves."""
        base = Path(self.env.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}"), "rootlessnet")
        (base / f"{name}.lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            base.rmdir()


def is_ours(directory: str) -> bool:
    try:
        return os.stat(directory).st_uid == os.getuid()
    except OSError:
        return False


def processes_in(netns: str) -> list[int]:
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{name}/ns/net") == netns:
                found.append(int(name))
    return found


# --- the show ------------------------------------------------------------------------------------


def columns(*cells: str) -> None:
    print("".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)).rstrip())


def side_by_side(outside: dict[str, list[str]], inside: dict[str, list[str]]) -> None:
    columns("", "outside", "inside")
    for label in outside:
        left, right = shorten(outside[label]), shorten(inside[label])
        for number in range(max(len(left), len(right), 1)):
            cells = (lines[number] if number < len(lines) else "" for lines in (left, right))
            columns("" if number else label, *cells)


def shorten(lines: list[str], most: int = 5) -> list[str]:
    lines = lines or ["(none)"]
    return (
        lines if len(lines) <= most else [*lines[: most - 1], f"... {len(lines) - most + 1} more"]
    )


def show(directory: Path) -> None:
    net = Net(directory)
    version = net.run("--version").strip()
    user = pwd.getpwuid(os.getuid()).pw_name
    print(f"{version}, run by {user}. The same command twice; inside is")
    print("    rootlessnet enter -- COMMAND\n")
    outside = facts()
    with web_server() as port, net.held() as first:
        began = time.perf_counter()
        net.enter("true")
        second = (time.perf_counter() - began) * 1000
        inside = json.loads(net.enter(*PYTHON, "facts"))
        side_by_side(outside, inside)
        status = json.loads(net.run("status", "--json"))
        driver = status["driver"]
        direct = f"http://127.0.0.1:{port}/"
        through = f"http://{driver['gateway']}:{port}/"
        pages = (
            ("outside", direct, fetch(direct)),
            ("inside", direct, net.enter(*PYTHON, "fetch", direct).strip()),
            ("inside", through, net.enter(*PYTHON, "fetch", through).strip()),
        )
        print("\nA web page, from a server in a third namespace, on the loopback of the host:")
        for where, url, page in pages:
            print(f"  {where:<9}{url:<26}{page}")
        print(
            f"Inside has a loopback of its own; {driver['gateway']} is the host as slirp4netns "
            f"(pid {driver['pid']}) shows it."
        )
    gone = net.wait_until_down()
    net.forget(status["name"])
    left = processes_in(inside["network namespace"][0])
    if left:
        raise Failed(f"processes are left in the namespace: {left}")
    print(
        f"\nThe first command made the namespace and was in after {first:.0f} ms, the next joined "
        f"in {second:.0f} ms.\n"
        f"{gone:.0f} ms after the last one everything was gone: processes, namespaces, files."
    )
    if not pages[2][2].startswith("Hello"):
        raise Failed("the page did not come through slirp4netns")


def main() -> int:
    if sys.argv[1] == "facts":
        print(json.dumps(facts()))
    elif sys.argv[1] == "fetch":
        print(fetch(sys.argv[2]))
    else:
        try:
            show(Path(sys.argv[1]))
        except Failed as e:
            print(f"scripts/try: {e}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
