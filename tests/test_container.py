"""Containers on networks: what they reach, by which names, and what a user is told."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from container_support import NETAVARK, OUTSIDE, Lab, holder_of_a_namespace
from support import PROGRAM, wait_for


def test_two_containers_find_each_other_and_the_outside(lab: Lab) -> None:
    lab.network("lab", "--subnet", "10.99.0.0/24")
    one = lab.setup("one", "--network", "lab:alias=www,alias=Web2", "--hostname", "host-one")
    two = lab.setup("two", "--network", "lab")
    assert one["Networks"]["lab"]["IPAddress"] == "10.99.0.2"
    assert one["Networks"]["lab"]["Gateway"] == "10.99.0.1"
    assert one["Networks"]["lab"]["IPPrefixLen"] == 24
    assert two["Networks"]["lab"]["IPAddress"] == "10.99.0.3"
    assert lab.answers("one", "10.99.0.3")
    assert lab.answers("two", "10.99.0.2")
    for name in ("one", "www", "web2", "host-one"):
        lab.resolves("two", name, "10.99.0.1", ["10.99.0.2"])
    lab.resolves("one", "two", "10.99.0.1", ["10.99.0.3"])
    assert lab.fetch("one", f"http://{OUTSIDE}/") == "the internet"
    if lab.has_names:
        assert OUTSIDE in lab.lookup("one", "web.internet.test", "10.99.0.1")
    # Names go with their container; one's id is a part of nobody else's.
    lab.run("container", "teardown", "two")
    # (The server is silent for a moment when it reads its files again.)
    if lab.has_names:
        wait_for("www is known", lambda: lab.lookup("one", "www", "10.99.0.1") == ["10.99.0.2"])
    lab.resolves("one", "two", "10.99.0.1", [])


@NETAVARK
def test_ids_that_are_parts_of_each_other(lab: Lab) -> None:
    lab.network("lab", "--subnet", "10.99.0.0/24")
    for id in ("aa", "aaa", "xaay"):
        lab.setup(id, "--network", "lab")
    lab.run("container", "teardown", "aa")
    assert lab.ls() == ["aaa", "xaay"]
    lab.resolves("aaa", "xaay", "10.99.0.1", ["10.99.0.4"])
    lab.resolves("xaay", "aaa", "10.99.0.1", ["10.99.0.3"])
    assert lab.used_addresses() == ["10.99.0.3", "10.99.0.4"]


def test_instance_is_there_as_long_as_its_containers(lab: Lab) -> None:
    lab.network("lab")
    lab.setup("one", "--network", "lab")
    lab.setup("two", "--network", "lab")
    document = lab.status()
    assert [(item["kind"], item["id"]) for item in document["leases"]] == [
        ("container", "one"), ("container", "two"),
    ]  # fmt: skip
    assert [item["id"] for item in document["containers"]] == ["one", "two"]
    assert re.search(r"container +one$", lab.run("ps").stdout, re.MULTILINE)
    lab.run("container", "teardown", "one")
    assert lab.status()["state"] == "running"
    lab.run("container", "teardown", "two")
    lab.wait_until_down()
    # And again, which is no error.
    lab.run("container", "teardown", "two")
    assert not lab.directory.exists()


def test_nothing_paces_tcp_of_a_container(lab: Lab) -> None:
    lab.setup("one")
    name = "/proc/sys/net/ipv4/tcp_congestion_control"
    assert lab.inside_of("one", "cat", name).stdout == lab.inside("cat", name) == "reno\n"


def test_default_network_without_names(lab: Lab) -> None:
    found = lab.setup("one")
    assert found["Networks"]["podman"]["IPAddress"] == "10.88.0.2"
    assert lab.fetch("one", f"http://{OUTSIDE}/") == "the internet"


def test_dual_stack_with_static_addresses(lab: Lab) -> None:
    lab.network("six", "--subnet", "10.99.6.0/24", "--subnet", "fd00:6::/64")
    lab.setup("any", "--network", "six")
    found = lab.setup(
        "fixed", "--network", "six:ip=10.99.6.77,ip6=fd00:6::77,mac=92:d0:c6:00:11:22",
    )["Networks"]["six"]  # fmt: skip
    assert (found["IPAddress"], found["GlobalIPv6Address"]) == ("10.99.6.77", "fd00:6::77")
    assert (found["MacAddress"], found["IPv6Gateway"]) == ("92:d0:c6:00:11:22", "fd00:6::1")
    assert lab.on("any", "six")["GlobalIPv6Address"] == "fd00:6::2"
    assert lab.answers("any", "fd00:6::77")
    lab.resolves("any", "fixed", "10.99.6.1", ["10.99.6.77", "fd00:6::77"])
    shown = lab.inside_of("fixed", "ip", "-o", "link", "show", "eth0").stdout
    assert "92:d0:c6:00:11:22" in shown
    said = lab.refused("container", "setup", "other", "--new", "--network", "six:ip=10.99.6.77")
    if lab.backend == "netavark":
        assert said == (
            "rootlessnet: set up container other: IPAM error: requested ip address 10.99.6.77 is "
            "already allocated to container ID fixed\n"
        )
    else:
        assert said.startswith("rootlessnet: set up container other: ")
        assert "requested IP address 10.99.6.77 is not available" in said
    assert lab.ls() == ["any", "fixed"]


def test_several_networks_isolated_and_internal(lab: Lab) -> None:
    lab.network("left", "--subnet", "10.99.1.0/24", "--opt", "isolate=true")
    lab.network("right", "--subnet", "10.99.2.0/24", "--opt", "isolate=true")
    lab.network("inner", "--subnet", "10.99.3.0/24", "--internal")
    lab.setup("l", "--network", "left")
    lab.setup("r", "--network", "right", "--network", "inner:interface_name=in0")
    lab.setup("i", "--network", "inner")
    assert lab.on("r", "inner")["IPAddress"] == "10.99.3.2"
    names = lab.inside_of("r", "ls", "/proc/self/net/dev_snmp6").stdout.split()
    assert {"eth0", "in0"} <= set(names)
    assert lab.answers("r", "10.99.3.3")
    assert not lab.answers("l", "10.99.2.2")
    assert lab.fetch("r", f"http://{OUTSIDE}/") == "the internet"
    assert lab.fetch("i", f"http://{OUTSIDE}/") == ""


def test_connect_and_disconnect_while_running(lab: Lab) -> None:
    lab.network("front", "--subnet", "10.99.1.0/24")
    lab.network("back", "--subnet", "10.99.2.0/24")
    lab.setup("app", "--network", "front")
    lab.setup("db", "--network", "back")
    done = lab.run(
        "network", "connect", "--ip", "10.99.2.50", "--alias", "worker",
        "--mac-address", "92:d0:c6:00:00:01", "back", "app",
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "back eth1 10.99.2.50/24"
    assert lab.answers("db", "10.99.2.50")
    lab.resolves("db", "worker", "10.99.2.1", ["10.99.2.50"])
    assert lab.refused("network", "connect", "back", "app") == (
        "rootlessnet: connect container app to network back: container app is already connected "
        "to network back: network is already connected\n"
    )
    lab.run("network", "disconnect", "back", "app")
    assert list(lab.inspect("app")["Networks"]) == ["front"]
    assert not lab.answers("db", "10.99.2.50")
    assert lab.used_addresses() == ["10.99.1.2", "10.99.2.2"]
    assert lab.refused("network", "disconnect", "back", "app") == (
        "rootlessnet: disconnect container app from network back: container app is not connected "
        "to network back\n"
    )
    assert "no such container" in lab.refused("network", "connect", "back", "nobody")


def test_reload_after_the_firewall_was_flushed(lab: Lab) -> None:
    lab.network("lab", "--subnet", "10.99.0.0/24")
    lab.setup("one", "--network", "lab")
    before = lab.on("one", "lab")
    assert lab.fetch("one", f"http://{OUTSIDE}/") == "the internet"
    lab.enter("nft", "flush", "ruleset")
    assert lab.fetch("one", f"http://{OUTSIDE}/") == ""
    lab.run("container", "reload", "one")
    assert lab.fetch("one", f"http://{OUTSIDE}/") == "the internet"
    assert lab.on("one", "lab") == before
    assert lab.used_addresses() == ["10.99.0.2"]
    lab.resolves("one", "one", "10.99.0.1", ["10.99.0.2"])


def test_namespace_of_a_process(lab: Lab) -> None:
    lab.network("lab", "--subnet", "10.99.0.0/24")
    child = holder_of_a_namespace(lab)
    found = lab.setup("proc", "--pid", str(child.pid), "--network", "lab")
    assert Path(found["SandboxKey"]).parent == lab.runtime / "netns"
    inside = lab.inside("nsenter", f"--net={found['SandboxKey']}", "readlink", "/proc/self/ns/net")
    assert inside.strip() == os.readlink(f"/proc/{child.pid}/ns/net")
    assert lab.status()["leases"][-1]["pid"] == child.pid
    assert lab.fetch("proc", f"http://{OUTSIDE}/") == "the internet"
    # When its last process ends, the container does, with all that belongs to it.
    child.kill()
    child.wait()
    lab.wait_until_down()


def test_namespace_of_a_path_that_ends(lab: Lab) -> None:
    lab.network("lab", "--subnet", "10.99.0.0/24")
    lab.setup("stays", "--network", "lab")
    child = holder_of_a_namespace(lab)
    path = f"/proc/{child.pid}/ns/net"
    lab.setup("goes", "--netns", path, "--network", "lab")
    assert lab.used_addresses() == ["10.99.0.2", "10.99.0.3"]
    child.kill()
    child.wait()
    wait_for("it is taken down", lambda: lab.ls() == ["stays"])
    wait_for("its address is free", lambda: lab.used_addresses() == ["10.99.0.2"])
    lab.resolves("stays", "goes", "10.99.0.1", [])
    assert len(lab.interfaces()) == 2  # the bridge, and one port


def test_namespace_that_ends_unseen_is_torn_down_all_the_same(lab: Lab) -> None:
    lab.network("lab", "--subnet", "10.99.0.0/24")
    child = holder_of_a_namespace(lab)
    lab.setup("goes", "--netns", f"/proc/{child.pid}/ns/net", "--network", "lab")
    lab.run("up")
    supervisor = lab.pids()["supervisor"]
    os.kill(supervisor, signal.SIGSTOP)
    try:
        child.kill()
        child.wait()
        assert lab.run("container", "teardown", "goes").stderr == ""
        assert lab.used_addresses() == []
    finally:
        os.kill(supervisor, signal.SIGCONT)
    # CNI's bridge goes with the network, and with the instance.
    assert lab.interfaces() == ({lab.bridge} if lab.backend == "cni" else set())
    lab.run("down")


REFUSED = {
    "none-such": "unable to find network with name or ID none-such: network not found",
    "lab:ip=10.1.1.1": "requested static ip 10.1.1.1 not in any subnet on network lab",
    "lab:ip=x": 'invalid ip address "x"',
    "lab:ip=10.99.0.1": "requested static ip 10.99.0.1 is the gateway of network lab",
    "lab:mac=1": "address 1: invalid MAC address",
    "lab:mac=01:00:00:00:00:01": "address 01:00:00:00:00:01: no interface can have this MAC "
    "address",
    "lab:speed=1": "unknown bridge network option: speed",
    "lab:alias=a b": "'a b' is no name for a container",
    "lab:alias=": "alias cannot be empty",
    "lab:interface_name=a/b": "interface name 'a/b': it contains /, : or white space",
    ":": "the name of the network is empty",
}


def test_what_is_refused_before_anything_is_made(lab: Lab) -> None:
    lab.network("lab", "--subnet", "10.99.0.0/24")

    def refused(*arguments: str) -> str:
        said = lab.refused("container", "setup", "c", *arguments).splitlines()[0]
        assert not lab.directory.exists()
        return said.removeprefix("rootlessnet: set up container c: ")

    for network, said in REFUSED.items():
        assert refused("--new", "--network", network) == said
    twice = ("--network", "lab", "--network", "lab")
    assert refused("--new", *twice) == "network lab is given twice"
    assert refused("--pid", "999999999") == "--pid 999999999: there is no such process"
    assert refused("--pid", "x") == "--pid x: not a process id"
    assert "one of --new, --pid and --netns" in refused("--new", "--pid", "1")


@pytest.mark.parametrize("id", ["", "../x", "a/b", "..", "-x", "a b", "a\nb", "x" * 201, "ä"])
def test_ids_that_are_none(lab: Lab, id: str) -> None:
    for command in (["setup", "--new", "--"], ["teardown", "--"]):
        done = lab.run("container", *command, id, check=False)
        assert done.returncode == 125
        assert "not an id" in done.stderr or "an argument is an empty word" in done.stderr
    assert not lab.directory.exists()


def test_namespaces_of_others_are_refused_by_name(lab: Lab, tmp_path: Path) -> None:
    hold = lab.hold()
    own, host = f"/proc/{hold.pid}/ns/net", "/proc/self/ns/net"
    (tmp_path / "file").touch()
    for path, said in (
        (own, "it is the instance's own"),
        (f"/proc/{os.getpid()}/ns/net", "it does not belong to the instance's user namespace"),
        (host, "it is the instance's own"),
        (str(tmp_path / "file"), "it is not a network namespace"),
        (str(tmp_path / "none"), "No such file or directory"),
    ):
        text = lab.refused("container", "setup", "c", "--netns", path)
        assert text.splitlines()[0] == (
            f"rootlessnet: set up container c: use the network namespace {path}: {said}"
        )
    assert lab.ls() == []
    assert lab.interfaces() == set()


def test_same_id_twice_is_refused(lab: Lab) -> None:
    lab.setup("one")
    text = lab.refused("container", "setup", "one", "--new")
    assert text.splitlines()[0] == (
        "rootlessnet: set up container one: container one is set up already"
    )
    assert lab.fetch("one", f"http://{OUTSIDE}/") == "the internet"


def test_from_inside_as_from_outside(lab: Lab) -> None:
    lab.network("lab", "--subnet", "10.99.0.0/24")
    lab.setup("outer", "--network", "lab")
    lab.enter(PROGRAM, "container", "setup", "inner", "--new", "--network", "lab")
    assert lab.enter(PROGRAM, "container", "ls", "--quiet").stdout == "inner\nouter\n"
    assert lab.answers("inner", "10.99.0.2")
    lab.enter(PROGRAM, "network", "disconnect", "lab", "outer")
    lab.enter(PROGRAM, "container", "teardown", "outer")
    assert lab.ls() == ["inner"]
    # From where no network can be changed it says so.
    done = lab.run("enter", "--keep-id", PROGRAM, "container", "setup", "x", "--new", check=False)
    assert done.returncode == 125
    assert "change networks from here: Operation not permitted" in done.stderr
    assert lab.ls() == ["inner"]


def test_joined_namespace_is_described(lab: Lab) -> None:
    lab.network("lab", "--subnet", "10.99.0.0/24", "--subnet", "fd00:5::/64")
    child = holder_of_a_namespace(lab)
    path = f"/proc/{child.pid}/ns/net"
    lab.setup("one", "--netns", path, "--network", "lab")
    known = lab.on("one", "lab")
    for option in (["--pid", str(child.pid)], ["--netns", path]):
        found = json.loads(lab.run("container", "inspect", *option).stdout)
        for key in ("IPAddress", "IPPrefixLen", "Gateway", "MacAddress", "GlobalIPv6Address"):
            assert found[key] == known[key], key
        assert found["Networks"] == {}


def test_counters_are_the_containers_own(lab: Lab) -> None:
    lab.network("lab", "--subnet", "10.99.0.0/24")
    lab.setup("one", "--network", "lab", "--network", "podman")
    before = json.loads(lab.run("container", "stats", "one", "--json").stdout)
    assert [each["name"] for each in before["interfaces"]] == ["eth0", "eth1"]
    lab.inside_of("one", "busybox", "ping", "-c3", "-i0.1", "-s1000", "10.99.0.1")
    after = json.loads(lab.run("container", "stats", "one", "--json").stdout)
    for key in ("tx_bytes", "rx_bytes"):
        assert after["interfaces"][0][key] >= before["interfaces"][0][key] + 3000
    for key in ("rx_packets", "tx_errors", "rx_bytes"):
        assert after["sum"][key] == sum(each[key] for each in after["interfaces"])


def test_lists_for_people_and_programs(lab: Lab) -> None:
    lab.network("lab", "--subnet", "10.99.0.0/24")
    lab.setup("one", "--network", "lab")
    rows = [line.split() for line in lab.run("container", "ls").stdout.splitlines()]
    assert rows[0] == ["ID", "NETWORKS", "ADDRESSES", "PORTS", "STATE", "SINCE"]
    assert rows[1][:5] == ["one", "lab", "10.99.0.2/24", "-", "ready"]
    (item,) = json.loads(lab.run("container", "ls", "--json").stdout)
    assert item["networks"]["lab"]["addresses"] == ["10.99.0.2/24"]
    form = lab.run("container", "ls", "--format", "{{.ID}}\\t{{ .Networks }} {{.Addresses}}")
    assert form.stdout == "one\tlab 10.99.0.2/24\n"
    assert "--format {{.Nothing}}" in lab.refused("container", "ls", "--format", "{{.Nothing}}")
    text = lab.run("status").stdout
    for word in ("slirp4netns", "tap0", lab.bridge, "one", "10.99.0.2/24"):
        assert word in text


def on_a_terminal(lab: Lab, *arguments: str, **environment: str) -> str:
    """What a command prints on a terminal."""
    import pty

    ours, theirs = pty.openpty()
    env = {**lab.environment, "TERM": "xterm", "COLUMNS": "100", **environment}
    try:
        done = subprocess.run(
            [PROGRAM, *arguments], env=env, stdin=subprocess.DEVNULL, stdout=theirs, check=False
        )
        assert done.returncode == 0
        return os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_lists_on_a_terminal(lab: Lab) -> None:
    lab.network("lab", "--subnet", "10.99.0.0/24")
    lab.setup("one", "--network", "lab")
    for arguments in (["container", "ls"], ["status"]):
        text = on_a_terminal(lab, *arguments)
        assert "one" in text and "10.99.0.2/24" in text
        assert "\x1b[" in text
        assert "\x1b[3" not in on_a_terminal(lab, *arguments, NO_COLOR="1")
    assert "└── " in on_a_terminal(lab, "status")


def test_namespace_of_a_user_namespace_below(lab: Lab) -> None:
    lab.network("lab", "--subnet", "10.99.0.0/24")
    child = holder_of_a_namespace(lab, "unshare", "--user", "--map-root-user")
    lab.setup("nested", "--pid", str(child.pid), "--network", "lab")
    lab.setup("other", "--network", "lab")
    assert lab.answers("other", "10.99.0.2")
    assert lab.fetch("nested", f"http://{OUTSIDE}/") == "the internet"
    lab.run("container", "teardown", "nested")
    assert lab.used_addresses() == ["10.99.0.3"]


def test_force_ends_containers_too(lab: Lab) -> None:
    lab.setup("one")
    done = lab.run("down", "--force")
    assert "took down container one\n" in done.stderr
    assert not lab.directory.exists()
