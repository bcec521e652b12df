"""A mistake of the program costs the connection that it is made with, and no other."""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from pathlib import Path

import pytest
from port_support import (
    MACHINE,
    add,
    ask,
    connect,
    cpu_ticks,
    descriptors,
    free_port,
    helper,
    is_refused,
    listing,
    processes,
    serve,
    talk,
    who_udp,
    works_again,
)
from support import Net, kill, wait_for


class Mistakes:
    """An instance whose forwarder makes a mistake when it comes to a point that is `wanted`; a
    server in it, and its port of the host for TCP and UDP."""

    def __init__(self, net: Net, file: Path) -> None:
        self.net = net
        self.file = file
        self.wanted()
        serve(net, env={"ROOTLESSNET_FAIL_AT": str(file)})
        (self.port,) = add(net, "80")
        net.run("port", "add", f"{self.port}:80/udp")
        assert ask("127.0.0.1", self.port)

    def wanted(self, *points: str) -> None:
        # At once: it is read meanwhile.
        new = self.file.with_suffix(".new")
        new.write_text(" ".join(points))
        new.replace(self.file)

    def told(self, point: str) -> int:
        return self.net.log().count(f"RuntimeError: a test wants a failure at {point}\n")


@pytest.fixture
def mistakes(net: Net, tmp_path: Path) -> Mistakes:
    return Mistakes(net, tmp_path / "mistakes")


@pytest.mark.parametrize("point", ["worker:accepted", "tcp:begin", "tcp:finish"])
def test_one_connection_ends_and_no_other(mistakes: Mistakes, point: str) -> None:
    net, port = mistakes.net, mistakes.port
    with connect("127.0.0.1", port) as other:
        talk(other)
        before = processes(net)
        for count in (1, 300):
            mistakes.wanted(point)
            for _ in range(count):
                with pytest.raises(ConnectionResetError), connect("127.0.0.1", port) as s:
                    if point == "tcp:finish":
                        talk(s)
                        s.shutdown(socket.SHUT_WR)
                    while s.recv(4096):
                        continue
            mistakes.wanted()
            talk(other)
            assert ask("127.0.0.1", port)
            if count == 1:
                had = sum(map(descriptors, before))
        wait_for("none is counted", lambda: listing(net)[0]["connections"] == 1)
        # But for sockets that wait to be used.
        assert sum(map(descriptors, before)) < had + 250
        assert processes(net) == before
    # Each worker has told it, once.
    assert 1 <= mistakes.told(point) < len(before)
    assert "Traceback (most recent call last)" in net.log()


@pytest.mark.parametrize("point", ["udp:open", "udp:settle"])
def test_one_flow_of_datagrams_ends_and_no_other(mistakes: Mistakes, point: str) -> None:
    net, port = mistakes.net, mistakes.port
    before = processes(net)

    def answered(s: socket.socket, text: bytes) -> bool:
        s.send(text)
        try:
            return s.recv(100).endswith(text)
        except TimeoutError:
            return False

    def client() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.settimeout(0.1)
        made.connect((MACHINE, port))
        return made

    with client() as other, client() as s:
        for n in range(20):
            assert answered(other, f"{n}".encode())
        mistakes.wanted(point)
        assert [answered(s, f"first{n}".encode()) for n in range(10)].count(False) >= 1
        assert answered(other, b"not affected")
        mistakes.wanted()
        for n in range(20):
            assert answered(s, f"second{n}".encode())
        assert answered(other, b"still here")
    seen, own = who_udp(MACHINE, port, 20)
    assert seen == own
    assert processes(net) == before
    assert mistakes.told(point) == 1


def test_a_worker_that_is_in_doubt_is_replaced_and_keeps_its_connections(
    mistakes: Mistakes,
) -> None:
    net, port = mistakes.net, mistakes.port
    before = processes(net)
    with connect("127.0.0.1", port) as s:
        talk(s)
        mistakes.wanted("worker:told")
        (other,) = add(net, "80")
        wait_for("all have failed", lambda: mistakes.told("worker:told") >= len(before) - 2)
        talk(s)
        mistakes.wanted()
        works_again(other)
        works_again(port)
        wait_for("and UDP", lambda: who_udp(MACHINE, port))
        talk(s)
        assert processes(net)[0] == before[0]
        assert {entry["host_port"] for entry in listing(net)} == {port, other}
    wait_for("the old ones have ended", lambda: len(processes(net)) == len(before))
    assert ask("127.0.0.1", port)


def test_a_request_fails_and_nothing_else(mistakes: Mistakes) -> None:
    net, wanted = mistakes.net, free_port()

    def ports() -> list[int]:
        return [each["host_port"] for each in listing(net)]

    before, forwarder = ports(), processes(net)[0]
    with connect("127.0.0.1", mistakes.port) as s:
        talk(s)
        for point in ("requests:understood", "ports:forwarding"):
            mistakes.wanted(point)
            done = net.run("port", "add", f"{wanted}:80", check=False)
            assert (done.returncode, done.stderr) == (
                125,
                "rootlessnet: change published ports: RuntimeError: a test wants a failure at "
                f"{point}\n"
                "  hint: this is a mistake of the program: rootlessnet logs shows where\n",
            )
            assert is_refused("127.0.0.1", wanted)
            mistakes.wanted()
            assert ports() == before
        talk(s)
        assert add(net, f"{wanted}:80") == [wanted]
        works_again(wanted)
    assert processes(net)[0] == forwarder


def test_a_machine_without_room_for_another_process(mistakes: Mistakes) -> None:
    net, port = mistakes.net, mistakes.port
    forwarder, *workers, _ = processes(net)
    before = resource.prlimit(forwarder, resource.RLIMIT_NPROC)
    resource.prlimit(forwarder, resource.RLIMIT_NPROC, (1, before[1]))
    kill(workers[0])
    said = "start the processes that forward: Resource temporarily unavailable"
    wait_for("it is told", lambda: said in net.log())
    if len(workers) > 1:
        # Those that are left do it, and hand none over.
        clients = [connect("127.0.0.1", port) for _ in range(30)]
        for client in clients:
            talk(client)
            client.close()
    resource.prlimit(forwarder, resource.RLIMIT_NPROC, before)
    wait_for("there are as many again", lambda: len(processes(net)) == 2 + len(workers))
    works_again(port)
    wait_for("and UDP", lambda: who_udp(MACHINE, port))
    assert processes(net)[0] == forwarder
    assert "Traceback" not in net.log()


def test_the_forwarder_outlives_what_it_cannot_do(mistakes: Mistakes) -> None:
    net, port = mistakes.net, mistakes.port
    forwarder = processes(net)[0]
    with connect("127.0.0.1", port) as s:
        talk(s)
        mistakes.wanted("forwarder:files")
        for _ in range(5):
            net.enter("true")
        wait_for("it is told", lambda: mistakes.told("forwarder:files") == 1)
        mistakes.wanted()
        talk(s)
        assert ask("127.0.0.1", port)
        assert add(net, "81")
    assert processes(net)[0] == forwarder


def test_a_rule_that_waits_for_its_port_is_not_lost(mistakes: Mistakes) -> None:
    net, port = mistakes.net, mistakes.port

    def is_taken() -> socket.socket | None:
        kill(processes(net)[0])
        for _ in range(1000):
            try:
                return socket.create_server(("127.0.0.1", port), reuse_port=False)
            except OSError:
                pass
        return None

    with wait_for("another program has the port", is_taken):
        wait_for("it is said", lambda: f"port {port} of the host is in use" in net.log())
        mistakes.wanted("ports:again")
    wait_for("more than one attempt fails", lambda: mistakes.told("ports:again") > 0)
    before = net.log().count("not published again yet")
    assert before == 1
    assert [entry["host_port"] for entry in listing(net)] == [port, port]
    mistakes.wanted()
    works_again(port)


def test_a_helper_that_hangs_is_replaced(net: Net) -> None:
    """What is open goes on, and who comes meanwhile is served."""
    serve(net)
    (port,) = add(net, "80")
    with connect("127.0.0.1", port) as before:
        talk(before)
        stuck = helper(net)
        os.kill(stuck, signal.SIGSTOP)
        # More than there are sockets at hand.
        clients = [connect("127.0.0.1", port) for _ in range(150)]
        for client in clients:
            client.sendall(b"x")
        talk(before)
        for client in clients:
            with client:
                assert client.recv(100)
    wait_for("there is another", lambda: helper(net) != stuck)


def test_a_helper_that_is_killed_costs_no_connection(net: Net) -> None:
    serve(net)
    (port,) = add(net, "80")
    for _ in range(3):
        kill(helper(net))
        for _ in range(100):
            assert ask("127.0.0.1", port)
        wait_for("there is another", lambda: len(processes(net)) > 2 and helper(net))


def test_the_supervisor_rests_while_there_is_a_forwarder(net: Net) -> None:
    """Also when another command wanted one meanwhile."""
    serve(net, "-p", f"{free_port()}:80")
    (net.directory / "ports/wanted").write_text("")
    supervisor = net.pids()["supervisor"]
    before = cpu_ticks(supervisor)
    time.sleep(0.5)
    assert cpu_ticks(supervisor) - before < 0.1 * os.sysconf("SC_CLK_TCK")
