"""Counters, from the container's point of view."""

from __future__ import annotations

import json
from typing import Any

from device_support import World

KEYS = [
    "name",
    *(
        f"{way}_{what}"
        for way in ("rx", "tx")
        for what in ("bytes", "packets", "errors", "dropped")
    ),
]


def connect(world: World) -> None:
    """A veth pair, rnveth0 on the host and eth0 in the container, that some packets crossed."""
    world.host.ip(
        "link add rnveth0 type veth peer name rnveth1",
        "addr add 192.0.2.1/24 dev rnveth0",
        "link set rnveth0 up",
    )
    assert world.device("move", "rnveth1", world.container.path, "--name", "eth0").returncode == 0
    world.container.ip("addr add 192.0.2.2/24 dev eth0")
    # Ours to send, so that the two directions differ: an UDP packet that nobody answers.
    world.container.run("bash", "-c", "echo hello > /dev/udp/192.0.2.1/9")


def counters(world: World, name: str) -> dict[str, dict[str, int]]:
    shown = json.loads(world.host.run("ip", "-j", "-s", "link", "show", name).stdout)
    stats: dict[str, dict[str, int]] = shown[0]["stats64"]
    return stats


def test_stats(world: World) -> None:
    connect(world)
    # Neighbour discovery may add a packet at any time: what we saw lies between two looks.
    before = counters(world, "rnveth0")
    result: dict[str, Any] = json.loads(world.device("stats", "rnveth0", "--json").stdout)
    after = counters(world, "rnveth0")
    assert list(result) == KEYS
    assert result["name"] == "rnveth0"
    for here, there in (("rx", "tx"), ("tx", "rx")):
        for what in ("bytes", "packets", "errors", "dropped"):
            assert before[here][what] <= result[f"{there}_{what}"] <= after[here][what]
    assert result["tx_packets"] > 0


def test_table(world: World) -> None:
    lines = [line.split() for line in world.device("stats", "rndev0").stdout.splitlines()]
    assert lines == [
        ["NAME", "BYTES", "PACKETS", "ERRORS", "DROPPED"],
        ["rndev0", "rx", "0", "0", "0", "0"],
        ["rndev0", "tx", "0", "0", "0", "0"],
    ]


def test_empty_name(world: World) -> None:
    done = world.device("stats", "", "--json")
    assert json.loads(done.stdout) == {key: "" if key == "name" else 0 for key in KEYS}
    assert done.returncode == 0


def test_no_such_device(world: World) -> None:
    done = world.device("stats", "rnnone", "--json")
    error = "rootlessnet: read the counters of rnnone: there is no such device\n"
    assert (done.stdout, done.stderr, done.returncode) == ("", error, 125)
