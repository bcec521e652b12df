"""Networks that containers are on: podman's and ours, their removal, and the lists of them."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from container_support import OUTSIDE, Lab
from support import PROGRAM, wait_for


def podman(lab: Lab, *arguments: str) -> str:
    done = subprocess.run(
        ["podman", "--log-level=error", *arguments], env=lab.environment,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


@pytest.fixture
def shared(lab: Lab) -> Lab:
    """A lab whose networks podman may have made too; its pause process is ended afterwards."""
    runtime = lab.home / "runtime"
    runtime.mkdir(mode=0o700)
    lab.environment["XDG_RUNTIME_DIR"] = str(runtime)
    lab.runtime = runtime
    return lab


def end_podman(lab: Lab) -> None:
    for name in ("libpod/tmp/pause.pid", "libpod/pause.pid"):
        file = lab.runtime / name
        if file.exists():
            os.kill(int(file.read_text()), 9)


def test_network_that_podman_made(shared: Lab) -> None:
    lab = shared
    try:
        podman(lab, "network", "create", "--subnet", "10.97.0.0/24", "--label", "a=b", "theirs")
        lab.setup("one", "--network", "theirs:alias=www")
        lab.setup("two", "--network", "theirs")
        assert lab.on("two", "theirs")["IPAddress"] == "10.97.0.3"
        lab.resolves("two", "www", "10.97.0.1", ["10.97.0.2"])
        assert lab.fetch("two", f"http://{OUTSIDE}/") == "the internet"
        # podman goes on to use it as its own.
        assert "theirs" in podman(lab, "network", "ls", "--quiet").split()
        podman(lab, "network", "rm", "theirs")
        # Its description may be gone: the record of the container has it.
        lab.run("container", "teardown", "one", "two")
        lab.wait_until_down()
    finally:
        end_podman(lab)


def test_the_mtu_is_that_of_the_way_out(lab: Lab) -> None:
    lab.network("small", "-o", "mtu=1400")
    lab.setup("one", "--network", "podman", "--network", "small")
    bridge = lab.bridge.replace("1", "0")

    def mtu(*command: str) -> list[int]:
        return [link["mtu"] for link in json.loads(lab.enter(*command).stdout)]

    show = ("ip", "-j", "link", "show", "dev")
    path = lab.inspect("one")["SandboxKey"]
    inside = ("nsenter", f"--net={path}", *show)
    assert mtu(*show, bridge) == mtu(*inside, "eth0") == mtu(*show, "tap0") == [20000]
    assert mtu(*inside, "eth1") == [1400]
    # What is larger than the bridge takes would be lost.
    lab.inside("ip", "link", "set", bridge, "mtu", "1500")
    lab.setup("two")
    path = lab.inspect("two")["SandboxKey"]
    assert mtu("nsenter", f"--net={path}", *show, "eth0") == mtu(*show, bridge) == [1500]


def test_removal_by_force_disconnects(lab: Lab) -> None:
    lab.network("keep", "--subnet", "10.99.1.0/24")
    lab.network("gone", "--subnet", "10.99.2.0/24")
    lab.setup("both", "--network", "keep", "--network", "gone")
    lab.setup("one", "--network", "gone")
    text = lab.refused("network", "rm", "gone")
    assert text == (
        'rootlessnet: remove networks: "gone" has associated containers with it: both, one: '
        "network is being used\n"
    )
    assert lab.run("network", "rm", "--force", "gone").stdout == "gone\n"
    assert list(lab.inspect("both")["Networks"]) == ["keep"]
    assert lab.inspect("one")["Networks"] == {}
    assert lab.used_addresses() == ["10.99.1.2"]
    assert lab.fetch("both", f"http://{OUTSIDE}/") == "the internet"
    assert lab.bridge.replace("1", "2") not in lab.interfaces()


def test_removal_takes_an_unused_bridge_along(lab: Lab) -> None:
    """CNI's plugin leaves it; a bridge that has a port is somebody's."""
    lab.network("left", "--interface-name", "left0")
    lab.network("used", "--interface-name", "used0")
    lab.run("up")
    lab.enter("sh", "-ec", "ip link add left0 type bridge; ip link add used0 type bridge; "
              "ip link add p type veth; ip link set p master used0")  # fmt: skip
    lab.run("network", "rm", "left", "used")
    assert "left0" not in lab.interfaces()
    assert "used0" in lab.interfaces()
    lab.enter("ip", "link", "delete", "p")
    lab.run("down")


def test_filters_and_formats(lab: Lab) -> None:
    lab.network("blue", "--label", "colour=blue")
    lab.network("green", "--label", "colour=green", "--internal")
    lab.setup("c", "--network", "green")

    def listed(*options: str) -> list[str]:
        return lab.run("network", "ls", "--quiet", *options).stdout.split()

    assert listed("--filter", "name=^bl") == ["blue"]
    assert listed("--filter", "name=blue", "--filter", "name=green") == ["blue", "green"]
    assert listed("--filter", "label=colour") == ["blue", "green"]
    assert listed("--filter", "label=colour=green") == ["green"]
    assert listed("--filter", "driver=macvlan") == []
    assert listed("--filter", "dangling=true") == ["blue", "podman"]
    assert listed("--filter", "dangling=false") == ["green"]
    identity = json.loads(lab.run("network", "inspect", "blue").stdout)[0]["id"]
    assert listed("--filter", f"id={identity[:8]}") == ["blue"]
    assert lab.refused("network", "ls", "--filter", "x=y") == (
        'rootlessnet: list the networks: invalid filter "x"\n'
    )
    form = ("--filter", "name=green", "--format", "{{.Name}} {{.Driver}} {{.Internal}}")
    assert lab.run("network", "ls", *form).stdout == "green bridge true\n"


def test_library_does_what_the_commands_do(lab: Lab) -> None:
    code = (
        "import threading\n"
        "from rootlessnet.networks import api\n"
        "from rootlessnet.networks.connection import Connection\n"
        "from rootlessnet.networks.network import Network\n"
        "import os\n"
        "before = os.readlink('/proc/self/ns/net')\n"
        "api.create(Network('lab'))\n"
        "api.setup('web', [Connection('lab', aliases=['www'])], new=True)\n"
        "api.connect('web', Connection('podman'))\n"
        "print(sorted(api.inspect_container('web')['Networks']))\n"
        "print([each['id'] for each in api.list_containers()], api.stats('web')['id'])\n"
        "api.reload('web'); api.disconnect('web', 'lab'); api.teardown('web')\n"
        "api.remove('lab')\n"
        "assert os.readlink('/proc/self/ns/net') == before\n"
    )
    python = os.path.join(os.path.dirname(os.path.realpath(PROGRAM)), "python")
    done = subprocess.run(
        [python, "-c", code], env=lab.environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("['lab', 'podman']\n['web'] web\n", "")
    wait_for("it is down", lambda: not lab.directory.exists())


def test_umask_that_forbids_everything_is_harmless(shared: Lab) -> None:
    script = (
        f"umask 777; set -e; {PROGRAM} network create --subnet 10.96.0.0/24 lab;"
        f"{PROGRAM} container setup c --new --network lab"
    )
    done = subprocess.run(
        ["sh", "-c", script], env=shared.environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["lab", "lab eth0 10.96.0.2/24"]
    assert shared.run("network", "ls", "--quiet").stdout.split() == ["lab", "podman"]


def test_network_that_podman_removes_under_a_container(shared: Lab) -> None:
    """podman knows nothing of our containers. No address is had twice all the same."""
    lab = shared
    lab.run("up")
    create = ("network", "create", "--subnet")
    lab.run(*create, "10.97.0.0/24", "lab")
    first = lab.setup("a", "--network", "lab")["Networks"]["lab"]["IPAddress"]
    try:
        podman(lab, "network", "prune", "--force")
        if lab.backend == "netavark":
            lab.run("container", "reload", "a")
        else:
            assert "network lab: network not found" in lab.refused("container", "reload", "a")
        assert lab.on("a", "lab")["IPAddress"] == first
        # Ours stay clear of it; podman's may not.
        assert lab.refused(*create, "10.97.0.0/24", "two") == (
            "rootlessnet: create network two: subnet 10.97.0.0/24 is already used on the host or "
            "by another config\n"
        )
        lab.run(*create, "10.98.0.0/24", "two")
        lab.setup("b", "--network", "two")
        podman(lab, "network", "create", "--subnet", "10.97.0.0/24", "three")
        said = lab.refused("network", "connect", "three", "b")
        assert said.startswith(
            "rootlessnet: connect container b to network three: network three: container a has "
            "10.97.0.0/24 by network lab\n  hint: "
        )
        lab.run("container", "teardown", "a")
        lab.run("network", "connect", "three", "b")
    finally:
        end_podman(lab)
