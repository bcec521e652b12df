"""Containers where something goes wrong: nothing leaks, no address is had twice, it goes on."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from container_support import NETAVARK, OUTSIDE, Lab, holder_of_a_namespace
from support import PROGRAM, is_alive, kill, wait_for

LAB = ("lab", "--subnet", "10.99.0.0/24")


@NETAVARK
def test_fifty_at_once_have_fifty_addresses(lab: Lab) -> None:
    lab.network(*LAB)
    lab.run("up")
    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(lambda n: lab.setup(f"c{n}", "--network", "lab"), range(50)))
    addresses = [each["Networks"]["lab"]["IPAddress"] for each in found]
    assert len(set(addresses)) == 50
    assert len(lab.used_addresses()) == len(lab.ls()) == 50
    assert len({each["Networks"]["lab"]["MacAddress"] for each in found}) == 50
    first, last = found[0]["Networks"]["lab"]["IPAddress"], "c49"
    assert lab.answers(last, first)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: lab.run("container", "teardown", "--all"), range(2)))
    assert lab.used_addresses() == lab.ls() == []
    assert lab.interfaces() == set()
    # All are free, and the next is the one after the last.
    again = lab.setup("again", "--network", "lab")["Networks"]["lab"]["IPAddress"]
    assert again == "10.99.0.52"
    lab.run("down")


@NETAVARK
def test_addresses_go_round_and_run_out(lab: Lab) -> None:
    lab.network("small", "--subnet", "10.99.0.0/29")
    for number in range(5):
        lab.setup(f"c{number}", "--network", "small")
    assert lab.used_addresses() == [f"10.99.0.{n}" for n in range(2, 7)]
    assert lab.refused("container", "setup", "more", "--new", "--network", "small") == (
        "rootlessnet: set up container more: IPAM error: failed to find free IP in range: "
        "10.99.0.1 - 10.99.0.6\n"
    )
    lab.run("container", "teardown", "c1")
    assert lab.setup("more", "--network", "small")["Networks"]["small"]["IPAddress"] == "10.99.0.3"


@NETAVARK
def test_addresses_of_a_range(lab: Lab) -> None:
    lab.network("part", "--subnet", "10.99.0.0/24", "--ip-range", "10.99.0.16/30")
    for number in range(3):
        lab.setup(f"c{number}", "--network", "part")
    assert lab.used_addresses() == ["10.99.0.17", "10.99.0.18", "10.99.0.19"]
    assert "failed to find free IP in range: 10.99.0.17 - 10.99.0.19\n" in lab.refused(
        "container", "setup", "more", "--new", "--network", "part"
    )
    # What is asked for may be anywhere in the subnet.
    lab.setup("fixed", "--network", "part:ip=10.99.0.200")
    lab.run("container", "teardown", "c0", "c2")
    assert lab.setup("next", "--network", "part")["Networks"]["part"]["IPAddress"] == "10.99.0.17"


@NETAVARK
def test_failed_setup_is_undone(lab: Lab) -> None:
    lab.network(*LAB)
    lab.network("other", "--subnet", "10.98.0.0/24", "--opt", "mtu=10")  # the kernel wants 68
    lab.setup("stays", "--network", "lab")
    before = lab.interfaces(), lab.used_addresses()
    both = ("--network", "lab", "--network", "other")
    text = lab.refused("container", "setup", "c", "--new", *both)
    assert text.startswith("rootlessnet: set up container c: netavark (exit code 1): ")
    assert (lab.interfaces(), lab.used_addresses()) == before
    assert lab.ls() == ["stays"]
    lab.resolves("stays", "c", "10.99.0.1", [])
    # The same for a second network.
    text = lab.refused("network", "connect", "other", "stays")
    assert text.startswith("rootlessnet: connect container stays to network other: netavark")
    assert list(lab.inspect("stays")["Networks"]) == ["lab"]
    assert (lab.interfaces(), lab.used_addresses()) == before
    assert lab.fetch("stays", f"http://{OUTSIDE}/") == "the internet"


def test_network_on_an_interface_that_is_no_bridge_is_refused(lab: Lab) -> None:
    lab.network("bad", "--interface-name", "tap0")
    lab.setup("stays")
    for command in (["container", "setup", "c", "--new", "--network", "bad"],
                    ["network", "connect", "bad", "stays"]):  # fmt: skip
        assert "network bad: its interface tap0 is no bridge here" in lab.refused(*command)
    assert lab.fetch("stays", f"http://{OUTSIDE}/") == "the internet"


def killed_at(lab: Lab, point: str, *command: str) -> None:
    """Run a command that is killed at that point."""
    done = lab.run(*command, check=False, env={"ROOTLESSNET_CRASH_AT": point})
    assert done.returncode == 125
    assert done.stderr.endswith("work inside the instance: the process that did it has died\n")


@pytest.mark.parametrize("point", ["recorded", "pinned", "addressed", "attached", "complete"])
def test_setup_that_is_killed_leaves_nothing(lab: Lab, point: str) -> None:
    lab.network(*LAB)
    lab.setup("stays", "--network", "lab")
    where = f"container:{point}"
    if (lab.backend, point) == ("cni", "addressed"):
        where = "cni:add:bridge"
    killed_at(lab, where, "container", "setup", "c", "--new", "--network", "lab")
    # The next change finishes it; what was complete is one.
    lab.setup("next", "--network", "lab")
    expected = ["c", "next", "stays"] if point == "complete" else ["next", "stays"]
    assert lab.ls() == expected
    assert len(lab.used_addresses()) == len(expected)
    assert len(lab.interfaces()) == 1 + len(expected)
    assert lab.answers("next", "10.99.0.2")


def test_supervisor_finishes_what_nobody_else_does(lab: Lab) -> None:
    lab.network(*LAB)
    setup = ("container", "setup", "c", "--new", "--network", "lab")
    killed_at(lab, "container:attached", *setup)
    lab.wait_until_down()
    for point in ("ending", "detached", "released"):
        lab.setup("c", "--network", "lab")
        killed_at(lab, f"container:{point}", "container", "teardown", "c")
        lab.wait_until_down()


def test_connect_that_is_killed_is_undone(lab: Lab) -> None:
    lab.network(*LAB)
    lab.setup("c")
    for point in ("connect:recorded", "container:attached", "connect:complete"):
        killed_at(lab, point, "network", "connect", "lab", "c")
        lab.setup("next")
        expected = ["lab", "podman"] if point == "connect:complete" else ["podman"]
        assert sorted(lab.inspect("c")["Networks"]) == expected
        assert len(lab.used_addresses()) == len(expected) + 1
        lab.run("container", "teardown", "next")
    assert lab.fetch("c", f"http://{OUTSIDE}/") == "the internet"


def test_reload_that_is_killed_is_done_again(lab: Lab) -> None:
    lab.network(*LAB)
    lab.setup("c", "--network", "lab")
    before = lab.on("c", "lab")
    killed_at(lab, "reload:recorded", "container", "reload", "c")
    lab.enter("nft", "flush", "ruleset")
    lab.setup("next", "--network", "lab")
    assert lab.on("c", "lab") == before
    assert lab.fetch("c", f"http://{OUTSIDE}/") == "the internet"


def test_caller_that_has_gone_gets_no_container(lab: Lab) -> None:
    lab.network(*LAB)
    lab.run("up")
    child = lab.start("container", "setup", "c", "--new", "--network", "lab")
    wait_for("it has begun", lambda: (lab.directory / "containers.pending").exists())
    child.send_signal(signal.SIGINT)
    child.wait(20)
    wait_for("it is decided", lambda: not (lab.directory / "containers.pending").exists())
    wait_for("it is undone", lambda: lab.ls() == [])
    assert lab.used_addresses() == []
    lab.run("down")


@NETAVARK
def test_damaged_database_is_made_again(lab: Lab) -> None:
    lab.network(*LAB)
    lab.setup("one", "--network", "lab")
    lab.setup("two", "--network", "lab")
    database = lab.directory / "addresses.db"
    for damage in (b"\0garbage" * 500, database.read_bytes()[:5000]):
        database.write_bytes(damage)
        done = lab.run("container", "setup", "three", "--new", "--network", "lab")
        assert done.stderr == (
            f"rootlessnet: warning: {database} is damaged: it is made again from the records of "
            "the containers\n"
        )
        assert lab.on("three", "lab")["IPAddress"] == "10.99.0.4"
        assert lab.used_addresses() == ["10.99.0.2", "10.99.0.3", "10.99.0.4"]
        lab.run("container", "teardown", "three")
    database.unlink()
    os.mkfifo(database)
    lab.setup("three", "--network", "lab")
    assert lab.used_addresses() == ["10.99.0.2", "10.99.0.3", "10.99.0.4"]
    lab.run("container", "teardown", "three")
    with sqlite3.connect(database) as other:
        place = ("lab", "10.99.0.0/24")
        other.execute("INSERT OR REPLACE INTO last VALUES (?, ?, 'no address')", place)
    other.close()
    assert lab.setup("three", "--network", "lab")["Networks"]["lab"]["IPAddress"] == "10.99.0.4"


@NETAVARK
def test_database_that_somebody_keeps_locked(lab: Lab) -> None:
    lab.network(*LAB)
    lab.setup("one", "--network", "lab")
    other = sqlite3.connect(lab.directory / "addresses.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert lab.refused("container", "setup", "two", "--new", "--network", "lab") == (
        "rootlessnet: set up container two: use the database of addresses: database is locked\n"
    )
    assert lab.ls() == ["one"]
    other.close()
    lab.setup("two", "--network", "lab")


@pytest.mark.parametrize("way", ["setup", "connect"])
def test_result_that_cannot_be_told_is_undone(lab: Lab, way: str) -> None:
    """Status 125 says that nothing was changed."""
    lab.network(*LAB)
    lab.setup("one")
    before, command = lab.inspect("one"), "network connect lab one"
    if way == "setup":
        command = "container setup two --new --network lab"
        attempt = "set up container two"
    else:
        attempt = "connect container one to network lab"
    for where, status in (("> /dev/full", 125), ("| true", 141)):
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {PROGRAM} {command} {where}"],
            env=lab.environment, text=True, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == status, done
        line = f"rootlessnet: {attempt}: write the result: No space left on device\n"
        assert done.stderr == (line if status == 125 else "")
        assert lab.ls() == ["one"]
        assert lab.inspect("one") == before


def test_teardown_of_what_has_just_ended_with_the_instance(lab: Lab) -> None:
    """As one that is not there is no error, it makes no difference when it went."""
    lab.run("up")
    lab.setup("one")
    path = lab.directory.with_name(f"{lab.name}.lock")
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        teardown = lab.start("container", "teardown", "one")
        wait_for("it wants the lock", lambda: has_open(teardown.pid, path))
        pin = Path(lab.inspect("one")["SandboxKey"])
        for pid in lab.pids().values():
            kill(pid)
        shutil.rmtree(lab.directory)
        pin.unlink()
    assert teardown.communicate(timeout=20) == ("one\n", "")
    assert teardown.returncode == 0


def has_open(pid: int, path: Path) -> bool:
    descriptors = Path(f"/proc/{pid}/fd")
    return any(each.exists() and each.samefile(path) for each in descriptors.iterdir())


@NETAVARK
def test_addresses_of_containers_without_a_record_are_free(lab: Lab) -> None:
    lab.network("tiny", "--subnet", "10.99.0.0/30")
    lab.setup("keeps")
    lab.setup("one", "--network", "tiny")
    lab.run("container", "teardown", "one")
    database = sqlite3.connect(lab.directory / "addresses.db")
    with database:
        row = ("tiny", "10.99.0.0/30", bytes([10, 99, 0, 2]), "stray")
        database.execute("INSERT INTO ips VALUES (?, ?, ?, ?)", row)
    database.close()
    assert lab.setup("two", "--network", "tiny")["Networks"]["tiny"]["IPAddress"] == "10.99.0.2"


def test_damaged_record_counts_and_can_be_torn_down(lab: Lab) -> None:
    lab.network(*LAB)
    lab.setup("one", "--network", "lab")
    for damage in ("", "{", "[]", '{"networks": {"lab": 1}}'):
        lab.setup("torn", "--network", "lab")
        (lab.directory / "containers" / "torn").write_text(damage)
        listed = json.loads(lab.run("container", "ls", "--json").stdout)
        assert [item["state"] for item in listed] == ["ready", "damaged"]
        assert "damaged" in lab.refused("container", "reload", "torn")
        lab.run("container", "teardown", "torn")
        assert lab.used_addresses() == ["10.99.0.2"]
    assert "no container with ID torn" in lab.refused("container", "inspect", "torn")
    wait_for("its interface is gone", lambda: len(lab.interfaces()) == 2)


RECORDS: dict[str, Callable[[dict[str, Any]], object]] = {
    "the id of another one": lambda record: record.update(id="one"),
    "an id that is a path": lambda record: record.update(id="../precious"),
    "another backend": lambda record: record.update(backend="os"),
    "another phase": lambda record: record.update(phase="over"),
    "a process of no number": lambda record: record["netns"].update(pid=10**30),
    "a process without a start": lambda record: record["netns"].update(pid=1, started=None),
    "a path that no file can have": lambda record: record["netns"].update(path="/a\0b"),
    "a protocol of its own": lambda record: record.update(publish=[["sctp", "", 1, 1, 1]]),
    "a host that is none": lambda record: record.update(publish=[["tcp", "here", 1, 1, 1]]),
    "too many ports": lambda record: record.update(publish=[["tcp", "", 1, 1, 10**9]]),
    "addresses that are none": lambda record: answer_of(record).update(subnets=7),
    "an address that is no text": lambda record: answer_of(record)["subnets"][0].update(ipnet=1),
    "a gateway that is no text": lambda record: answer_of(record)["subnets"][0].update(gateway=1),
}


def answer_of(record: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = record["networks"]["lab"]["status"]["interfaces"]["eth0"]
    return found


@NETAVARK
@pytest.mark.parametrize("damage", RECORDS.values(), ids=RECORDS)
def test_record_that_says_what_cannot_be(
    lab: Lab, damage: Callable[[dict[str, Any]], object]
) -> None:
    lab.network(*LAB)
    lab.setup("one", "--network", "lab")
    lab.setup("torn", "--network", "lab")
    precious = lab.directory / "precious"
    precious.write_text("")
    path = lab.directory / "containers" / "torn"
    document = json.loads(path.read_text())
    damage(document)
    (new := path.with_name("torn.new")).write_text(json.dumps(document))
    new.rename(path)
    supervisor = lab.pids()["supervisor"]
    listed = json.loads(lab.run("container", "ls", "--json").stdout)
    assert [(item["id"], item["state"]) for item in listed] == [
        ("one", "ready"),
        ("torn", "damaged"),
    ]
    assert "damaged" in lab.refused("container", "reload", "torn")
    for command in (("status",), ("graph",), ("container", "inspect", "torn")):
        assert "Traceback" not in lab.run(*command, check=False).stderr
    lab.run("container", "teardown", "torn")
    assert lab.ls() == ["one"]
    assert lab.used_addresses() == ["10.99.0.2"]
    assert precious.exists()
    assert lab.pids()["supervisor"] == supervisor


@NETAVARK
def test_namespace_of_a_lost_record_goes_with_the_instance(lab: Lab) -> None:
    lab.setup("lost")
    pin = Path(lab.inspect("lost")["SandboxKey"])
    foreign = pin.with_name(f"podman-{os.getpid()}")
    foreign.write_text("")
    (lab.directory / "containers" / "lost").unlink()
    # And one that a program inside has left in the same place, with a veth.
    lab.enter("unshare", "--net", "mount", "--bind", "/proc/self/ns/net", str(foreign))
    lab.enter("ip", "link", "add", "left", "type", "veth", "peer", "name", "right")
    lab.enter("ip", "link", "set", "right", "netns", str(foreign))
    lab.run("down", "--force")
    lab.wait_until_down()
    assert foreign.exists()
    foreign.unlink()
    assert not pin.exists()


@NETAVARK
def test_full_disk_keeps_no_container(lab: Lab, tmp_path: Path) -> None:
    """The runtime directory is a small disk of its own, full when it comes to tearing down."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = """
        set -e
        mount -t tmpfs -o size=512k,mode=700 none "$1"; export XDG_RUNTIME_DIR="$1"
        rootlessnet up 2>&1 | grep -v -e warning: -e hint: || true
        rootlessnet container setup c --new >/dev/null
        dd if=/dev/zero of="$1/fill" bs=1k 2>/dev/null || true
        rootlessnet container teardown c || true
        rootlessnet container ls --quiet
        rootlessnet port add 80 || true
        rootlessnet down
        ls "$1"/netns "$1"/rootlessnet
    """
    command = ["unshare", "-rm", "sh", "-c", script, "sh", str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, env=lab.environment, check=False)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "warning" not in line]
    assert all(line.startswith(("rootlessnet: ", "  hint: ")) for line in told)
    assert "rootlessnet: No space" not in done.stderr
    *listed, lock = done.stdout.split()
    assert listed == [f"{disk}/netns:", f"{disk}/rootlessnet:"]
    assert lock.endswith(".lock")


def test_containers_survive_supervisor_and_holder(lab: Lab) -> None:
    lab.network(*LAB)
    child = holder_of_a_namespace(lab)
    lab.setup("new", "--network", "lab")
    lab.setup("proc", "--pid", str(child.pid), "--network", "lab")
    for part in ("supervisor", "holder"):
        kill(lab.pids()[part])
        wait_for("it is replaced", lambda: lab.status()["state"] == "running")
    assert lab.ls() == ["new", "proc"]
    assert lab.answers("new", lab.on("proc", "lab")["IPAddress"])
    assert lab.fetch("new", f"http://{OUTSIDE}/") == "the internet"
    child.kill()
    child.wait()
    wait_for("the new supervisor sees it end", lambda: lab.ls() == ["new"])
    # Also one that ended while nobody looked.
    other = holder_of_a_namespace(lab)
    lab.setup("unseen", "--pid", str(other.pid), "--network", "lab")
    kill(lab.pids()["supervisor"])
    other.kill()
    other.wait()
    wait_for("it is found", lambda: lab.ls() == ["new"])
    assert lab.used_addresses() == ["10.99.0.2"]


@NETAVARK
def test_all_is_free_after_everything_was_killed(lab: Lab) -> None:
    lab.network(*LAB)
    lab.setup("c", "--network", "lab")
    pids = lab.pids()
    server = int((lab.directory / "root/networks/aardvark-dns/aardvark.pid").read_text())
    for pid in (pids["supervisor"], pids["driver"], pids["holder"]):
        kill(pid)
    assert lab.run("container", "teardown", "c").stderr == ""
    assert lab.status()["state"] == "down"
    wait_for("the name server is ended", lambda: not is_alive(server))
    again = lab.setup("c", "--network", "lab")
    assert again["Networks"]["lab"]["IPAddress"] == "10.99.0.2"
    assert lab.fetch("c", f"http://{OUTSIDE}/") == "the internet"


@NETAVARK
def test_name_server_that_was_killed_is_started_again(lab: Lab) -> None:
    lab.network(*LAB)
    lab.setup("one", "--network", "lab")
    file = lab.directory / "root/networks/aardvark-dns/aardvark.pid"
    kill(int(file.read_text()))
    # Its number may be somebody else's by now, who must not get its signal.
    stranger = lab.start("enter", "sleep", "1000")
    file.write_text(str(stranger.pid))
    lab.setup("two", "--network", "lab")
    assert stranger.poll() is None
    lab.resolves("two", "one", "10.99.0.1", ["10.99.0.2"])
    lab.resolves("one", "two", "10.99.0.1", ["10.99.0.3"])


@NETAVARK
def test_name_server_is_in_the_scope(lab: Lab) -> None:
    lab.network(*LAB)
    lab.setup("one", "--network", "lab")
    pid = int((lab.directory / "root/networks/aardvark-dns/aardvark.pid").read_text())
    assert f"/{lab.name}.scope" in Path(f"/proc/{pid}/cgroup").read_text()
    # It holds nothing of ours open, or the instance would never be unused.
    files = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    assert not [name for name in files if "rootlessnet" in name]


def test_bridge_keeps_its_address_when_a_port_goes(lab: Lab) -> None:
    lab.network(*LAB)
    names = [f"c{number}" for number in range(4)]
    for name in names:
        lab.setup(name, "--network", "lab")
    bridge = ("ip", "-o", "link", "show", lab.bridge)
    before = lab.inside(*bridge).rpartition("link/ether ")[2]
    for name in names[:3]:
        lab.run("container", "teardown", name)
        assert lab.inside(*bridge).rpartition("link/ether ")[2] == before


@NETAVARK
def test_no_netavark_is_told(lab: Lab, tmp_path: Path) -> None:
    conf = tmp_path / "none.conf"
    conf.write_text(
        f'[network]\nnetwork_backend = "netavark"\n[engine]\nhelper_binaries_dir = ["{tmp_path}"]\n'
    )
    done = lab.run(
        "container", "setup", "c", "--new", check=False, env={"CONTAINERS_CONF": str(conf)}
    )
    assert done.returncode == 125
    assert 'could not find "netavark" in one of' in done.stderr
    assert not lab.directory.exists()


@NETAVARK
def test_netavark_that_panics_is_told_in_one_line(lab: Lab, tmp_path: Path) -> None:
    program = tmp_path / "netavark"
    program.write_text(
        '#!/bin/sh\ncase "$*" in *teardown*) exec /usr/lib/podman/netavark "$@";; esac\n'
        "echo \"thread 'main' panicked at 'no entry'\" >&2; exit 101\n"
    )
    program.chmod(0o755)
    environment = {"CONTAINERS_HELPER_BINARY_DIR": str(tmp_path)}
    done = lab.run("container", "setup", "c", "--new", check=False, env=environment)
    assert done.stderr == (
        "rootlessnet: set up container c: netavark (exit code 101): thread 'main' panicked at "
        "'no entry'\n"
    )
    lab.wait_until_down()


@NETAVARK
@pytest.mark.parametrize("ends", [True, False])
def test_name_server_that_ends_before_it_is_moved_is_nothing_to_warn_of(
    lab: Lab, tmp_path: Path, ends: bool
) -> None:
    """Another command may take the last container down at that moment."""
    lab.network(*LAB)
    lab.run("up")
    with socket.socket(socket.AF_UNIX) as bus:
        bus.bind(str(tmp_path / "bus"))
        bus.listen()
        bus.settimeout(20)
        environment = {"DBUS_SESSION_BUS_ADDRESS": f"unix:path={tmp_path}/bus"}
        setup = lab.start("container", "setup", "c", "--new", "--network", "lab", env=environment)
        client, _ = bus.accept()
        if ends:
            file = lab.directory / "root/networks/aardvark-dns/aardvark.pid"
            kill(int(file.read_text()))
        client.close()
        _, err = setup.communicate(timeout=20)
    assert setup.returncode == 0
    warned = "aardvark-dns is not in the instance's systemd scope" in err
    assert warned is not ends, err
    lab.run("down", "--force")
