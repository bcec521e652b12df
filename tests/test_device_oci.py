"""linux.netDevices of an OCI bundle, applied to a network namespace."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from device_support import World

from rootlessnet.devices import loopback, oci
from rootlessnet.errors import Error, reason

NETWORK = [{"type": "pid"}, {"type": "network"}]


def bundle(path: Path, devices: Any, namespaces: Any = NETWORK) -> str:
    linux = {"namespaces": namespaces, "netDevices": devices}
    (path / "config.json").write_text(json.dumps({"ociVersion": "1.3.0", "linux": linux}))
    return str(path)


def apply(world: World, path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return world.device("apply", "--bundle", path, world.container.path, *arguments)


def test_apply(world: World, tmp_path: Path) -> None:
    world.add_device("rndev1", "02:00:00:00:00:11")
    world.add_device("rndev2", "02:00:00:00:00:12")
    world.host.ip("addr add 192.0.2.7/24 dev rndev0")
    devices = {"rndev0": {}, "rndev1": {"name": "eth%d"}, "rndev2": {"name": "eth%d"}}
    done = apply(world, bundle(tmp_path, devices))
    assert (done.stdout, done.stderr) == ("rndev0 rndev0\nrndev1 eth0\nrndev2 eth1\n", "")
    links = world.container.links()
    assert sorted(links) == ["eth0", "eth1", "rndev0"]
    assert links["rndev0"]["addresses"] == ["192.0.2.7/24"]
    assert world.host.links() == {}


def test_json(world: World, tmp_path: Path) -> None:
    done = apply(world, bundle(tmp_path, {"rndev0": {"name": "eth0"}}), "--json")
    assert json.loads(done.stdout) == [{"device": "rndev0", "name": "eth0"}]


@pytest.mark.parametrize(("path", "is_up"), [("", True), ("/run/netns/x", False)])
def test_loopback_is_brought_up_where_the_network_is_private(
    world: World, tmp_path: Path, path: str, is_up: bool
) -> None:
    namespaces = [{"type": "network", "path": path}]
    assert apply(world, bundle(tmp_path, {}, namespaces)).returncode == 0
    lo = json.loads(world.container.run("ip", "-j", "link", "show", "lo").stdout)[0]
    assert ("UP" in lo["flags"]) is is_up


def test_unknown_strategy() -> None:
    with pytest.raises(Error, match=r'^unknown strategy type "veth"$'):
        loopback.strategy("veth")


def test_all_are_checked_before_the_first_moves(world: World, tmp_path: Path) -> None:
    world.host.ip("link set rndev0 up", "addr add 192.0.2.7/24 dev rndev0")
    before = world.host.links()
    index = world.host.run("ip", "-o", "link", "show", "rndev0").stdout
    done = apply(world, bundle(tmp_path, {"rndev0": {}, "rnnone": {}}))
    error = "rootlessnet: move rnnone: there is no such device\n"
    assert (done.stdout, done.stderr, done.returncode) == ("", error, 125)
    assert world.host.links() == before
    assert world.host.run("ip", "-o", "link", "show", "rndev0").stdout == index


def test_earlier_moves_are_undone(world: World, tmp_path: Path) -> None:
    """Both names are free when they are checked; then the first device takes the second's."""
    world.add_device("rndev1", "02:00:00:00:00:11")
    world.host.ip(
        "link set rndev0 up",
        "addr add 192.0.2.7/24 dev rndev0",
        "addr add 2001:db8:1::7/64 dev rndev0",
        "addr add 192.0.2.8/24 dev rndev1",
    )
    before = world.host.links()
    done = apply(world, bundle(tmp_path, {"rndev0": {"name": "eth%d"}, "rndev1": {"name": "eth0"}}))
    error = "rootlessnet: move rndev1: the name eth0 is taken there\n"
    assert (done.stdout, done.stderr, done.returncode) == ("", error, 125)
    assert world.host.links() == before
    assert world.container.links() == {}


@pytest.mark.parametrize(
    ("devices", "namespaces", "error"),
    [
        ({"eth0": {}}, [], "unable to move network devices without a NET namespace"),
        (
            {"a234567890123456": {}},
            NETWORK,
            "invalid network device name 'a234567890123456': it is longer than 15 bytes",
        ),
        ({"": {}}, NETWORK, "invalid network device name '': it is empty"),
        ({".": {}}, NETWORK, "invalid network device name '.': it is . or .."),
        (
            {"eth0": {"name": "a b"}},
            NETWORK,
            "invalid network device name 'a b': it contains /, : or white space",
        ),
        (
            {"eth0": {"name": "x"}, "eth1": {"name": "x"}},
            NETWORK,
            "two network devices are to be named 'x'",
        ),
        (
            {"eth0": {"name": "eth1"}, "eth1": {}},
            NETWORK,
            "two network devices are to be named 'eth1'",
        ),
        ({"eth0": {"name": 1}}, NETWORK, "linux.netDevices.eth0.name is not a string"),
        ({"eth0": 1}, NETWORK, "linux.netDevices.eth0 is not an object"),
        ([], NETWORK, "linux.netDevices is not an object"),
        ({}, {}, ""),
    ],
)
def test_validation(tmp_path: Path, devices: Any, namespaces: Any, error: str) -> None:
    path = bundle(tmp_path, devices, namespaces)
    if not error:
        assert oci.read(path).devices == {}
        return
    with pytest.raises(Error) as caught:
        oci.read(path)
    assert reason(caught.value) == f"read {path}/config.json: {error}"


def test_device_that_is_there_twice(tmp_path: Path) -> None:
    text = '{"linux": {"namespaces": [], "netDevices": {"eth0": {}, "eth0": {}}}}'
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(Error) as caught:
        oci.read(str(tmp_path))
    assert reason(caught.value) == f"read {tmp_path}/config.json: 'eth0' is there twice"


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(Error) as caught:
        oci.read(str(tmp_path))
    assert reason(caught.value) == (
        f"read the bundle {tmp_path}: {tmp_path}/config.json: No such file or directory"
    )


def test_no_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(Error) as caught:
        oci.read(str(tmp_path))
    assert reason(caught.value).startswith(f"read {tmp_path}/config.json: Expecting property name")
