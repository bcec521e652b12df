"""The machine that the other tests rely on is what scripts/testbed promises."""

from __future__ import annotations

import ctypes
import fcntl
import grp
import json
import os
import pwd
import socket
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest

INTERNET = "203.0.113.1"
MACHINE = "203.0.113.2"
INTERNET6 = "2001:db8::1"


def run(*argv: str) -> str:
    return subprocess.run(
        argv, check=True, stdout=subprocess.PIPE, text=True, timeout=20
    ).stdout.strip()


def test_the_machine_runs_systemd_without_failures() -> None:
    assert run("systemctl", "is-system-running") == "running"


def test_the_user_manager_and_its_dbus_run() -> None:
    assert run("systemctl", "--user", "is-system-running") == "running"
    assert os.environ["XDG_RUNTIME_DIR"] == f"/run/user/{os.getuid()}"
    assert run("systemd-run", "--user", "--wait", "--pipe", "--quiet", "echo", "ran") == "ran"


def test_we_are_in_a_login_session_of_our_own() -> None:
    cgroup = run("sed", "-n", "s/^0:://p", "/proc/self/cgroup")
    assert cgroup.startswith(f"/user.slice/user-{os.getuid()}.slice/session-")
    session = run("loginctl", "show-session", os.environ["XDG_SESSION_ID"], "--property=Class")
    assert session == "Class=user"


def test_the_user_is_an_ordinary_one_with_subordinate_ids() -> None:
    user = pwd.getpwuid(os.getuid())
    assert user.pw_uid >= 1000
    assert os.environ["HOME"] == user.pw_dir
    assert Path.cwd() == Path("/opt/rootlessnet-src")
    for file in ("/etc/subuid", "/etc/subgid"):
        counts = [
            int(count)
            for name, _, count in (line.split(":") for line in Path(file).read_text().split())
            if name == user.pw_name
        ]
        assert counts == [65536], file


def test_there_is_a_neighbour() -> None:
    assert pwd.getpwnam("mallory").pw_uid not in (0, os.getuid())
    assert grp.getgrnam("mallory").gr_gid != os.getgid()


@pytest.mark.parametrize("host", [INTERNET, f"[{INTERNET6}]", "web.internet.test"])
def test_the_internet_answers(host: str) -> None:
    assert run("curl", "--silent", "--fail", f"http://{host}/") == "the internet"


def test_the_internet_sees_our_address() -> None:
    assert run("curl", "--silent", f"http://{INTERNET}/address") == MACHINE
    assert run("curl", "--silent", f"http://[{INTERNET6}]/address") == "2001:db8::2"


def test_the_internet_can_ask_us() -> None:
    with socket.create_server((MACHINE, 0)) as server:
        url = f"http://{MACHINE}:{server.getsockname()[1]}/"
        command = ["curl", "--silent", f"http://{INTERNET}/get?url={url}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as curl:
            server.settimeout(5)
            connection, (peer, _) = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nhere")
            assert peer == INTERNET
            assert curl.communicate(timeout=5)[0] == "here"


def test_the_internet_echoes_datagrams() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(5)
        s.sendto(b"hello", (INTERNET, 7))
        assert s.recv(100) == f"{MACHINE} {s.getsockname()[1]} hello".encode()


def test_names_are_resolved_by_the_internet_alone() -> None:
    resolv_conf = Path("/etc/resolv.conf")
    assert not resolv_conf.is_symlink()
    assert resolv_conf.read_text() == f"nameserver {INTERNET}\n"
    found = {info[4][0] for info in socket.getaddrinfo("web.internet.test", 80)}
    assert found == {INTERNET, INTERNET6}
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("elsewhere.example", 80)


def test_there_is_no_way_out() -> None:
    links = {link["ifname"]: link for link in json.loads(run("ip", "-json", "-details", "link"))}
    # Some kernels put fallback tunnels into every namespace; they are down and lead nowhere.
    up = {name for name, link in links.items() if "UP" in link["flags"]}
    assert up == {"lo", "eth0"}
    assert links["eth0"]["linkinfo"]["info_kind"] == "veth"
    for family, gateway in (("-4", INTERNET), ("-6", INTERNET6)):
        routes = json.loads(run("ip", family, "-json", "route"))
        assert [r["gateway"] for r in routes if "gateway" in r] == [gateway]
    with pytest.raises(OSError, match=r"unreachable|No route"):
        socket.create_connection(("198.51.100.1", 80), timeout=5)


def test_everybody_may_use_tun() -> None:
    device = Path("/dev/net/tun").stat()
    assert stat.S_ISCHR(device.st_mode)
    assert stat.S_IMODE(device.st_mode) == 0o666

    # For real, in a user and network namespace of its own.
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if ctypes.CDLL(None).unshare(0x10000000 | 0x40000000) == 0:
                with open("/dev/net/tun", "r+b", buffering=0) as tun:
                    fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"tap0", 2 | 0x1000))
                status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def test_the_project_is_installed_for_everybody() -> None:
    command = Path("/usr/local/bin/rootlessnet")
    assert command.resolve() == Path("/opt/rootlessnet/bin/rootlessnet")
    assert os.access(command, os.X_OK)
    assert Path(sys.prefix) == Path("/opt/rootlessnet")
    package = run(
        "/opt/rootlessnet/bin/python", "-I", "-c", "import rootlessnet as r; print(*r.__path__)"
    )
    assert package == "/opt/rootlessnet/lib/python3.11/site-packages/rootlessnet"
    assert list(Path(package, "__pycache__").glob("*.pyc"))


@pytest.mark.root
def test_root_is_the_real_one() -> None:
    assert os.getuid() == 0
    assert Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
