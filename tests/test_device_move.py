"""Devices given to another network namespace, by `rootlessnet device move`."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from device_support import DEVICE, IFNAME, MAC, Namespace, World

from rootlessnet.devices import names

NOT_OURS = "a device moves only between network namespaces that our user namespace owns"


def move(world: World, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return world.device("move", name, world.container.path, *arguments)


def look(place: Namespace) -> dict[str, Any]:
    routes = [route for route in place.routes() if "rn" in route or IFNAME in route]
    return {"links": place.links(), "routes": routes}


def dress(world: World) -> dict[str, Any]:
    """Addresses of every kind, routes, MTU, alias; returns how the host looks."""
    world.host.ip(
        f"link set {DEVICE} mtu 1400",
        f"link set {DEVICE} alias uplink",
        f"link set {DEVICE} up",
        f"addr add 192.0.2.7/24 brd + dev {DEVICE} label {DEVICE}:1",
        f"addr add 192.0.2.8/24 dev {DEVICE} valid_lft 3600 preferred_lft 1800",
        f"addr add 192.0.2.9/32 peer 192.0.2.10/32 dev {DEVICE}",
        f"addr add 203.0.113.11/24 scope host dev {DEVICE}",
        f"addr add 2001:db8:1::7/64 dev {DEVICE}",
        f"addr add 2001:db8:1::8/64 dev {DEVICE} valid_lft 3600 preferred_lft 1800",
        f"addr add fe80::77/64 dev {DEVICE}",
        f"route add 198.51.100.0/24 via 192.0.2.1 dev {DEVICE}",
    )
    return look(world.host)


def test_move(world: World) -> None:
    dress(world)
    done = move(world, DEVICE, "--name", IFNAME)
    assert (done.stdout, done.stderr, done.returncode) == (f"{IFNAME}\n", "", 0)
    assert world.host.links() == {}
    assert world.container.links() == {
        IFNAME: {
            "up": True,
            "mac": MAC,
            "mtu": 1400,
            "alias": "uplink",
            "master": "",
            # Not those with a lifetime, and not the one of scope host.
            "addresses": ["192.0.2.7/24", "192.0.2.9/32", "2001:db8:1::7/64"],
        }
    }
    shown = json.loads(world.container.run("ip", "-j", "addr", "show", IFNAME).stdout)
    by_address = {address["local"]: address for address in shown[0]["addr_info"]}
    assert by_address["192.0.2.7"]["broadcast"] == "192.0.2.255"
    assert by_address["192.0.2.7"]["label"] == IFNAME
    assert by_address["192.0.2.9"]["address"] == "192.0.2.10"
    assert "fe80::77" not in by_address


def test_same_name(world: World) -> None:
    done = move(world, DEVICE)
    assert (done.stdout, done.stderr, done.returncode) == (f"{DEVICE}\n", "", 0)
    assert world.container.links()[DEVICE]["up"]


def test_device_that_was_down_comes_up(world: World) -> None:
    assert not world.host.links()[DEVICE]["up"]
    move(world, DEVICE)
    assert world.container.links()[DEVICE]["up"]


def test_veth(world: World) -> None:
    world.host.ip(
        "link add rnveth0 type veth peer name rnveth1",
        "addr add 2001:db8:1::7/64 dev rnveth0",
        "link set rnveth0 up",
        "link set rnveth1 up",
    )
    assert move(world, "rnveth0").stdout == "rnveth0\n"
    assert world.container.links()["rnveth0"]["addresses"] == ["2001:db8:1::7/64"]


def test_pattern(world: World) -> None:
    world.container.ip("link add eth0 type ifb", "link add eth2 type ifb")
    assert move(world, DEVICE, "--name", "eth%d").stdout == "eth1\n"
    world.add_device()
    assert move(world, DEVICE, "--name", "eth%d").stdout == "eth3\n"


def test_pattern_sees_alternative_names(world: World) -> None:
    world.container.ip("link add x0 type ifb", "link property add dev x0 altname eth0")
    assert move(world, DEVICE, "--name", "eth%d").stdout == "eth1\n"


def test_namespace_without_ipv6_addresses(world: World) -> None:
    world.container.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
    world.host.ip(f"link set {DEVICE} up", f"addr add 2001:db8:1::7/64 dev {DEVICE}")
    assert move(world, DEVICE).returncode == 0
    assert world.container.links()[DEVICE]["addresses"] == ["2001:db8:1::7/64"]


# --- refusals: nothing changes ---


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("lo", [], "move lo: a loopback device cannot leave its network namespace"),
        ("rnbr0", [], "move rnbr0: a bridge device cannot leave its network namespace"),
        ("rnnone", [], "move rnnone: there is no such device"),
        (DEVICE, ["--name", "taken"], f"move {DEVICE}: the name taken is taken there"),
        (DEVICE, ["--name", "other"], f"move {DEVICE}: the name other is taken there"),
        (
            DEVICE,
            ["--name", "a234567890123456"],
            f"move {DEVICE}: the name 'a234567890123456' is not valid: it is longer than 15 bytes",
        ),
        (
            DEVICE,
            ["--name", "a b"],
            f"move {DEVICE}: the name 'a b' is not valid: it contains /, : or white space",
        ),
        (DEVICE, ["--name", ".."], f"move {DEVICE}: the name '..' is not valid: it is . or .."),
        (
            DEVICE,
            ["--name", "a%d%d"],
            f"move {DEVICE}: the name 'a%d%d' is not valid: only one %d may stand in it",
        ),
        (
            DEVICE,
            ["--name", "a%s"],
            f"move {DEVICE}: the name 'a%s' is not valid: only one %d may stand in it",
        ),
        (
            DEVICE,
            ["--name", "a2345678901234%d"],
            f"move {DEVICE}: the name 'a2345678901234%d' is not valid: it is longer than 15 bytes",
        ),
    ],
)
def test_refused(world: World, name: str, arguments: list[str], error: str) -> None:
    world.host.ip("link add rnbr0 type bridge")
    world.container.ip("link add taken type ifb", "link property add dev taken altname other")
    before = dress(world)
    done = move(world, name, *arguments)
    assert (done.stdout, done.stderr, done.returncode) == ("", f"rootlessnet: {error}\n", 125)
    assert look(world.host) == before


def test_bad_namespaces(world: World, tmp_path: Path) -> None:
    plain = tmp_path / "file"
    plain.touch()
    for path, error in (
        ("/nowhere/net", "/nowhere/net: No such file or directory"),
        ("rn-none", "/run/netns/rn-none: No such file or directory"),
        (str(plain), f"{plain}: not a network namespace"),
        ("/proc/self/ns/mnt", "/proc/self/ns/mnt: not a network namespace"),
    ):
        done = world.device("move", DEVICE, path)
        message = f"rootlessnet: open the network namespace: {error}\n"
        assert (done.stdout, done.stderr, done.returncode) == ("", message, 125)
    done = world.device("move", DEVICE, "/proc/self/ns/net")
    message = f"rootlessnet: move {DEVICE}: it is in that network namespace already\n"
    assert (done.stderr, done.returncode) == (message, 125)


def test_namespace_that_is_not_ours(tmp_path: Path) -> None:
    world = World(tmp_path, as_root=False)
    try:
        world.add_device()
        before = dress(world)
        inner = """
            exec 3< <(exec unshare -n sh -c 'echo $$; exec sleep 60')
            read -r pid <&3
            "$@" /proc/$pid/ns/net
            status=$?
            kill "$pid"
            exit $status
        """
        command = [sys.executable, "-m", "rootlessnet", "device", "move", DEVICE]
        done = world.host.run(
            *("unshare", "-Ur", "bash", "-c", inner, "bash", *command), check=False
        )
        assert done.stderr == (
            f"rootlessnet: move {DEVICE}: {NOT_OURS}: Operation not permitted\n"
            "  hint: `rootlessnet enter` and `podman unshare` are where both can be ours\n"
        )
        assert done.returncode == 125
        assert look(world.host) == before
    finally:
        world.end()


# --- failures on the way: everything is undone ---


def move_patched(world: World, patch: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(patch) + textwrap.dedent(
        """
        import sys
        from rootlessnet.__main__ import main
        sys.exit(main())
        """
    )
    command = [
        sys.executable,
        "-c",
        code,
        "device",
        "move",
        DEVICE,
        world.container.path,
        *arguments,
    ]
    return world.host.run(*command, check=False)


BLIND = """
    from rootlessnet.devices import links
    get, calls = links.Links.get, []
    def blind(self, name, **options):
        if name == "eth0" and not calls:
            calls.append(name)
            return None
        return get(self, name, **options)
    links.Links.get = blind
"""
FAILING = """
    from rootlessnet.devices import links, netlink
    def fail(self, *arguments, **options):
        if not {when}:
            return original(self, *arguments, **options)
        links.Links.{method} = original
        raise netlink.LinkError(16)
    original = links.Links.{method}
    links.Links.{method} = fail
"""


def test_lost_race_for_the_name(world: World) -> None:
    """Taken between the look and the move: then the kernel moves the device all the same."""
    world.container.ip(f"link add {IFNAME} type ifb")
    before = dress(world)
    done = move_patched(world, BLIND, "--name", IFNAME)
    error = f"rootlessnet: move {DEVICE}: the name {IFNAME} is taken there\n"
    assert (done.stdout, done.stderr, done.returncode) == ("", error, 125)
    assert look(world.host) == before
    assert list(world.container.links()) == [IFNAME]


def test_lost_race_for_a_number(world: World) -> None:
    world.container.ip("link add eth0 type ifb")
    dress(world)
    patch = """
        from rootlessnet.devices import links
        links.Links.all = lambda self, **options: []
    """
    assert move_patched(world, patch, "--name", "eth%d").stdout == "eth1\n"
    assert world.container.links()["eth1"]["addresses"] == [
        "192.0.2.7/24",
        "192.0.2.9/32",
        "2001:db8:1::7/64",
    ]


@pytest.mark.parametrize(
    "patch",
    [
        FAILING.format(method="set_up", when="True"),
        FAILING.format(method="add_again", when="arguments[1].family == 10"),
        FAILING.format(method="move", when="True"),
    ],
    ids=["up", "address", "move"],
)
def test_failure_is_undone(world: World, patch: str) -> None:
    world.host.ip("link add rnbr0 type bridge", f"link set {DEVICE} master rnbr0")
    before = dress(world)
    assert before["links"][DEVICE]["master"] == "rnbr0"
    done = move_patched(world, patch, "--name", IFNAME)
    error = f"rootlessnet: move {DEVICE}: Device or resource busy\n"
    assert (done.stdout, done.stderr, done.returncode) == ("", error, 125)
    assert look(world.host) == before
    assert world.container.links() == {}


def test_device_that_cannot_come_back_is_reported(world: World) -> None:
    patch = (
        FAILING.format(method="set_up", when="True")
        + """
    original_carry = None
    from rootlessnet.devices import move
    carry = move.carry
    def once(*arguments):
        move.carry = lose
        return carry(*arguments)
    def lose(*arguments):
        raise netlink.LinkError(17)
    move.carry = once
    """
    )
    done = move_patched(world, patch)
    assert done.stderr == (
        f"rootlessnet: warning: {DEVICE} could not be brought back: File exists\n"
        f"rootlessnet: move {DEVICE}: Device or resource busy\n"
    )
    assert list(world.container.links()) == [DEVICE]


# --- names ---


@pytest.mark.parametrize("name", ["a", "a23456789012345", "eth0.1", "ünïcøde0", "%d", "a%b"])
def test_good_names(world: World, name: str) -> None:
    """What we take, the kernel takes too; and the other way round below."""
    assert names.problem(name) == ""
    if "%" not in name:
        world.container.ip(f"link add name {name} type ifb")


@pytest.mark.parametrize(
    "name", ["a234567890123456", ".", "..", "a/b", "a:b", "ab\u00e0", "aéîôûà"]
)
def test_bad_names(world: World, name: str) -> None:
    assert names.problem(name)
    done = world.container.run("ip", "link", "add", "name", name, "type", "ifb", check=False)
    assert done.returncode != 0


def test_resolve() -> None:
    assert names.resolve("eth%d", {"eth0", "eth2"}) == "eth1"
    assert names.resolve("%d", set()) == "0"
    assert names.resolve("a234567890123%d", {f"a234567890123{n}" for n in range(100)}) == ""


# --- the command line ---


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["move"], "device move: too few arguments: device move DEVICE NETNS [--name NEW]"),
        (["move", "a", "b", "c"], "unexpected argument c"),
        (
            ["move", "a", "b", "--name="],
            "option --name needs a value, not an empty one: --name NEW",
        ),
        (["move", "a", "b", "--colour"], "unknown option --colour"),
        (["apply", "a"], "device apply: no bundle is given: --bundle DIR"),
        (["stats"], "device stats: too few arguments: device stats DEVICE [--json]"),
    ],
)
def test_usage(arguments: list[str], error: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rootlessnet", "device", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    hint = "  hint: rootlessnet --help shows the commands and their options\n"
    message = f"rootlessnet: {error}\n{hint}"
    assert (done.stdout, done.stderr, done.returncode) == ("", message, 125)


def test_usage_errors_and_help_import_no_pyroute2() -> None:
    code = (
        "import sys\n"
        "from rootlessnet.cli import device\n"
        "from rootlessnet.errors import UsageError\n"
        "for argv in (['-h'], ['move', '-h'], ['fly'], ['move'], ['apply', 'x'], ['stats']):\n"
        "    try:\n"
        "        device.main(argv)\n"
        "    except UsageError:\n"
        "        pass\n"
        "assert not {'pyroute2', 'socket', 'json', 'ctypes'} & set(sys.modules), sys.modules\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True)


def test_ls(world: World) -> None:
    dress(world)
    assert move(world, DEVICE, "--name", IFNAME).returncode == 0
    done = world.device("ls", world.container.path, "--json")
    devices = {device["name"]: device for device in json.loads(done.stdout)}
    index = devices[IFNAME].pop("index")
    assert index > 1
    addresses = devices[IFNAME].pop("addresses")
    assert addresses[:2] == ["192.0.2.7/24", "192.0.2.9/32"]
    assert "2001:db8:1::7/64" in addresses
    assert devices[IFNAME] == {
        "name": IFNAME,
        "kind": "ifb",
        "mac": MAC,
        "mtu": 1400,
        "up": True,
        "alias": "uplink",
    }
    lines = world.device("ls", world.container.path).stdout.splitlines()
    assert lines[0].split() == ["NAME", "KIND", "STATE", "MTU", "MAC", "ADDRESSES"]
    assert lines[2].split()[:6] == [IFNAME, "ifb", "up", "1400", MAC, "192.0.2.7/24"]
