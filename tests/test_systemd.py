"""Living with systemd: the scope, user units, socket activation; on a real user manager."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import PROGRAM, RUNTIME, Net, both_drivers, is_alive, kill, own_processes, wait_for

pytestmark = pytest.mark.skipif(
    not os.path.isdir("/run/systemd/system"), reason="systemd does not run this machine"
)

UNITS = Path.home() / ".config/systemd/user"


def systemctl(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(
        ["systemctl", "--user", *arguments], text=True, capture_output=True, check=False
    )
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout.strip()


def cgroup(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text().splitlines()[-1].split(":", 2)[2]


# -- the scope ---


@both_drivers
def test_all_three_are_in_a_scope_under_user_slice(net: Net) -> None:
    net.hold()
    assert net.status()["supervisor"]["scope"] == f"{net.name}.scope"
    for pid in net.pids().values():
        assert cgroup(pid).endswith(f"/user.slice/{net.name}.scope")
    assert systemctl("is-active", f"{net.name}.scope") == "active"


def test_scope_is_gone_with_the_instance(net: Net) -> None:
    net.enter("true")
    net.wait_until_down()
    wait_for(
        "no unit is left",
        lambda: net.name not in systemctl("list-units", "--all", "--plain", "rootless-netns-*"),
    )


@both_drivers
def test_restarted_parts_are_in_the_scope_too(net: Net) -> None:
    net.hold()
    before = net.pids()
    kill(before["driver"])
    wait_for("a new driver", lambda: net.pids()["driver"] not in (None, before["driver"]))
    kill(before["supervisor"])
    net.enter("true")
    assert net.status()["supervisor"]["scope"] == f"{net.name}.scope"
    for pid in net.pids().values():
        assert cgroup(pid).endswith(f"/user.slice/{net.name}.scope")


def test_stopping_the_unit_that_entered_first_leaves_the_network_to_the_second(net: Net) -> None:
    unit = f"first-{os.getpid()}.service"
    systemd_run(net, unit, "enter", "sleep", "1000")
    wait_for("it runs", lambda: net.status()["state"] == "running")
    second = net.hold()
    namespace = os.readlink(f"/proc/{second.pid}/ns/net")
    before = net.pids()
    systemctl("stop", unit)
    assert net.pids() == before
    assert net.inside("readlink", "/proc/self/ns/net").strip() == namespace
    net.release(second)
    net.wait_until_down()


def systemd_run(net: Net, unit: str, *arguments: str) -> None:
    subprocess.run(
        ["systemd-run", "--user", "--quiet", "--collect", f"--unit={unit}",
         f"--setenv=ROOTLESSNET_STATIC_DIR={net.static_dir}", PROGRAM, *arguments],
        check=True,
    )  # fmt: skip


def test_inside_a_user_namespace_the_bus_takes_us_too(net: Net) -> None:
    done = subprocess.run(
        ["unshare", "-Ur", PROGRAM, "enter", PROGRAM, "status", "--json"],
        env=net.environment, text=True, capture_output=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert f'"scope": "{net.name}.scope"' in done.stdout


def test_stopping_the_scope_ends_everything_in_it(net: Net) -> None:
    """As at a logout: systemd sends SIGTERM to all, and after 90 s without success SIGKILL."""
    net.run("up")
    pids = net.pids().values()
    before = set(own_processes())
    subprocess.run(["systemctl", "--user", "stop", f"{net.name}.scope"], check=True, timeout=30)
    assert not any(is_alive(pid) for pid in pids)
    assert not [name for pid, name in own_processes().items() if pid not in before]
    assert net.status()["state"] == "down"


def test_a_holder_that_is_told_to_end_before_its_supervisor_gets_no_successor(net: Net) -> None:
    net.run("up")
    pids = net.pids()
    before = set(own_processes())
    os.kill(pids["holder"], signal.SIGTERM)
    os.kill(pids["supervisor"], signal.SIGTERM)
    wait_for("the supervisor goes", lambda: not is_alive(pids["supervisor"]))
    assert not [name for pid, name in own_processes().items() if pid not in before]
    assert net.status()["state"] == "down"


WARNING = "rootlessnet: warning: not moved into a systemd scope, so the network may end with the "


def test_without_a_bus_there_is_one_warning_and_it_goes_on(net: Net) -> None:
    environment = {"DBUS_SESSION_BUS_ADDRESS": "unix:path=/no/such/bus"}
    done = net.enter("ip", "-br", "address", env=environment)
    assert "10.0.2.100" in done.stdout
    assert done.stderr == f"{WARNING}unit that started it: No such file or directory\n"


@pytest.mark.parametrize("manner", ["hangs", "hangs up", "refuses", "talks nonsense"])
def test_a_bus_that_misbehaves_costs_a_warning(net: Net, tmp_path: Path, manner: str) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "bus"))
    server.listen()
    clients: list[socket.socket] = []

    def serve() -> None:
        try:
            while True:
                client, _ = server.accept()
                clients.append(client)
                client.recv(100)
                if manner == "hangs up":
                    client.close()
                elif manner == "refuses":
                    client.sendall(b"REJECTED ANONYMOUS\r\n")
                elif manner == "talks nonsense":
                    client.sendall(os.urandom(5000) + b"\r\n")
        except OSError:
            pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        environment = {"DBUS_SESSION_BUS_ADDRESS": f"unix:path={tmp_path}/bus"}
        done = net.enter("ip", "-br", "address", env=environment, timeout=20)
        assert "10.0.2.100" in done.stdout
        (line,) = done.stderr.splitlines()
        assert line.startswith(WARNING)
        assert net.enter("true").stderr == ""
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(10)
        for client in clients:
            client.close()


# -- user units ---


@pytest.fixture
def units(net: Net, tmp_path: Path) -> Iterator[str]:
    """The units in place; the name of an instance of rootlessnet@ for the test's static dir."""
    existed = UNITS.exists()
    net.run("install-units")
    systemctl("daemon-reload")
    escaped = subprocess.run(
        ["systemd-escape", "--path", "--template=rootlessnet@.service", str(net.static_dir)],
        check=True, text=True, capture_output=True,
    ).stdout.strip()  # fmt: skip
    yield escaped
    systemctl("stop", escaped, "rootlessnet.service", check=False)
    systemctl("reset-failed", check=False)
    for name in ("rootlessnet.service", "rootlessnet@.service"):
        (UNITS / name).unlink(missing_ok=True)
    if not existed:
        shutil.rmtree(UNITS, ignore_errors=True)
    systemctl("daemon-reload")


def test_install_units_says_what_it_did_and_what_comes_next(net: Net, tmp_path: Path) -> None:
    done = net.run("install-units", "--user-dir", str(tmp_path / "units"))
    assert done.stdout.splitlines() == [
        f"{tmp_path}/units/rootlessnet.service",
        f"{tmp_path}/units/rootlessnet@.service",
        "next: systemctl --user daemon-reload && systemctl --user enable --now rootlessnet",
    ]
    text = (tmp_path / "units/rootlessnet@.service").read_text()
    assert f"ExecStart={PROGRAM} --static-dir %f up --foreground --name %N\n" in text
    verify = subprocess.run(
        ["systemd-analyze", "--user", "verify", str(tmp_path / "units/rootlessnet.service")],
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert (verify.returncode, verify.stderr) == (0, "")


def test_unit_start_stop_restart(net: Net, units: str) -> None:
    systemctl("start", units)
    assert net.status()["state"] == "running", "Type=notify: started means that it is there"
    (lease,) = net.status()["leases"]
    assert (lease["kind"], str(lease["pid"])) == (
        "named", systemctl("show", units, "--property=MainPID", "--value"),
    )  # fmt: skip
    assert "Holding" in systemctl("show", units, "--property=StatusText", "--value")
    child = net.hold()
    namespace = net.status()["netns"]
    systemctl("restart", units)
    assert net.status()["netns"] == namespace, "a user kept it over the restart"
    systemctl("stop", units)
    assert net.status()["state"] == "running"
    net.release(child)
    net.wait_until_down()
    assert systemctl("is-active", units, check=False) == "inactive"


def test_unit_killed_is_restarted_by_systemd(net: Net, units: str) -> None:
    systemctl("start", units)
    child = net.hold()
    namespace = net.status()["netns"]
    first = systemctl("show", units, "--property=MainPID", "--value")
    systemctl("kill", "-s", "KILL", units)

    def restarted() -> bool:
        pid = systemctl("show", units, "--property=MainPID", "--value")
        return pid not in ("0", first) and systemctl("is-active", units, check=False) == "active"

    wait_for("systemd has started it again", restarted)
    assert net.status()["netns"] == namespace
    assert [lease["kind"] for lease in net.status()["leases"]].count("named") == 1
    net.release(child)


def test_everything_in_scope_and_unit_killed(net: Net, units: str) -> None:
    systemctl("start", units)
    systemctl("kill", "-s", "KILL", units, f"{net.name}.scope")
    wait_for(
        "systemd has started it again",
        lambda: (
            systemctl("is-active", units, check=False) == "active"
            and net.status()["state"] == "running"
        ),
        20,
    )
    assert "10.0.2.100" in net.inside("ip", "-br", "address")


@pytest.mark.parametrize("first", ["service", "rootlessnet"])
def test_service_behind_rootlessnet(net: Net, units: str, first: str, tmp_path: Path) -> None:
    name = f"behind-{os.getpid()}-{first}.service"
    unit = UNITS / name
    unit.write_text(
        f"[Unit]\nWants={units.replace(chr(92), chr(92) * 2)}\nAfter={units}\n"
        "[Service]\nExecStart=/bin/false\n"
    )
    drop_in = UNITS / f"{name}.d" / "behind.conf"
    drop_in.parent.mkdir()
    source = Path(__file__).resolve().parent.parent / "systemd/behind-rootlessnet.conf"
    text = source.read_text().replace("@rootlessnet@", PROGRAM)
    assert "ExecStart=\n" in text
    text = text.replace("rootlessnet.service", units).replace(
        " enter --keep-id", f" --static-dir {net.static_dir} enter --keep-id"
    )
    drop_in.write_text(text)
    try:
        systemctl("daemon-reload")
        systemctl("start", name)
        main = int(systemctl("show", name, "--property=MainPID", "--value"))

        def answers() -> bool:
            script = "import urllib.request as u; u.urlopen('http://127.0.0.1:8080')"
            return net.enter("python3", "-c", script, check=False).returncode == 0

        wait_for("the service answers inside", answers)
        assert os.readlink(f"/proc/{main}/ns/net") == f"net:[{net.status()['netns']['inode']}]"
        order = [name, units] if first == "service" else [units, name]
        systemctl("stop", order[0])
        if first == "rootlessnet":
            assert is_alive(main) and net.status()["state"] == "running" and answers()
        systemctl("stop", order[1])
        net.wait_until_down()
    finally:
        systemctl("stop", name, check=False)
        unit.unlink()
        shutil.rmtree(drop_in.parent)
        systemctl("daemon-reload")


# -- socket activation ---

SERVER = (
    "import os, socket; assert os.environ['LISTEN_PID'] == str(os.getpid());"
    "names = os.environ['LISTEN_FDNAMES'].split(':');"
    "n = int(os.environ['LISTEN_FDS']); s = socket.socket(fileno=3 + n - 1);"
    "c, a = s.accept(); c.sendall(f'{n} {names[-1]} {a[0]} {a[1]}'.encode()); c.close()"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_listen_hands_a_host_socket_over(net: Net) -> None:
    port = free_port()
    child = net.start("enter", "--listen", f"127.0.0.1:{port}", "python3", "-c", SERVER)
    reply, address = ask("127.0.0.1", port)
    assert reply == f"1 127.0.0.1_{port} {address[0]} {address[1]}", "with the client's own address"
    assert child.wait(10) == 0


def ask(host: str, port: int) -> tuple[str, tuple[str, int]]:
    def connect() -> socket.socket | None:
        try:
            return socket.create_connection((host, port), timeout=10)
        except ConnectionRefusedError:
            return None

    with wait_for("it listens", connect) as client:
        address = client.getsockname()
        return client.recv(4096).decode(), address


def test_listen_on_both_families(net: Net) -> None:
    port = free_port()
    for host, seen in (("::1", "::1"), ("127.0.0.1", "::ffff:127.0.0.1")):
        child = net.start("enter", "--listen", str(port), "python3", "-c", SERVER)
        reply, address = ask(host, port)
        assert reply == f"1 {port} {seen} {address[1]}"
        assert child.wait(10) == 0
    child = net.start("enter", "--listen", f"[::1]:{port}", "python3", "-c", SERVER)
    reply, address = ask("::1", port)
    assert reply == f"1 [__1]_{port} ::1 {address[1]}"
    assert child.wait(10) == 0


def test_listen_udp(net: Net) -> None:
    port = free_port()
    code = (
        "import socket; s = socket.socket(fileno=3); print('in', flush=True);"
        "d, a = s.recvfrom(9); s.sendto(d[::-1], a)"
    )
    child = net.start("enter", "--listen", f"127.0.0.1:{port}/udp", "python3", "-c", code)
    assert child.stdout is not None and child.stdout.readline() == "in\n"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.sendto(b"abc", ("127.0.0.1", port))
        assert client.recv(9) == b"cba"
    assert child.wait(10) == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("http", "http is not a port"),
        ("0", "0 is not a port"),
        ("::1:80", "an IPv6 address has to be in brackets: [::1]:80"),
        ("80/sctp", "unknown protocol sctp"),
        ("nohost:80", "nohost is not an IP address"),
        ("203.0.113.250:8080", "Cannot assign requested address"),
        ("127.0.0.1:80", "Permission denied"),
    ],
)
def test_listen_that_cannot_be(net: Net, text: str, reason: str) -> None:
    done = net.run("enter", "--listen", text, "true", check=False)
    assert done.returncode == 125
    assert done.stderr.splitlines()[0] == f"rootlessnet: --listen {text}: {reason}"
    assert not net.directory.exists()


def test_sockets_of_systemd_are_passed_on_with_ours(net: Net) -> None:
    name = f"activated-{os.getpid()}"
    port, extra = free_port(), free_port()
    (UNITS).mkdir(parents=True, exist_ok=True)
    (UNITS / f"{name}.socket").write_text(
        f"[Socket]\nListenStream=127.0.0.1:{port}\nFileDescriptorName=web\n"
    )
    server = SERVER.replace("fileno=3 + n - 1", "fileno=3").replace("names[-1]", "names")
    script = UNITS / f"{name}.py"
    script.write_text(server)
    (UNITS / f"{name}.service").write_text(
        f"[Service]\nExecStart={PROGRAM} --static-dir {net.static_dir} enter "
        f"--listen 127.0.0.1:{extra} python3 {script}\n"
    )
    try:
        systemctl("daemon-reload")
        systemctl("start", f"{name}.socket")
        reply, address = ask("127.0.0.1", port)
        assert reply == f"2 ['web', '127.0.0.1_{extra}'] 127.0.0.1 {address[1]}"
    finally:
        systemctl("stop", f"{name}.socket", f"{name}.service", check=False)
        for path in UNITS.glob(f"{name}.*"):
            path.unlink()
        systemctl("daemon-reload")


def test_runtime_dir_is_the_users() -> None:
    assert RUNTIME == Path(f"/run/user/{os.getuid()}")
