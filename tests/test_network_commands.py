"""rootlessnet network: both programs on the same networks, refusals, tables and JSON."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import subprocess
import threading
import time
from pathlib import Path

import pytest
from network_support import BACKENDS, Home, error_of
from network_support import chosen as chosen
from network_support import home as home
from support import PROGRAM

Chosen = tuple[Home, str]


def test_what_podman_made_is_ours_too(chosen: Chosen) -> None:
    home, _ = chosen
    home.podman("network", "create", "--label", "a=b", "--subnet", "10.201.0.0/24", "theirs")
    shown = home.podman("network", "inspect", "theirs").stdout
    assert home.run("inspect", "theirs").stdout == shown
    identity = json.loads(shown)[0]["id"]
    assert home.run("inspect", identity[:12]).stdout == shown
    assert [item["name"] for item in home.json("ls", "--json")] == ["podman", "theirs"]
    done = home.run("create", "again", "--subnet", "10.201.0.0/25", check=False)
    assert done.stderr == (
        "rootlessnet: create network again: "
        "subnet 10.201.0.0/25 is already used on the host or by another config\n"
    )
    assert home.run("rm", "theirs").stdout == "theirs\n"
    assert home.podman("network", "ls", "-q").stdout == "podman\n"


def test_what_we_made_is_podmans_too(chosen: Chosen) -> None:
    home, _ = chosen
    assert home.run("create", "ours", "--ipv6", "--opt", "mtu=1400", "--label", "x=<y>").stdout == (
        "ours\n"
    )
    shown = home.run("inspect", "ours").stdout
    assert home.podman("network", "inspect", "ours").stdout == shown
    done = home.podman("network", "create", "ours", check=False)
    assert error_of(done.stderr) == "network name ours already used: network already exists"
    home.podman("network", "rm", "ours")
    assert home.run("ls", "--quiet").stdout == "podman\n"


def test_a_container_of_podmans_uses_what_we_made(chosen: Chosen) -> None:
    """podman reads the network for it; and as long as it is there, the network is in use."""
    home, _ = chosen
    home.run("create", "used")
    home.run("create", "unused")
    root = home.path / "root"
    root.mkdir()
    home.podman(
        "create", "--name", "c", "--network", "used", "--rootfs", str(root), "sh"
    )  # fmt: skip
    identity = home.podman("ps", "-aq").stdout.strip()
    done = home.run("rm", "used", check=False)
    assert done.returncode == 125
    assert done.stderr == (
        'rootlessnet: remove networks: "used" has associated containers with it: '
        f"{identity}: network is being used\n"
    )
    assert home.run("prune").stdout == "unused\n"
    assert home.run("ls", "-q").stdout == "podman\nused\n"
    home.podman("rm", "c")
    assert home.run("prune").stdout == "used\n"
    assert home.podman("network", "ls", "-q").stdout == "podman\n"


def test_networks_of_our_containers_are_kept(chosen: Chosen) -> None:
    home, _ = chosen
    home.run("create", "used")
    home.run("create", "unused")
    records = home.runtime / "rootlessnet/rootless-netns-00000000000000000000/containers"
    records.mkdir(parents=True)
    for directory in (records, *records.parents[:2]):
        directory.chmod(0o700)
    (records / "c1").write_text('{"networks": {"used": {}}}')
    done = home.run("rm", "used", "unused", check=False)
    assert (done.returncode, done.stdout) == (125, "unused\n")
    assert done.stderr == (
        'rootlessnet: remove networks: "used" has associated containers with it: c1: '
        "network is being used\n"
    )
    home.run("create", "unused")
    assert home.run("prune").stdout == "unused\n"
    # Whose networks are not known may use any.
    (records / "c1").write_text("damaged")
    assert home.run("prune").stdout == ""
    (records / "c1").unlink()
    assert home.json("prune", "--json") == ["used"]


@pytest.mark.root
@pytest.mark.parametrize("backend", BACKENDS)
def test_roots_networks(tmp_path: Path, backend: str) -> None:
    """In root's directories, but for the storage."""
    home = Home(tmp_path, backend)
    conf = tmp_path / "storage.conf"
    conf.write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{tmp_path}/graph"\nrunroot = "{tmp_path}/run"\n'
    )
    home.environment["CONTAINERS_STORAGE_CONF"] = str(conf)
    directory = "/etc/cni/net.d" if backend == "cni" else "/etc/containers/networks"
    assert home.json("backend", "--json")["network_dir"] == directory
    home.podman("network", "create", "theirs")
    home.run("create", "ours")
    shown = home.podman("network", "inspect", "theirs", "ours").stdout
    assert home.run("inspect", "theirs", "ours").stdout == shown
    assert home.run("rm", "theirs").stdout == "theirs\n"
    assert home.podman("network", "rm", "ours").stdout == "ours\n"


def test_default_network_is_not_removed(chosen: Chosen) -> None:
    home, _ = chosen
    done = home.run("rm", "podman", check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == (
        "rootlessnet: remove networks: default network podman cannot be removed\n"
    )
    assert home.run("prune").stdout == ""


def test_rm_goes_on_after_a_failure(chosen: Chosen) -> None:
    home, _ = chosen
    home.run("create", "left")
    home.run("create", "right")
    done = home.run("rm", "left", "nope", "right", check=False)
    assert (done.returncode, done.stdout) == (125, "left\nright\n")
    assert done.stderr == (
        "rootlessnet: remove networks: unable to find network with name or ID nope: "
        "network not found\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "a b"], "create network a b: network name a b invalid: names must match "
                            "[a-zA-Z0-9][a-zA-Z0-9_.-]*: invalid argument"),
        (["create", "x", "--subnet", "nonsense"],
         "create network x: invalid CIDR address: nonsense"),
        (["create", "x", "--driver", "foo"],
         "create network x: unsupported driver foo: invalid argument"),
        (["create", "x", "--opt", "foo=1"],
         "create network x: unsupported {} option foo"),
        (["create", "x", "--interface-name", "sixteen-letters-"],
         "create network x: network interface name sixteen-letters- invalid: interface name is too "
         "long: interface names must be 15 characters or less: invalid argument"),
        (["create", "x", "--interface-name", "a b"],
         "create network x: bridge name a b invalid: names must match "
         "[a-zA-Z0-9][a-zA-Z0-9_.-]*: invalid argument"),
        (["create", "x", "y"], "unexpected argument y"),
        (["create", "--frob"], "unknown option --frob"),
        (["inspect"], "network inspect: no network is named: network inspect NETWORK..."),
    ],
)  # fmt: skip
def test_what_is_refused_changes_nothing(
    chosen: Chosen, arguments: list[str], message: str
) -> None:
    home, backend = chosen
    before = home.tree()
    done = home.run(*arguments, check=False)
    assert (done.returncode, done.stdout) == (125, "")
    kind = "network" if backend == "cni" else "bridge network"
    assert done.stderr.splitlines()[0] == f"rootlessnet: {message.format(kind)}"
    assert home.tree() == before


def test_refused_in_a_fresh_home_leaves_no_choice_behind(home: Home) -> None:
    assert home.run("create", "x", "--subnet", "10.88.0.0/16", check=False).returncode == 125
    assert home.tree() == {}


def test_dns_servers(chosen: Chosen) -> None:
    """podman has the option from 4.5 on, and 4.3 can still use the network."""
    home, backend = chosen
    if backend == "cni":
        done = home.run("create", "left", "--dns", "192.0.2.1", check=False)
        assert done.stderr == (
            "rootlessnet: create network left: NetworkDNSServers cannot be configured for backend "
            "CNI: invalid argument\n"
        )
        return
    home.run("create", "left", "--dns", "192.0.2.1", "--dns", "2001:db8::1,192.0.2.2")
    document = home.json("inspect", "left")[0]
    assert document["network_dns_servers"] == ["192.0.2.1", "2001:db8::1", "192.0.2.2"]
    assert home.podman("network", "ls", "-q").stdout == "left\npodman\n"
    done = home.run("create", "right", "--dns", "x", check=False)
    assert done.stderr == (
        "rootlessnet: create network right: unable to parse ip x specified in NetworkDNSServers: "
        "invalid argument\n"
    )
    done = home.run("create", "right", "--dns", "192.0.2.1", "--disable-dns", check=False)
    assert "cannot set NetworkDNSServers if DNS is not enabled" in done.stderr


def test_interface_name(chosen: Chosen) -> None:
    home, _ = chosen
    home.run("create", "left", "--interface-name", "br-a")
    assert home.json("inspect", "left")[0]["network_interface"] == "br-a"
    assert home.podman("network", "inspect", "left").stdout == home.run("inspect", "left").stdout
    done = home.run("create", "right", "--interface-name", "br-a", check=False)
    assert done.stderr == "rootlessnet: create network right: bridge name br-a already in use\n"


def test_inspect_prints_what_there_is(chosen: Chosen) -> None:
    home, _ = chosen
    done = home.run("inspect", "nope", "podman", check=False)
    assert done.returncode == 125
    assert [item["name"] for item in json.loads(done.stdout)] == ["podman"]
    assert done.stderr == (
        "rootlessnet: inspect networks: unable to find network with name or ID nope: "
        "network not found\n"
    )


def test_create_json(chosen: Chosen) -> None:
    home, backend = chosen
    made = home.json("create", "left", "--json")
    shown = home.json("inspect", "left")[0]
    if backend == "cni":  # its file cannot say that DNS is wanted, and has no time
        shown |= {key: made[key] for key in ("dns_enabled", "created")}
    assert made == shown


def test_plain_table(chosen: Chosen) -> None:
    home, backend = chosen
    home.run("create", "left", "--subnet", "10.201.0.0/24", "--internal")
    identity = home.json("inspect", "left")[0]["id"][:12]
    interface = "podman1" if backend == "netavark" else "cni-podman1"
    dns = "yes" if backend == "netavark" else "no"
    head, left, default = (line.split() for line in home.run("ls").stdout.splitlines())
    assert head == ["NETWORK", "ID", "NAME", "DRIVER", "INTERFACE", "SUBNETS", "DNS", "INTERNAL"]
    assert left == [identity, "left", "bridge", interface, "10.201.0.0/24", dns, "yes"]
    assert default[1:2] == ["podman"]


def on_terminal(home: Home, **variables: str) -> str:
    """What `network ls` shows on a terminal."""
    master, slave = pty.openpty()
    try:
        subprocess.run(
            [PROGRAM, "network", "ls"], stdout=slave, check=True,
            env={**home.environment, "TERM": "xterm-256color", "COLUMNS": "120", **variables},
        )  # fmt: skip
        return os.read(master, 65536).decode()
    finally:
        os.close(master)
        os.close(slave)


def test_table_on_a_terminal(home: Home) -> None:
    home.run("create", "[red]a", check=False)
    shown = on_terminal(home)
    assert "\x1b[" in shown
    assert "10.88.0.0/16" in shown
    plain = on_terminal(home, NO_COLOR="1")
    # Bold is no colour.
    assert "\x1b[3" not in plain.replace("\x1b[0m", "").replace("\x1b[1m", "")
    assert "\x1b[" not in on_terminal(home, TERM="dumb")


def test_podmans_lock_is_respected(chosen: Chosen) -> None:
    """podman locks by fcntl; as long as it does, nothing of ours is written."""
    home, backend = chosen
    home.run("create", "left")
    name = "cni.lock" if backend == "cni" else "netavark.lock"
    done = threading.Event()

    def create() -> None:
        home.run("create", "right")
        done.set()

    with open(home.directory(backend) / name, "r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        thread = threading.Thread(target=create)
        thread.start()
        time.sleep(0.5)
        assert not done.is_set()
        assert len(home.files(backend)) == 1
    thread.join(20)
    assert sorted(home.json("ls", "--json")[0]) and len(home.files(backend)) == 2


def test_many_at_once_get_different_subnets(chosen: Chosen) -> None:
    home, _ = chosen
    children = [
        subprocess.Popen(command, env=home.environment, stdout=subprocess.DEVNULL)
        for number in range(5)
        for command in (
            [PROGRAM, "network", "create", f"ours{number}"],
            ["podman", "--log-level=error", "network", "create", f"theirs{number}"],
        )
    ]
    assert [child.wait(60) for child in children] == [0] * 10
    networks = home.json("ls", "--json")
    assert len(networks) == 11
    for key in ("subnets", "network_interface"):
        assert len({json.dumps(item[key]) for item in networks}) == 11


def test_api(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from rootlessnet.errors import Error
    from rootlessnet.networks import api
    from rootlessnet.networks.network import Network, Subnet
    from rootlessnet.networks.subnets import parse_cidr

    for name, value in home.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    new = Network("lab", labels={"for": "tests"})
    new.subnets.append(Subnet(parse_cidr("10.201.0.0/24")))
    made = api.create(new)
    assert str(made.subnets[0].gateway) == "10.201.0.1"
    assert [network.name for network in api.list_all()] == ["lab", "podman"]
    assert api.inspect("lab").document() == made.document()
    assert api.remove("lab").id == made.id
    with pytest.raises(Error, match="network not found"):
        api.inspect("lab")
    assert api.prune() == []


def test_a_network_file_is_replaced_whole(home: Home, tmp_path: Path) -> None:
    """A remainder of a killed writer is neither read nor in the way."""
    home.run("create", "left")
    left = home.directory("netavark") / ".right.json.new"
    left.write_text("{half")
    assert home.run("ls", "-q").stderr == ""
    home.run("create", "right")
    assert not left.exists()
    assert home.podman("network", "ls", "-q").stdout == "left\npodman\nright\n"


def test_a_fifo_among_the_networks_keeps_nobody_waiting(chosen: Chosen) -> None:
    home, backend = chosen
    home.run("create", "lab")
    odd = home.directory(backend) / ("odd.json" if backend == "netavark" else "odd.conflist")
    os.mkfifo(odd)
    done = home.run("ls", "-q")
    assert "lab\n" in done.stdout
    assert str(odd) in done.stderr and "not a regular file" in done.stderr


def test_a_template_that_is_not_closed(home: Home) -> None:
    done = home.run("ls", "--format", "{{.Name", check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("rootlessnet: --format {{.Name: {{ is not closed by }}")
