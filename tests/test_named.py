"""Named leases: up, down, --linger, --force, and staying in the foreground."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import PROGRAM, Net, is_alive, kill, wait_for


def names(net: Net) -> list[str]:
    return [lease["id"] for lease in net.status()["leases"] if lease["kind"] == "named"]


def test_up_returns_and_the_instance_stays(net: Net) -> None:
    net.run("up")
    document = net.status()
    assert document["state"] == "running"
    assert [(lease["id"], lease["kind"], lease["pid"]) for lease in document["leases"]] == [
        ("default", "named", None)
    ]
    net.enter("true")
    assert net.status()["netns"] == document["netns"]
    net.run("down")
    assert not net.directory.exists(), "down has waited for the end"


def test_up_twice_is_one_lease(net: Net) -> None:
    net.run("up")
    net.run("up")
    assert names(net) == ["default"]
    net.run("down")
    assert net.status()["state"] == "down"


def test_two_names_at_once(net: Net) -> None:
    net.run("up", "--name", "one")
    net.run("up", "--name", "two")
    assert names(net) == ["one", "two"]
    net.run("down", "--name", "one")
    assert names(net) == ["two"]
    assert net.status()["state"] == "running"
    net.run("down", "--name", "two")
    assert net.status()["state"] == "down"


def test_down_all(net: Net) -> None:
    net.run("up", "--name", "one")
    net.run("up", "--name", "two")
    net.run("down", "--all")
    assert not net.directory.exists()


def test_down_leaves_other_users_alone(net: Net) -> None:
    child = net.hold()
    net.run("up")
    net.run("down")
    assert net.status()["state"] == "running"
    net.release(child)
    net.wait_until_down()


def test_down_of_a_lease_that_is_not_there(net: Net) -> None:
    done = net.run("down", check=False)
    assert (done.returncode, done.stderr) == (
        125,
        "rootlessnet: --name default: there is no such lease\n  hint: named leases: none\n",
    )
    net.run("up", "--name", "a")
    done = net.run("down", "--name", "b", check=False)
    assert done.stderr.endswith("  hint: named leases: a\n")
    net.run("down", "--all")


def test_down_force_ends_the_processes_and_says_which(net: Net) -> None:
    net.run("up")
    children = [net.hold(), net.hold("--keep-id")]
    done = net.run("down", "--force")
    assert sorted(done.stderr.splitlines()) == sorted(
        f"rootlessnet: ended {child.pid}: sh -c 'echo in; read x'" for child in children
    )
    assert not net.directory.exists()
    assert [child.wait(10) for child in children] == [-signal.SIGTERM] * 2


def test_down_force_ends_what_ignores_sigterm(net: Net) -> None:
    child = net.start("enter", "sh", "-c", "trap '' TERM; echo in; while :; do sleep 1; done")
    assert child.stdout is not None and child.stdout.readline() == "in\n"
    net.run("down", "--force")
    assert child.wait(10) == -signal.SIGKILL
    net.wait_until_down()


def test_down_force_from_inside_is_refused_at_once(net: Net) -> None:
    net.run("up")
    child = net.hold()
    done = net.enter(PROGRAM, "down", "--force", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (
        125,
        "",
        "rootlessnet: down --force: this command is inside the instance, and would have to end "
        "itself\n"
        "  hint: run it outside; without --force a lease is given back from here, too\n",
    )
    # Elsewhere by now, but with a lease that it has inherited.
    done = net.enter("unshare", "-n", PROGRAM, "down", "--force", check=False)
    assert done.returncode == 125 and "this command is inside the instance" in done.stderr
    assert names(net) == ["default"] and child.poll() is None
    net.run("down", "--force")


def test_down_from_inside_does_not_wait_for_its_own_end(net: Net) -> None:
    net.run("up")
    done = net.enter(PROGRAM, "down")
    assert (done.stdout, done.stderr) == ("", "")
    net.wait_until_down()


_LOOKER = """
import os, sys
from rootlessnet.kernel import namespaces
def named(name):
    with open("/proc/self/comm", "w") as file:
        file.write(name)
named(sys.argv[2])
if os.fork() == 0:
    pins = namespaces.Pins(int(sys.argv[1]))
    pins.join()
    print("in", flush=True)
    sys.stdin.read()
    os._exit(0)
os.wait()
"""


@pytest.mark.parametrize("name", ["rootlessnet", "another"])
def test_down_force_leaves_commands_that_look_in_from_outside(net: Net, name: str) -> None:
    net.run("up")
    command = [sys.executable, "-c", _LOOKER, str(net.pids()["holder"]), name]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as looker:
        assert looker.stdout is not None and looker.stdout.readline() == "in\n"
        done = net.start("down", "--force")
        if name == "rootlessnet":
            wait_for("the lease is given back", lambda: not list(net.directory.glob("leases/*")))
            looker.communicate("", timeout=10)
            assert done.communicate(timeout=20)[1] == ""
        else:
            said = done.communicate(timeout=20)[1]
            assert said.startswith("rootlessnet: ended ") and "import os, sys" in said
    net.wait_until_down()


def test_down_force_with_nothing_there(net: Net) -> None:
    assert net.run("down", "--force").stderr == ""


@pytest.mark.parametrize("name", ["a/b", "..", "-x", "a b", "ä", "x" * 241, "a.new"])
def test_names_that_are_none(net: Net, name: str) -> None:
    done = net.run("up", f"--name={name}", check=False)
    assert done.returncode == 125
    assert done.stderr.splitlines()[0] == f"rootlessnet: --name {name}: not a name"
    assert not net.directory.exists()


def test_named_lease_survives_the_supervisor(net: Net) -> None:
    net.run("up", "--name", "kept")
    before = net.pids()
    kill(before["supervisor"])
    assert names(net) == ["kept"]
    assert net.pids()["holder"] == before["holder"]
    net.run("down", "--name", "kept")
    assert net.status()["state"] == "down"


def test_damaged_record_of_a_lease_keeps_the_instance(net: Net) -> None:
    net.run("up", "--name", "torn")
    for damage in (b"\0{", b'{"pid": "7", "started": 1, "since": "x"}', b"[]"):
        (net.directory / "leases" / "torn").write_bytes(damage)
        net.enter("true")
    assert net.status()["state"] == "running"
    net.run("down", "--name", "torn")
    assert not net.directory.exists()


def test_linger(net: Net) -> None:
    net.run("up", "--linger", "1")
    start = time.monotonic()
    net.run("down")
    assert net.status()["state"] == "running"
    net.wait_until_down()
    assert time.monotonic() - start >= 1


def test_foreground_tells_the_service_manager(net: Net, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        child = net.start(
            "up", "--foreground", "--name", "fg",
            env={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"},
        )  # fmt: skip
        assert manager.recv(4096).decode() == f"READY=1\nSTATUS=Holding {net.name} as fg"
        assert [manager.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        assert net.status()["leases"][0]["id"] == "fg"
        assert net.status()["leases"][0]["pid"] == child.pid
        child.send_signal(signal.SIGTERM)
        while (message := manager.recv(4096)) == b"WATCHDOG=1":
            pass
        assert message.decode() == "STOPPING=1\nSTATUS=Giving the lease back"
    assert child.wait(20) == 0
    net.wait_until_down()


def test_foreground_is_ended_by_down(net: Net) -> None:
    child = net.start("up", "--foreground", "--name", "fg")
    wait_for("it is up", lambda: names(net) == ["fg"])
    net.run("down", "--name", "fg")
    assert child.wait(10) == 0
    net.wait_until_down()


def test_killed_foreground_leaves_nothing(net: Net) -> None:
    child = net.start("up", "--foreground", "--name", "fg")
    wait_for("it is up", lambda: names(net) == ["fg"])
    child.kill()
    child.wait()
    net.wait_until_down()


def test_foreground_replaces_a_killed_supervisor(net: Net) -> None:
    child = net.start("up", "--foreground", "--name", "fg")
    wait_for("it is up", lambda: names(net) == ["fg"])
    supervisor = int(_record(net, "supervisor"))
    kill(supervisor)
    wait_for("there is another", lambda: int(_record(net, "supervisor")) != supervisor)
    assert names(net) == ["fg"]
    child.send_signal(signal.SIGTERM)
    assert child.wait(20) == 0


def _record(net: Net, part: str) -> str:
    """Read without the program, which would itself put things right."""
    import json

    return str(json.loads((net.directory / "state.json").read_text())[part]["pid"])


def test_same_name_twice_in_the_foreground_is_refused(net: Net) -> None:
    child = net.start("up", "--foreground", "--name", "fg")
    wait_for("it is up", lambda: names(net) == ["fg"])
    done = net.run("up", "--foreground", "--name", "fg", check=False)
    assert done.returncode == 125
    assert done.stderr.splitlines()[0] == (
        f"rootlessnet: --name fg: process {child.pid} holds this lease"
    )
    assert is_alive(child.pid)
    os.kill(child.pid, signal.SIGTERM)
    child.wait(20)
