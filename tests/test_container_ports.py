"""Ports of the host that lead to containers, as long as these live and wherever they move."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from container_support import BACKENDS, Lab, holder_of_a_namespace, lab_of
from port_support import (
    HERE,
    MACHINE,
    MACHINE6,
    SERVER,
    add,
    ask,
    connect,
    entries,
    free_port,
    helper,
    is_refused,
    is_reset,
    listing,
    processes,
    who,
    who_far,
    who_udp,
    works_again,
)
from port_support import (
    serve as serve_instance,
)
from support import PROGRAM, kill, wait_for

NETWORK = ("--subnet", "10.99.0.0/24", "--subnet", "fd00:99::/64")


BOTH = pytest.mark.parametrize("lab", BACKENDS, indirect=True)


@pytest.fixture
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    """An instance with a network of both families; with netavark, if the test says no other."""
    with lab_of(tmp_path, getattr(request, "param", "netavark")) as one:
        one.network("lab", *NETWORK)
        yield one


def serve(lab: Lab, id: str, port: int = 80) -> subprocess.Popen[str]:
    """A server in a container."""
    path = lab.inspect(id)["SandboxKey"]
    child = lab.start("enter", "--", "nsenter", f"--net={path}", *SERVER, str(port))
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n", child.communicate(timeout=10)
    return child


def publish(lab: Lab, id: str, *options: str, rule: str = "{}:80") -> int:
    """A container on the network with a server, and the port of the host that leads to it."""
    port = free_port()
    lab.setup(id, "--network", "lab", "-p", rule.format(port), *options)
    serve(lab, id)
    return port


# -- who is seen -----------------------------------------------------------------------------------


@BOTH
def test_the_container_sees_its_client(lab: Lab) -> None:
    port = free_port()
    lab.setup("web", "--network", "lab", "-p", f"{port}:80", "-p", f"{port}:80/udp")
    serve(lab, "web")
    for host in HERE:
        seen, own = who(host, port)
        assert seen == own
        seen, own = who_udp(host, port, 10)
        assert seen == own
        assert ask(host, port).split()[2] == ("fd00:99::2" if ":" in host else "10.99.0.2")
    # The same from another machine.
    for host in (MACHINE, MACHINE6):
        for proto in ("tcp", "udp"):
            seen, own = who_far(proto, host, port)
            assert seen == own
    assert "the client's address is not kept" not in lab.log()


@BOTH
def test_snat_is_a_matter_of_choice(lab: Lab) -> None:
    lab.run("up", "-o", "source_ip=snat")
    port = free_port()
    done = lab.run("container", "setup", "web", "--new", "--network", "lab",
                   "-p", f"{port}:80", "-p", f"{port}:80/udp", "-p", "127.0.0.1::80")  # fmt: skip
    assert done.stderr == ""
    serve(lab, "web")
    for host in HERE:
        assert who(host, port)[0].split()[0] in addresses(lab)
        assert who_udp(host, port)[0].split()[0] in addresses(lab)
    for proto in ("tcp", "udp"):
        for host in (MACHINE, MACHINE6):
            assert who_far(proto, host, port)[0].split()[0] in addresses(lab)
    assert {(each["source_ip"], len(each["source_ip_lost"])) for each in listing(lab)} == {
        ("snat", 0)
    }
    assert "is not kept" not in lab.log()
    lab.run("down")


def addresses(lab: Lab) -> list[str]:
    """Those of the instance, but for loopback's. By IPv6 the bridge's own is the one to be seen,
    once the kernel has made sure that nobody else has it."""
    out = lab.inside("ip", "-o", "address", "show", "scope", "global")
    return [line.split()[3].partition("/")[0] for line in out.splitlines()]


LOOPBACK = "loopback addresses do not leave their machine"
NO_WAY_BACK = "the server has no way back to it"


def warning(rule: str, clients: str, why: str) -> str:
    return (
        f"warning: {rule}: the address of {clients} is not kept ({why}): they appear with an "
        f"address of the instance (-o source_ip=snat says that this is wanted)\n"
    )


def in_container(lab: Lab, id: str, *command: str) -> str:
    return lab.inside("nsenter", f"--net={lab.inspect(id)['SandboxKey']}", *command)


@BOTH
def test_a_rule_for_loopback_alone(lab: Lab) -> None:
    """Nothing is lost, nothing is said, and nothing has to be found out again after a change."""
    four, six = free_port(), free_port()
    done = lab.run("container", "setup", "web", "--new", "--network", "lab",
                   "-p", f"127.0.0.1:{four}:80", "-p", f"[::1]:{six}:80/udp")  # fmt: skip
    assert done.stderr == ""
    serve(lab, "web")
    for _ in range(2):
        seen, own = who("127.0.0.1", four)
        assert seen == own
        seen, own = who_udp("::1", six)
        assert seen == own
        assert lab.run("container", "reload", "web").stderr == ""
    assert [each["source_ip_lost"] for each in listing(lab)] == [{}] * 2
    assert "warning" not in lab.log()


def test_clients_on_loopback_hear_of_refusals_and_resets(lab: Lab) -> None:
    """Though the kernel sends those of ::1 by another interface."""
    port = publish(lab, "web")
    for host in HERE[:2]:
        with connect(host, port) as s:
            s.sendall(b"reset")
            with pytest.raises(ConnectionResetError):
                s.recv(1)
        with connect(host, port) as s:
            s.sendall(b"GET / HTTP/1.0\r\n\r\n")
            with s.makefile("rb") as stream:
                stream.read()
            wait_for("it is reset", partial(is_reset, s))


def test_where_loopback_is_down_its_clients_are_hidden(lab: Lab) -> None:
    """They are served all the same, and the log says it once."""
    port = free_port()
    lab.setup("web", "--network", "lab", "-p", f"{port}:80", "-p", f"{port}:80/udp")
    in_container(lab, "web", "ip", "link", "set", "lo", "down")
    serve(lab, "web")
    for _ in range(3):
        for host in HERE[:2]:
            assert who(host, port)[0].split()[0] in addresses(lab)
            assert who_udp(host, port)[0].split()[0] in addresses(lab)
    wait_for(
        "it is listed",
        lambda: [each["source_ip_lost"] for each in listing(lab)] == [{"loopback": LOOPBACK}] * 2,
    )
    for proto in ("tcp", "udp"):
        text = warning(f"{port}:80/{proto}", "clients on loopback", LOOPBACK)
        assert lab.log().count(text) == 1
    in_container(lab, "web", "ip", "link", "set", "lo", "up")
    seen, own = who("127.0.0.1", port)
    assert seen == own


def test_a_path_that_leads_to_another_namespace_by_now(lab: Lab, tmp_path: Path) -> None:
    """Nobody there is connected to: clients on loopback come by way of the bridge."""
    path, port = tmp_path / "there", free_port()
    first, other = holder_of_a_namespace(lab), holder_of_a_namespace(lab)
    path.symlink_to(f"/proc/{first.pid}/ns/net")
    lab.setup("web", "--netns", str(path), "--network", "lab", "-p", f"{port}:80")
    path.unlink()
    path.symlink_to(f"/proc/{other.pid}/ns/net")
    for child in (first, other):
        each = ["nsenter", f"--net=/proc/{child.pid}/ns/net"]
        server = lab.start("enter", "--", *each, *SERVER, "80")
        assert server.stdout is not None and server.stdout.readline() == "up\n"
    same = ["ip", "address", "add", "10.99.0.2/32", "dev", "lo"]
    for command in (["ip", "link", "set", "lo", "up"], same):
        lab.enter("nsenter", f"--net=/proc/{other.pid}/ns/net", *command)
    seen, _, there = ask("127.0.0.1", port).split()
    assert (seen, there) == ("10.99.0.1", "10.99.0.2")


def test_a_helper_that_hung_for_a_while_is_understood_again(lab: Lab) -> None:
    """Which container listens is not mistaken for what another one does."""
    lab.setup("first", "--network", "lab", "-p", f"{free_port()}:80")
    stuck, ports = helper(lab), {name: free_port() for name in ("a", "b", "c")}
    os.kill(stuck, signal.SIGSTOP)
    lab.setup("a", "--network", "lab", "-p", f"{ports['a']}:80")
    if Path(f"/proc/{stuck}").exists():
        os.kill(stuck, signal.SIGCONT)
    for name in ("b", "c"):
        lab.setup(name, "--network", "lab", "-p", f"{ports[name]}:80")
    serve(lab, "b")
    works_again(ports["b"])
    assert is_refused("127.0.0.1", ports["a"])
    assert is_refused("127.0.0.1", ports["c"])


def test_a_container_is_not_kept_by_its_clients(lab: Lab, tmp_path: Path) -> None:
    """Whose sockets are in its namespace, and who do not hear that it has gone."""
    child = holder_of_a_namespace(lab)
    lab.setup("stays", "--network", "lab")
    port = free_port()
    lab.setup("web", "--netns", f"/proc/{child.pid}/ns/net", "--network", "lab",
              "-p", f"{port}:80", "-p", f"{port}:80/udp")  # fmt: skip
    there = ["enter", "--", "nsenter", f"--net=/proc/{child.pid}/ns/net"]
    lab.enter(*there[2:], "ip", "link", "set", "lo", "up")
    server = lab.start(*there, *SERVER, "80")
    assert server.stdout is not None and server.stdout.readline() == "up\n"
    assert who_udp("::1", port)[0].split()[0] == "::1"
    with connect("127.0.0.1", port) as idle, socket.socket(type=socket.SOCK_DGRAM) as sender:
        idle.sendall(b"x")
        assert idle.recv(100).startswith(b"127.0.0.1 ")
        sender.connect(("127.0.0.1", port))
        for each in (server, child):
            each.kill()
            each.wait()

        def is_gone() -> bool:
            try:
                sender.send(b"x")
            except ConnectionRefusedError:
                pass
            return lab.ls() == ["stays"]

        wait_for("it is taken down", is_gone)


def test_a_namespace_that_is_named_inside_only(lab: Lab) -> None:
    """Its path means nothing at the host."""
    holder = holder_of_a_namespace(lab)
    path, port = "/run/there", free_port()
    lab.enter("ln", "-s", f"/proc/{holder.pid}/ns/net", path)
    assert not Path(path).exists()
    lab.setup("web", "--netns", path, "--network", "lab", "-p", f"{port}:80")
    lab.enter("nsenter", f"--net={path}", "ip", "link", "set", "lo", "up")
    child = lab.start("enter", "--", "nsenter", f"--net={path}", *SERVER, "80")
    assert child.stdout is not None and child.stdout.readline() == "up\n"
    log = lab.log()
    for pause in (2.2, 0):
        seen, own = who("127.0.0.1", port)
        assert seen == own
        time.sleep(pause)  # whoever looks after namespaces does it every two seconds
    assert lab.log() == log


def test_a_server_that_is_busy_does_not_lose_addresses(lab: Lab) -> None:
    port = free_port()
    lab.setup("web", "--network", "lab", "-p", f"{port}:80")
    script = (
        "import socket, time; s = socket.create_server(('', 80), backlog=2); print('up', "
        "flush=True); time.sleep(1.5)\nwhile True: c, a = s.accept(); c.send(a[0].encode())"
    )
    path = lab.inspect("web")["SandboxKey"]
    child = lab.start("enter", "--", "nsenter", f"--net={path}", sys.executable, "-c", script)
    assert child.stdout is not None and child.stdout.readline() == "up\n"
    wait_for("it listens", lambda: not is_refused("127.0.0.1", port))
    clients = [connect("127.0.0.1", port) for _ in range(5)]
    for client in clients:
        with client:
            assert client.recv(100) == b"127.0.0.1"
    assert "is not kept" not in lab.log()


def test_no_namespace_is_kept_by_clients_that_there_were(lab: Lab) -> None:
    """The other end of a cable into it goes when it does."""
    port = free_port()
    lab.setup("web", "--network", "lab", "-p", f"{port}:80", "-p", f"{port}:80/udp")
    path = lab.inspect("web")["SandboxKey"]
    script = f"ip link add probe type veth peer name end; exec ip link set end netns {path}"
    lab.inside("sh", "-c", script)
    server = serve(lab, "web")
    for host in HERE[:2]:
        assert who(host, port)[0].split()[0] == host
        assert who_udp(host, port)[0].split()[0] == host
    with connect("127.0.0.1", port) as s:
        s.sendall(b"stop")
    server.wait(10)
    # The forwarder goes on for others.
    lab.setup("stays", "--network", "lab", "-p", f"{free_port()}:80")
    lab.run("container", "teardown", "web")
    wait_for("it has gone", lambda: "probe" not in lab.inside("ip", "-br", "link"))


@BOTH
def test_a_server_that_listens_by_ipv4_only(lab: Lab) -> None:
    """In a container that has both: it refuses, and that is heard."""
    port = free_port()
    lab.setup("web", "--network", "lab", "-p", f"{port}:80", "-p", f"{port}:80/udp")
    path = lab.inspect("web")["SandboxKey"]
    child = lab.start("enter", "--", "nsenter", f"--net={path}", *SERVER, "80", "0.0.0.0")
    assert child.stdout is not None and child.stdout.readline() == "up\n"
    for ask_it in (who, who_udp):
        for host, seen in zip(HERE, ("127.0.0.1", "10.99.0.1", MACHINE, "10.99.0.1"), strict=True):
            assert ask_it(host, port)[0].split()[0] == seen
    assert who_far("udp", MACHINE6, port)[0].split()[0] == "10.99.0.1"


def test_what_may_happen_is_told_when_it_does(lab: Lab) -> None:
    """A client of a family that does not get there."""
    lab.network("four", "--subnet", "10.98.0.0/24")
    port = free_port()
    done = lab.run("container", "setup", "web", "--new", "--network", "four", "-p", f"{port}:80",
                   "-p", f"{port}:80/udp")  # fmt: skip
    assert done.stderr == ""
    serve(lab, "web")
    expected = {"ipv6": "the server is reached by IPv4 only"}
    assert [each["source_ip_lost"] for each in listing(lab)] == [expected] * 2
    assert "warning" not in lab.log()
    for _ in range(3):
        for host, seen in zip(HERE, ("127.0.0.1", "10.98.0.1", MACHINE, "10.98.0.1"), strict=True):
            assert who(host, port)[0].split()[0] == seen
            assert who_udp(host, port)[0].split()[0] == seen
    for proto in ("tcp", "udp"):
        text = warning(f"{port}:80/{proto}", "IPv6 clients", expected["ipv6"])
        wait_for("it is in the log", lambda text=text: text in lab.log())
        assert lab.log().count(text) == 1


def test_slirp4netns_leads_to_the_instance_and_the_forwarder_to_containers(lab: Lab) -> None:
    lab.run("up", "-o", "port_handler=slirp4netns")
    serve_instance(lab)
    own, udp = add(lab, "0.0.0.0::80", "0.0.0.0::80/udp")
    # It cannot publish IPv6 addresses, but the forwarder can.
    port = publish(lab, "web", "-p", f"[{MACHINE6}]:{free_port()}:80")
    (later,) = add(lab, "127.0.0.1::80")

    def all_work() -> None:
        for number in (own, later):
            works_again(number)
        assert ask("127.0.0.1", own).split()[2] == "10.0.2.100"
        for host in (MACHINE, MACHINE6):
            seen, client = who(host, port)
            assert seen == client
        assert {entry["host_port"] for entry in entries(lab)} == {own, udp, later}
        targets = {each["host_port"]: each["target"] for each in listing(lab)}
        assert [targets[one] for one in (own, udp, later, port)] == ["10.0.2.100"] * 3 + ["web"]

    all_work()
    # Each knows of the other's.
    said = lab.run("port", "add", f"0.0.0.0:{port}:80", check=False).stderr
    assert f"it is published already: {port}:80/tcp of container:web" in said
    said = lab.refused("container", "setup", "db", "--new", "--network", "lab", "-p", f"{own}:80")
    assert f"it is published already: 0.0.0.0:{own}:80/tcp of user" in said
    # Both survive whatever is killed, and what is open stays open.
    before = entries(lab)
    with connect(MACHINE, port) as open_one, connect(MACHINE, own) as other:
        kill(processes(lab)[0])
        works_again(port)
        all_work()
        assert entries(lab) == before
        other.sendall(b"x")
        assert b"\n" in other.recv(100)
        driver = lab.pids()["driver"]
        kill(driver)
        wait_for("another driver", lambda: lab.pids()["driver"] not in (None, driver))
        wait_for("its forwards are back", lambda: len(entries(lab)) == 3)
        all_work()
        open_one.sendall(b"x")
        assert b"\n" in open_one.recv(100)
    # And each goes by itself.
    lab.run("port", "rm", f"0.0.0.0:{own}:80")
    assert {entry["host_port"] for entry in entries(lab)} == {udp, later}
    assert ask("127.0.0.1", port).split()[2] == "10.99.0.2"
    lab.run("container", "teardown", "web")
    assert is_refused("127.0.0.1", port)
    assert ask("127.0.0.1", later)
    lab.run("port", "rm", "--all")
    assert entries(lab) == listing(lab) == []


# -- what is shown ---------------------------------------------------------------------------------


def test_what_is_published_is_shown(lab: Lab) -> None:
    lab.setup("web", "--network", "lab", "-p", "127.0.0.1:18080:80", "-p", "18090-18092:90-92",
              "-p", "[::1]:18080:80", "-p", "18053:53/udp")  # fmt: skip
    found = lab.inspect("web")["Ports"]
    assert found["80/tcp"] == [
        {"HostIp": "127.0.0.1", "HostPort": "18080"}, {"HostIp": "::1", "HostPort": "18080"},
    ]  # fmt: skip
    assert found["91/tcp"] == [{"HostIp": "", "HostPort": "18091"}]
    assert found["53/udp"] == [{"HostIp": "", "HostPort": "18053"}]
    assert len(listing(lab)) == 6
    assert {port["target"] for port in lab.status()["ports"]} == {"web"}
    (item,) = json.loads(lab.run("container", "ls", "--json").stdout)
    assert item["ports"][1] == {"proto": "tcp", "host_ip": "", "host_port": 18090, "port": 90}
    shown = "127.0.0.1:18080->80/tcp *:18090-18092->90-92/tcp [::1]:18080->80/tcp *:18053->53/udp"
    assert shown in lab.run("container", "ls").stdout
    tree = lab.run("status").stdout.splitlines()
    assert sum("*:18090-18092 -> 90-92/tcp" in line for line in tree) == 1


def test_ports_that_are_free_to_choose(lab: Lab) -> None:
    lab.setup("web", "--network", "lab", "-p", "80", "-p", "127.0.0.1::81-82")
    serve(lab, "web")
    found = lab.inspect("web")["Ports"]
    ports = [int(each["HostPort"]) for name in found for each in found[name]]
    assert len(set(ports)) == 3
    assert all(port >= 1024 for port in ports)
    assert ask("127.0.0.1", int(found["80/tcp"][0]["HostPort"])).endswith("10.99.0.2")


def test_refused_while_nothing_listens(lab: Lab) -> None:
    port = free_port()
    lab.setup("web", "--network", "lab", "-p", f"{port}:80")
    assert is_refused("127.0.0.1", port)
    server = serve(lab, "web")
    assert ask("127.0.0.1", port)
    with connect("127.0.0.1", port) as s:
        s.sendall(b"stop")
    server.wait(10)
    wait_for("it is refused", lambda: is_refused("127.0.0.1", port))


# -- all or nothing --------------------------------------------------------------------------------


def test_rules_that_cannot_be_had(lab: Lab) -> None:
    taken = free_port()
    lab.setup("stays", "--network", "lab", "-p", f"{taken}:80")
    before = lab.interfaces(), lab.used_addresses(), listing(lab)

    def refused(*rules: str) -> str:
        options = [word for rule in rules for word in ("-p", rule)]
        said = lab.refused("container", "setup", "web", "--new", "--network", "lab", *options)
        assert (lab.ls(), lab.interfaces(), lab.used_addresses(), listing(lab)) == (
            ["stays"], *before,
        )  # fmt: skip
        return said.removeprefix("rootlessnet: set up container web: ").splitlines()[0]

    free = free_port()
    assert refused(f"{taken}:90") == (
        f"publish {taken}:90/tcp: it is published already: {taken}:80/tcp of container:stays"
    )
    assert "overlaps" in refused(f"{free}:80", f"{free}:90")
    assert "sctp is not supported" in refused("80/sctp")
    assert "privileged" in refused("80:80")
    with Listener() as other:
        # The first one is given back when the second cannot be had.
        assert f"port {other} " in refused(f"{free}:80", f"{other}:81")
    assert is_refused("127.0.0.1", free)


class Listener:
    """A port that another program has."""

    def __enter__(self) -> int:
        self._socket = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        number: int = self._socket.getsockname()[1]
        return number

    def __exit__(self, *_: object) -> None:
        self._socket.close()


@BOTH
def test_setup_that_fails_gives_its_ports_back(lab: Lab) -> None:
    port = free_port()
    lab.setup("fixed", "--network", "lab:ip=10.99.0.50")
    said = lab.refused(
        "container", "setup", "web", "--new", "--network", "lab:ip=10.99.0.50", "-p", f"{port}:80"
    )
    assert "10.99.0.50" in said
    assert listing(lab) == []
    lab.setup("other", "--network", "lab", "-p", f"{port}:80")


@BOTH
def test_network_without_a_way_out(lab: Lab) -> None:
    """The container cannot answer clients elsewhere, so it is asked from the bridge's address; and
    where there is none the ports would lead out of the instance, to whoever has the address there.
    """
    lab.network("inner", "--internal", "--subnet", "10.97.0.0/24")
    lab.network("mute", "--internal", "--disable-dns", "--subnet", "10.96.0.0/24")
    port = free_port()
    setup = ("container", "setup", "app", "--new", "-p", f"{port}:80", "--network")
    said = lab.refused(*setup, "mute")
    assert said.startswith(
        "rootlessnet: set up container app: publish ports: the instance reaches no address of "
        "the container\n"
    )
    if lab.backend == "cni":
        return
    done = lab.run(*setup, "inner")
    text = f"warning: the client's address is not kept ({NO_WAY_BACK}): "
    assert done.stderr.startswith(f"rootlessnet: {text}") and done.stderr.count("\n") == 1
    serve(lab, "app")
    assert who(MACHINE, port)[0].split()[0] == "10.97.0.1"
    assert listing(lab)[0]["source_ip_lost"] == {"ipv4": NO_WAY_BACK, "ipv6": NO_WAY_BACK}
    assert lab.run("container", "reload", "app").stderr == ""
    assert lab.log().count(text) == 1
    # As soon as there is one, the way that leads out is taken.
    lab.run("network", "connect", "mute", "app")
    lab.run("network", "connect", "lab", "app")
    assert ask(MACHINE, port).split()[2] == "10.99.0.2"


def test_from_inside_it_takes_the_users_leave(lab: Lab) -> None:
    setup = (PROGRAM, "container", "setup", "web", "--new", "--network", "lab", "-p", "18080:80")
    with_hold = lab.hold()
    done = lab.enter(*setup, check=False)
    assert "change published ports: from inside the instance this is not allowed" in done.stderr
    assert lab.ls() == []
    lab.release(with_hold)
    lab.wait_until_down()
    lab.run("up", "-o", "allow_ports_from_inside=true")
    lab.enter(*setup)
    serve(lab, "web")
    assert ask("127.0.0.1", 18080)
    lab.enter(PROGRAM, "container", "teardown", "web")
    assert listing(lab) == []
    lab.run("down")


def test_what_it_has_follows_it_from_inside_too(lab: Lab) -> None:
    lab.network("back", "--subnet", "10.98.0.0/24")
    port = publish(lab, "app")
    lab.enter(PROGRAM, "network", "connect", "back", "app")
    lab.enter(PROGRAM, "network", "disconnect", "lab", "app")
    assert ask(MACHINE, port).split()[2] == "10.98.0.2"
    lab.enter(PROGRAM, "container", "teardown", "app")
    assert listing(lab) == []


# -- following the container -----------------------------------------------------------------------


@BOTH
def test_connect_and_disconnect(lab: Lab) -> None:
    lab.network("back", "--subnet", "10.98.0.0/24")
    port = publish(lab, "app")
    other = publish(lab, "other")
    with connect(MACHINE, other) as before:
        before.sendall(b"x")
        reader = before.makefile()
        assert reader.readline().split()[2] == "10.99.0.3"
        lab.run("network", "connect", "back", "app")
        assert ask(MACHINE, port).split()[2] == "10.99.0.2"
        lab.run("network", "disconnect", "lab", "app")
        assert ask(MACHINE, port).split()[2] == "10.98.0.2"
        # By IPv6 too: it is reached by the family that it has left.
        assert ask(MACHINE6, port).split()[2] == "10.98.0.2"
        lab.run("network", "disconnect", "back", "app")
        wait_for("it is refused", lambda: is_refused(MACHINE, port))
        lab.run("network", "connect", "lab", "--ip", "10.99.0.77",
                "app")  # fmt: skip
        assert ask(MACHINE, port).split()[2] == "10.99.0.77"
        # The ports of others have not noticed.
        before.sendall(b"still here\n")
        assert reader.readline() == "xstill here\n"
    assert {each["host_port"] for each in listing(lab)} == {port, other}


@BOTH
def test_reload_after_everything_was_flushed(lab: Lab) -> None:
    port = publish(lab, "web", rule="127.0.0.1:{}:80")
    assert ask("127.0.0.1", port)
    lab.enter("nft", "flush", "ruleset")
    (lab.directory / "ports/rules.json").write_text("damaged")
    forwarder = processes(lab)[0]
    kill(forwarder)
    lab.run("container", "reload", "web")
    serve_again = ask("127.0.0.1", port)
    assert serve_again.split()[2] == "10.99.0.2"
    assert [each["host_port"] for each in listing(lab)] == [port]


# -- the end ---------------------------------------------------------------------------------------


@BOTH
def test_ports_go_with_the_container(lab: Lab) -> None:
    port = free_port()
    lab.setup("stays", "--network", "lab")
    rules = ("-p", f"{port}:80", "-p", f"{port}:80/udp")
    lab.setup("web", "--network", "lab", *rules)
    lab.run("container", "teardown", "web")
    # At once: whoever wants the port next can have it.
    assert listing(lab) == []
    lab.setup("web", "--network", "lab", *rules)
    lab.run("container", "teardown", "web")
    # A process's, that is killed.
    child = holder_of_a_namespace(lab)
    lab.setup("web", "--pid", str(child.pid), "--network", "lab", *rules)
    child.kill()
    child.wait()
    wait_for("its ports are gone", lambda: not listing(lab))
    wait_for("so is the rest", lambda: lab.ls() == ["stays"])
    # And when nothing but its record is removed.
    lab.setup("web", "--network", "lab", *rules)
    lab.run("down", "--force")
    assert not lab.directory.exists()
    with Listener():
        assert is_refused("127.0.0.1", port)


@BOTH
@pytest.mark.parametrize("point", ["published", "attached"])
def test_setup_that_is_killed(lab: Lab, point: str) -> None:
    port = free_port()
    lab.setup("stays")
    command = ("container", "setup", "web", "--new", "--network", "lab", "-p", f"{port}:80")
    done = lab.run(*command, check=False, env={"ROOTLESSNET_CRASH_AT": f"container:{point}"})
    if lab.backend == "netavark" or point == "published":
        assert done.returncode == 125
    lab.run(*command)
    assert [each["host_port"] for each in listing(lab)] == [port]
    serve(lab, "web")
    assert ask("127.0.0.1", port)


def test_caller_that_is_killed_leaves_no_port(lab: Lab) -> None:
    lab.setup("stays")
    port = free_port()
    command = ("container", "setup", "web", "--new", "--network", "lab", "-p", f"{port}:80")
    child = lab.start(*command, start_new_session=True)
    wait_for("it has begun", lambda: (lab.directory / "containers.pending").exists())
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    wait_for("it is decided", lambda: not (lab.directory / "containers.pending").exists())
    wait_for("nothing is left", lambda: lab.ls() == ["stays"] and not listing(lab))
    lab.run(*command)


def test_they_come_back_after_the_forwarder(lab: Lab) -> None:
    port = publish(lab, "web")
    for part in ("forwarder", "supervisor", "holder"):
        kill(processes(lab)[0] if part == "forwarder" else lab.pids()[part])
        wait_for("it is replaced", lambda: lab.status()["state"] == "running")
        assert ask(MACHINE, port).split()[2] == "10.99.0.2", part
    with connect(MACHINE, port) as s:
        s.sendall(b"stop")
    # It is known again who listens, though the holder is another one.
    kill(processes(lab)[0])
    wait_for("it is refused", lambda: is_refused(MACHINE, port))


def test_forwarder_that_comes_too_late(lab: Lab) -> None:
    """The container has ended while there was no forwarder."""
    port = publish(lab, "web")
    forwarder = processes(lab)[0]
    os.kill(forwarder, signal.SIGSTOP)
    record = lab.directory / "containers/web"
    text = record.read_bytes()
    record.unlink()
    kill(forwarder)
    wait_for("there is none", lambda: not listing(lab))
    assert is_refused(MACHINE, port)
    record.write_bytes(text)
    lab.run("container", "reload", "web")
    assert ask(MACHINE, port)


@BOTH
def test_without_ports_nothing_of_them_is_there(lab: Lab) -> None:
    """Neither processes nor imports: a container that publishes nothing pays nothing for it."""
    lab.run("up")
    imported = ""
    for command in (("setup", "web", "--new", "--network", "lab"), ("reload", "web"),
                    ("teardown", "web")):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "rootlessnet", "container", *command],
            env=lab.environment, capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
        imported += done.stderr
    assert "rootlessnet.networks.containers" in imported
    assert "rootlessnet.ports" not in imported
    assert not (lab.directory / "ports/forwarder").exists()
    lab.run("down")
