"""Published ports survive the death of whatever serves them."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from port_support import (
    MACHINE,
    add,
    ask,
    connect,
    entries,
    free_port,
    is_refused,
    listing,
    processes,
    serve,
    talk,
    who_udp,
    works_again,
)
from support import Net, is_alive, wait_for
from support import kill as kill_one


def kill(*pids: int) -> None:
    """kill -9; some may go by themselves when others do."""
    for pid in pids:
        try:
            kill_one(pid)
        except ProcessLookupError:
            continue


@pytest.mark.parametrize("which", ["forwarder", "a worker", "the helper", "all"])
def test_rules_come_back(net: Net, which: str) -> None:
    serve(net)
    (port,) = add(net, "80")
    net.run("port", "add", f"{port}:80/udp")
    before = listing(net)
    pids = processes(net)
    chosen = {"forwarder": pids[:1], "a worker": pids[1:2], "the helper": pids[-1:], "all": pids}
    for pid in chosen[which]:
        kill(pid)
    works_again(port)
    assert listing(net) == before
    wait_for("and UDP", lambda: who_udp("127.0.0.1", port))
    assert add(net, "127.0.0.1::80")


def test_connections_outlive_the_forwarder(net: Net) -> None:
    serve(net)
    (port,) = add(net, "80")
    with connect("127.0.0.1", port) as s:
        talk(s)
        kill(processes(net)[0])
        works_again(port)
        talk(s)


def test_connections_outlive_driver_and_supervisor(net: Net) -> None:
    child = serve(net)
    (port,) = add(net, "80")
    with connect("127.0.0.1", port) as s:
        talk(s)
        forwarder = processes(net)[0]
        kill(net.pids()["driver"])
        talk(s)
        wait_for("the driver is back", lambda: net.status()["state"] == "running")
        assert ask("127.0.0.1", port)
        kill(net.pids()["supervisor"])
        talk(s)
        assert ask("127.0.0.1", port)
        net.run("status")  # which has a new supervisor take over
        talk(s)
        assert processes(net)[0] == forwarder
        # And that one looks after it.
        kill(forwarder)
        works_again(port)
        talk(s)
    child.kill()
    child.wait()
    net.wait_until_down()
    assert is_refused("127.0.0.1", port)


def test_forwarder_that_died_with_the_supervisor(net: Net) -> None:
    serve(net)
    (port,) = add(net, "80")
    for pid in [net.pids()["supervisor"], *processes(net)]:
        kill(pid)
    net.run("status")
    works_again(port)


def test_ports_of_a_command_that_ended_meanwhile_do_not_come_back(net: Net) -> None:
    net.hold()
    child = serve(net, "-p", f"127.0.0.1:{free_port()}:80")
    (kept,) = add(net, "127.0.0.1::80")
    kill(net.pids()["supervisor"])
    for pid in processes(net):
        kill(pid)
    kill(child.pid)
    child.wait()
    net.run("status")
    wait_for("it is known", lambda: [e["host_port"] for e in listing(net)] == [kept])


@pytest.mark.parametrize(
    "change",
    [{"owner": 5}, {"owner": []}, {"rule": ["tcp", None, 80, 80, 1]}, {"rule": 1}, {"target": 1}],
    ids=str,
)
def test_record_of_the_ports_that_makes_no_sense(net: Net, change: dict[str, Any]) -> None:
    net.run("up")
    port = free_port()
    add(net, f"{port}:80")
    path = net.directory / "ports/rules.json"
    (record,) = json.loads(path.read_text())
    path.write_text(json.dumps([{**record, **change}]))
    assert listing(net) == []
    for command in (("status",), ("port", "ls"), ("graph",)):
        assert net.run(*command).stderr == ""
    kill(*processes(net))
    other = free_port()
    assert add(net, f"{other}:80") == [other]
    assert [each["host_port"] for each in listing(net)] == [other]
    net.run("down")


def test_a_port_that_somebody_else_took_meanwhile(net: Net) -> None:
    serve(net)
    (port,) = add(net, "127.0.0.1::80")
    for pid in [net.pids()["supervisor"], *processes(net)]:
        kill(pid)
    with socket.create_server(("127.0.0.1", port)):
        net.run("status")
        wait_for("it is said", lambda: f"port {port} of the host is in use" in net.log())
        assert [entry["host_port"] for entry in listing(net)] == [port]
    works_again(port)


def test_nothing_is_left_of_it(net: Net) -> None:
    child = serve(net, "-p", f"127.0.0.1:{free_port()}:80")
    pids = processes(net)
    assert len(pids) >= 3
    net.release(child) if child.poll() is None and child.stdin is None else child.kill()
    net.wait_until_down()
    wait_for("all have ended", lambda: not any(map(is_alive, pids)))


@pytest.mark.parametrize("point", ["ports:bound", "ports:recorded", "ports:forwarding"])
def test_forwarder_that_dies_while_it_publishes(net: Net, point: str) -> None:
    """The command is told that it failed or, after another attempt, what is published works."""
    port = free_port()
    net.start("enter", "--", "sleep", "100", env={"ROOTLESSNET_CRASH_AT": point})
    wait_for("it runs", lambda: net.status()["state"] == "running")
    done = net.run("port", "add", f"127.0.0.1:{port}:80", check=False)
    assert done.returncode == 125
    assert "the forwarder has gone away" in done.stderr
    wait_for("as it is recorded", lambda: bool(listing(net)) == (point != "ports:bound"))


# -- slirp4netns' own forwarding ---


def test_slirp4netns_forwards(net: Net) -> None:
    serve(net, "-o", "port_handler=slirp4netns")
    one, two = add(net, "127.0.0.1::80", "0.0.0.0::80/udp")
    assert ask("127.0.0.1", one)
    # By datagrams it answers no client on loopback, as that is closed to those inside.
    assert who_udp(MACHINE, two)
    assert {entry["host_port"] for entry in entries(net)} == {one, two}
    kill(net.pids()["driver"])
    works_again(one)
    wait_for("all are back", lambda: len(entries(net)) == 2)
    kill(processes(net)[0])
    (three,) = add(net, "127.0.0.1::80")
    wait_for("each is there once", lambda: len(entries(net)) == 3)
    net.run("port", "rm", f"127.0.0.1:{one}:80")
    assert {entry["host_port"] for entry in entries(net)} == {two, three}
    assert is_refused("127.0.0.1", one)


def test_a_port_that_somebody_else_took_from_slirp4netns(net: Net) -> None:
    serve(net, "-o", "port_handler=slirp4netns")
    one, two = add(net, "127.0.0.1::80", "127.0.0.1::80")
    supervisor = net.pids()["supervisor"]
    os.kill(supervisor, signal.SIGSTOP)
    try:
        kill(net.pids()["driver"])
        taken = wait_for("its port is free", lambda: bound("127.0.0.1", one))
    finally:
        os.kill(supervisor, signal.SIGCONT)
    with taken:
        wait_for("it is said", lambda: f"not published again yet: 127.0.0.1:{one}:80" in net.log())
        works_again(two)
        assert {entry["host_port"] for entry in listing(net)} == {one, two}
    works_again(one)


def bound(host: str, port: int) -> socket.socket | None:
    try:
        return socket.create_server((host, port))
    except OSError:
        return None


def test_what_slirp4netns_cannot_forward(net: Net) -> None:
    net.hold("-o", "port_handler=slirp4netns")
    done = net.run("port", "add", "[::1]:8080:80", check=False)
    assert (done.returncode, done.stderr) == (
        125,
        "rootlessnet: publish [::1]:8080:80/tcp: port_handler=slirp4netns cannot publish IPv6 "
        "addresses\n  hint: leave port_handler away\n",
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        done = net.run("port", "add", "127.0.0.1::81", f"127.0.0.1:{number}:80", check=False)
    assert f"port {number} of the host is in use" in done.stderr
    assert entries(net) == [] and listing(net) == []


def test_the_api_socket_is_private(net: Net) -> None:
    net.hold("-o", "port_handler=slirp4netns")
    assert Path(net.directory).stat().st_mode & 0o077 == 0
