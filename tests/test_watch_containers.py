"""graph, metrics, top and events of real containers on a real network, with real ports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from container_support import BACKENDS, Lab, lab_of
from port_support import free_port
from support import wait_for
from test_watch_events import Events

SEND = """
import socket
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(100):
    try:
        sender.sendto(bytes(1000), ("10.98.0.1", 9))
    except ConnectionRefusedError:
        pass
"""


@pytest.fixture
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    with lab_of(tmp_path, getattr(request, "param", "netavark")) as one:
        one.network("lab", "--subnet", "10.99.0.0/24")
        one.network("back", "--subnet", "10.98.0.0/24")
        yield one


def peer(lab: Lab, id: str, network: str) -> str:
    """The name that `ip` inside has for the other end of a container's interface."""
    containers = json.loads(lab.run("status", "--json").stdout)["containers"]
    number = next(each for each in containers if each["id"] == id)["networks"][network]["peer"]
    links = json.loads(lab.run("enter", "--", "ip", "-json", "link").stdout)
    return next(str(link["ifname"]) for link in links if link["ifindex"] == number)


@pytest.mark.parametrize("lab", BACKENDS, indirect=True)
def test_status_graph_metrics_and_top_show_the_same_containers(lab: Lab) -> None:
    port = free_port()
    lab.setup("web", "--network", "lab", "--network", "back", "-p", f"127.0.0.1:{port}:80")
    lab.setup("db", "--network", "back")
    ends = {("web", "lab"): "eth0", ("web", "back"): "eth1", ("db", "back"): "eth0"}
    names = {key: peer(lab, *key) for key in ends}
    assert len(set(names.values())) == 3

    text = lab.run("graph").stdout
    for (id, network), interface in ends.items():
        row = next(
            line for line in text.splitlines() if f"{interface} = {names[id, network]}" in line
        )
        assert f" {id} " in row
    assert text.count(f"127.0.0.1:{port} > 80/tcp") == 3  # the host, and web on each network
    assert "another namespace" not in text
    for form in ("svg", "dot", "mermaid"):
        drawn = lab.run("graph", "--format", form).stdout
        for name in ("web", "db", *names.values()):
            assert name in drawn, form
        assert f"127.0.0.1:{port}" in drawn, form
    ElementTree.fromstring(lab.run("graph", "--format", "svg").stdout)

    # 100 packets of 1000 bytes, and nobody who answers with as many.
    path = lab.inspect("db")["SandboxKey"]
    lab.run("enter", "--", "nsenter", f"--net={path}",
            sys.executable, "-c", SEND)  # fmt: skip
    figures = lab.run("metrics").stdout
    counters = {}
    for line in figures.splitlines():
        if line.startswith("rootlessnet_container_") and "_bytes_total{" in line:
            name, _, value = line.rpartition(" ")
            counters[name] = int(value)
    seen = {}
    for way in ("receive", "transmit"):
        mine = {
            (id, network): value
            for name, value in counters.items()
            for id, network in ends
            if name.startswith(f"rootlessnet_container_{way}_")
            and f'container="{id}"' in name
            and f'network="{network}"' in name
        }
        assert set(mine) == set(ends)
        assert mine["web", "lab"] < 100_000
        seen[way] = mine["db", "back"]
    assert seen["transmit"] > 100_000 > seen["receive"]
    assert f'host_port="{port}",port="80",target="web"' in figures
    assert "rootlessnet_containers{" in figures

    # As the container counts, and each pair once.
    shown = lab.run("top", "--once", "--interval", "0.1").stdout
    assert "web" in shown and "db" in shown and str(port) in shown
    assert not [name for name in names.values() if name in shown]


def test_events_of_containers_and_their_ports(lab: Lab) -> None:
    port = free_port()
    lab.run("up")
    events = Events(lab)
    try:
        lab.setup("web", "--network", "lab", "-p", f"127.0.0.1:{port}:80")
        rule = {"proto": "tcp", "host_ip": "127.0.0.1", "host_port": port, "port": 80}
        wait_for("the setup", lambda: "container-setup" in events.names())
        wait_for("the port", lambda: "port-added" in events.names())
        added = [event for event in events.seen if event["event"] == "port-added"]
        assert [{**event, **rule, "target": "web"} for event in added] == added
        joined = events.wait("network-connected", container="web", network="lab")
        assert (joined["interface"], joined["addresses"]) == ("eth0", ["10.99.0.2/24"])

        lab.run("network", "connect", "back", "web")
        joined = events.wait("network-connected", container="web", network="back")
        assert (joined["interface"], joined["addresses"]) == ("eth1", ["10.98.0.2/24"])
        lab.run("network", "disconnect", "lab", "web")
        events.wait("network-disconnected", container="web", network="lab")

        lab.run("container", "teardown", "web")
        wait_for("the end", lambda: {"container-teardown", "port-removed"} <= set(events.names()))
        wanted = ("container-", "network-", "port-")
        told = sorted(name for name in events.names() if name.startswith(wanted))
        assert told == [
            "container-setup", "container-teardown", "network-connected", "network-connected",
            "network-disconnected", "port-added", "port-removed",
        ]  # fmt: skip
    finally:
        events.end()
        lab.run("down")


def test_a_container_that_is_killed_is_told(lab: Lab) -> None:
    """No command says so: the supervisor sees the end of its namespace."""
    lab.run("up")
    events = Events(lab)
    command = ("enter", "--", "unshare", "--net", "sh", "-c", "echo $$; exec sleep 300")
    child = lab.start(*command, stdin=subprocess.DEVNULL)
    try:
        assert child.stdout is not None
        lab.setup("web", "--pid", child.stdout.readline().strip(), "--network", "lab")
        events.wait("container-setup", container="web")
        child.kill()
        child.wait()
        events.wait("container-teardown", container="web")
    finally:
        events.end()
        child.kill()
        lab.run("down")
