"""Published ports as a user has them: enter -p, up -p, port add, rm and ls."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from port_support import (
    MACHINE,
    add,
    ask,
    connect,
    free_port,
    is_refused,
    listing,
    processes,
    serve,
    who,
)
from support import PROGRAM, Net, kill, wait_for


def test_a_port_leads_inside_as_long_as_the_command_runs(net: Net) -> None:
    port = free_port()
    child = serve(net, "-p", f"{port}:80")
    assert ask("127.0.0.1", port).split()[2] == "10.0.2.100"
    page = subprocess.run(
        ["curl", "--silent", "--fail", f"http://localhost:{port}/"],
        check=True, capture_output=True, text=True, timeout=10,
    )  # fmt: skip
    assert "127.0.0.1" in page.stdout or "::1" in page.stdout
    net.hold()
    kill(child.pid)
    wait_for("the port is free again", lambda: not listing(net))
    assert is_refused("127.0.0.1", port)
    socket.create_server(("0.0.0.0", port)).close()


def test_a_child_that_outlives_the_command_keeps_its_ports(net: Net) -> None:
    port = free_port()
    from port_support import SERVER

    command = " ".join(SERVER)
    child = net.start("enter", "-p", f"{port}:80", "--", "sh", "-c", f"{command} 80 & echo $!")
    assert child.stdout is not None
    words = {child.stdout.readline(), child.stdout.readline()}
    assert child.wait(10) == 0
    pid = next(int(word) for word in words if word != "up\n")
    assert ask("127.0.0.1", port)
    kill(pid)
    net.wait_until_down()
    assert is_refused("127.0.0.1", port)


def test_what_is_published_is_shown(net: Net) -> None:
    port, other = free_port(), free_port(socket.SOCK_DGRAM)
    net.hold("-p", f"127.0.0.1:{port}:80", "-p", f"{other}:53/udp")
    expected = [
        {"proto": "tcp", "host_ip": "127.0.0.1", "host_port": port, "port": 80,
         "target": "10.0.2.100", "source_ip": "preserve", "source_ip_lost": {}, "connections": 0},
        {"proto": "udp", "host_ip": "", "host_port": other, "port": 53, "target": "10.0.2.100",
         "source_ip": "preserve", "source_ip_lost": {}},
    ]  # fmt: skip
    assert listing(net) == expected
    assert net.status()["ports"] == expected
    head, first, second = net.run("port", "ls").stdout.splitlines()
    assert head.split() == ["PROTO", "HOST", "PORT", "TARGET", "OWNER"]
    assert first.split()[:4] == ["tcp", f"127.0.0.1:{port}", "80", "10.0.2.100"]
    assert second.split()[:4] == ["udp", f"*:{other}", "53", "10.0.2.100"]
    # From inside as well.
    assert json.loads(net.inside(PROGRAM, "port", "ls", "--json")) == expected


def test_nothing_runs_for_ports_that_nobody_wants(net: Net) -> None:
    net.hold()
    assert processes(net) == []
    (port,) = add(net, "127.0.0.1::80")
    assert len(processes(net)) >= 3
    net.run("port", "rm", f"127.0.0.1:{port}:80")
    wait_for("they have ended", lambda: not processes(net))
    # And when one is wanted again they are there again.
    assert add(net, "127.0.0.1::80")


def test_open_connections_are_counted(net: Net) -> None:
    serve(net)
    (port, other) = add(net, "127.0.0.1::80", "127.0.0.1::81")

    def counts() -> dict[int, int]:
        return {entry["host_port"]: entry["connections"] for entry in listing(net)}

    assert counts() == {port: 0, other: 0}
    clients = [connect("127.0.0.1", port) for _ in range(30)]
    wait_for("all are counted", lambda: counts() == {port: 30, other: 0})
    for client in clients:
        client.close()
    wait_for("none is left", lambda: counts() == {port: 0, other: 0})


def test_add_and_remove(net: Net) -> None:
    serve(net)
    one, two = add(net, "127.0.0.1::80", "[::1]::80")
    assert ask("127.0.0.1", one) and ask("::1", two)
    net.run("port", "rm", f"127.0.0.1:{one}:80")
    assert is_refused("127.0.0.1", one)
    assert ask("::1", two)
    done = net.run("port", "rm", f"127.0.0.1:{one}:80", check=False)
    assert (done.returncode, done.stderr) == (
        125,
        f"rootlessnet: port rm 127.0.0.1:{one}:80/tcp: there is no such rule\n"
        "  hint: see them: rootlessnet port ls\n",
    )
    net.run("port", "rm", "--all")
    assert listing(net) == []
    assert is_refused("::1", two)


def test_ports_of_the_host_that_are_free_to_choose(net: Net) -> None:
    net.hold()
    before = add(net, "79")
    done = net.run("port", "add", "--json", "80-82", "80/udp", "127.0.0.1::90")
    # Those that were made, as the listing has them.
    assert json.loads(done.stdout) == listing(net)[1:]
    made = [*before, *(entry["host_port"] for entry in json.loads(done.stdout))]
    assert len(set(made)) == 6 and all(1024 <= port <= 65535 for port in made)
    assert [entry["port"] for entry in listing(net)] == [79, 80, 81, 82, 80, 90]


def test_a_range(net: Net) -> None:
    serve(net, port=1050)
    first = 21000
    net.run("port", "add", f"127.0.0.1:{first}-{first + 99}:1000-1099")
    assert ask("127.0.0.1", first + 50)
    assert is_refused("127.0.0.1", first + 51)
    assert len(listing(net)) == 100
    assert f"127.0.0.1:{first}-{first + 99}" in net.run("port", "ls").stdout


def test_all_or_nothing(net: Net) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        options = ["-p", f"{port}:80", "-p", f"127.0.0.1:{number}:81"]
        done = net.run("enter", *options, "--", "echo", "ran", check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == (
        f"rootlessnet: publish 127.0.0.1:{number}:81/tcp: port {number} of the host is in use\n"
        f"  hint: see by whom: ss -ltnp 'sport = :{number}'\n"
    )
    socket.create_server(("", port)).close()
    net.wait_until_down()


def test_what_another_rule_has(net: Net) -> None:
    net.hold()
    (port,) = add(net, "127.0.0.1::80")
    done = net.run("port", "add", f"{port}:81", check=False)
    assert (done.returncode, done.stderr) == (
        125,
        f"rootlessnet: publish {port}:81/tcp: it is published already: "
        f"127.0.0.1:{port}:80/tcp of user\n  hint: see them all: rootlessnet port ls\n",
    )


def test_a_port_is_ours_while_nothing_listens_inside(net: Net) -> None:
    net.hold()
    (port,) = add(net, "127.0.0.1::80")
    assert is_refused("127.0.0.1", port)
    for reuse in (0, 1):
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            with pytest.raises(OSError, match="already in use"):
                s.bind(("127.0.0.1", port))


def test_privileged_ports_name_the_sysctl(net: Net) -> None:
    done = net.run("enter", "-p", "80:80", "--", "true", check=False)
    assert (done.returncode, done.stderr) == (
        125,
        "rootlessnet: --publish 80:80/tcp: port 80 of the host is privileged: "
        "net.ipv4.ip_unprivileged_port_start is 1024\n"
        "  hint: as root: sysctl net.ipv4.ip_unprivileged_port_start=80\n",
    )
    assert not net.directory.exists()


def test_an_address_of_another_machine(net: Net) -> None:
    net.hold()
    done = net.run("port", "add", "203.0.113.99:8080:80", check=False)
    assert done.stderr == (
        "rootlessnet: publish 203.0.113.99:8080:80/tcp: 203.0.113.99 is no address of this "
        "machine\n  hint: see them: ip address\n"
    )


def test_no_instance(net: Net) -> None:
    done = net.run("port", "add", "8080:80", check=False)
    assert (done.returncode, done.stderr) == (
        125,
        f"rootlessnet: publish ports: {net.name} is not running\n"
        "  hint: rootlessnet up starts it\n",
    )
    assert listing(net) == []


def test_a_named_lease_has_ports_of_its_own(net: Net) -> None:
    net.hold()
    port = free_port()
    serve(net)
    net.run("up", "--name", "web", "-p", f"127.0.0.1:{port}:80")
    assert ask("127.0.0.1", port)
    net.run("down", "--name", "web")
    wait_for("its port is closed", lambda: not listing(net))
    assert is_refused("127.0.0.1", port)


def test_a_lease_in_the_foreground_that_is_killed(net: Net) -> None:
    serve(net)
    port = free_port()
    child = net.start("up", "--foreground", "--name", "web", "-p", f"127.0.0.1:{port}:80")
    wait_for("it is published", lambda: listing(net))
    assert ask("127.0.0.1", port)
    kill(child.pid)
    child.wait()
    wait_for("its port is closed", lambda: not listing(net))


def test_up_that_cannot_publish_leaves_no_lease(net: Net) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        rule = f"127.0.0.1:{taken.getsockname()[1]}:80"
        assert net.run("up", "-p", rule, check=False).returncode == 125
    net.wait_until_down()


def test_source_address_is_a_matter_of_choice(net: Net) -> None:
    serve(net, "-o", "source_ip=snat")
    (port,) = add(net, "0.0.0.0::80")
    seen, own = who(MACHINE, port)
    assert seen != own and seen.split()[0] == "10.0.2.100"
    (port,) = [
        entry["host_port"]
        for entry in json.loads(
            net.run("port", "add", "--json", "--source-ip=preserve", "0.0.0.0::80").stdout
        )
    ]
    seen, own = who(MACHINE, port)
    assert seen == own


def test_from_inside_no_port_is_added(net: Net) -> None:
    net.hold()
    (port,) = add(net, "127.0.0.1::80")
    for command in (["add", "8088:80"], ["rm", f"127.0.0.1:{port}:80"]):
        done = net.enter(PROGRAM, "port", *command, check=False)
        assert (done.returncode, done.stderr) == (
            125,
            "rootlessnet: change published ports: from inside the instance this is not allowed\n"
            "  hint: do it outside, or start the instance with "
            "-o allow_ports_from_inside=true\n",
        )
    # Nor from a namespace that somebody inside has made for it.
    done = net.enter("unshare", "-n", PROGRAM, "port", "add", "8088:80", check=False)
    assert done.returncode == 125
    assert len(listing(net)) == 1


def test_from_inside_with_the_users_leave(net: Net) -> None:
    net.hold("-o", "allow_ports_from_inside=true")
    net.inside(PROGRAM, "port", "add", "127.0.0.1::80")
    assert len(listing(net)) == 1


HOSTILE = """
import os, socket, sys
path = sys.argv[1] + "/ports/socket"
def connect():
    s = socket.socket(socket.AF_UNIX); s.connect(path); s.settimeout(5); return s
silent = [connect() for _ in range(30)]
for data in (b"\\n", b"{}\\n", b"[" * 100000 + b"\\n", b'{"do": "add"}\\n', b"\\xff\\xfe\\n",
             b'{"do": "add", "owner": "lease:../../x", "rules": []}\\n',
             b'{"do": "add", "owner": "user", "rules": [["tcp", "", -1, 80, 1]]}\\n',
             b'{"do": "add", "owner": "user", "rules": 7}\\n',
             b'{"do": "retarget", "owner": "user", "target": {}}\\n'):
    s = connect(); s.sendall(data); answer = s.recv(65536); s.close()
    assert b'"error"' in answer, (data, answer)
half = connect(); half.sendall(b'{"do": '); half.close()
big = connect()
try:
    big.sendall(b"x" * (8 << 20))
except OSError:
    pass
print("done")
"""


def test_hostile_clients_of_the_control_socket(net: Net) -> None:
    serve(net)
    (port,) = add(net, "127.0.0.1::80")
    before = processes(net)[0]
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE, str(net.directory)],
        check=True, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.stdout == "done\n"
    assert ask("127.0.0.1", port)
    assert processes(net)[0] == before
    assert len(add(net, "127.0.0.1::81")) == 1


def test_the_control_socket_is_the_users_own(net: Net) -> None:
    net.hold()
    add(net, "127.0.0.1::80")
    path = net.directory / "ports/socket"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.root
def test_another_uid_is_turned_away(net: Net) -> None:
    """With the socket in a place that everybody can reach, as a mount may do it."""
    net.hold()
    add(net, "127.0.0.1::80")
    source = net.directory / "ports/socket"
    code = (
        "import os, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); fd = os.open(sys.argv[1], os.O_PATH)\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "s.connect(f'/proc/self/fd/{fd}'); print(s.recv(99))\n"
    )
    os.chmod(source, 0o666)
    done = subprocess.run(
        [sys.executable, "-c", code, str(source)], capture_output=True, text=True, timeout=10
    )
    assert "not your instance" in done.stdout, done


@pytest.mark.root
def test_ports_are_announced_to_the_host_of_a_podman_machine(net: Net) -> None:
    server = Path(__file__).with_name("gvproxy_server.py")
    marker, hosts = Path("/etc/containers/podman-machine"), Path("/etc/hosts")
    before = hosts.read_text()
    port = free_port()
    marker.write_text("qemu\n")
    hosts.write_text(before + "127.0.0.1 gateway.containers.internal\n")
    try:
        net.hold()
        done = net.run("port", "add", "127.0.0.1::81")
        assert "warning: not announced to the host of this virtual machine: " in done.stderr
        with subprocess.Popen(
            [sys.executable, str(server)], stdout=subprocess.PIPE, text=True
        ) as gvproxy:
            assert gvproxy.stdout is not None and gvproxy.stdout.readline() == "up\n"
            net.run("port", "add", f"127.0.0.1:{port}:80/udp")
            assert json.loads(gvproxy.stdout.readline()) == [
                "/services/forwarder/expose",
                {"local": f"127.0.0.1:{port}", "remote": f"127.0.0.1:{port}", "protocol": "udp"},
            ]
            net.run("port", "rm", f"127.0.0.1:{port}:80/udp")
            assert json.loads(gvproxy.stdout.readline()) == [
                "/services/forwarder/unexpose",
                {"local": f"127.0.0.1:{port}", "protocol": "udp"},
            ]
            gvproxy.send_signal(signal.SIGTERM)
    finally:
        marker.unlink()
        hosts.write_text(before)
