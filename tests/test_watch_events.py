"""events: what happens to an instance is told, once, in order, and nothing else."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from host_support import Shell
from support import Net, is_alive, kill, wait_for
from watch_support import attachment, container, document, port

from rootlessnet.watch import changes


class Events:
    """A running `rootlessnet events --json`, which has begun to watch."""

    def __init__(self, net: Net) -> None:
        self.child = net.start("events", "--json")
        self.seen: list[dict[str, Any]] = []
        self._next = 0
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.first = self.wait("watching")

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self.seen.append(json.loads(line))

    def wait(self, name: str, **fields: Any) -> dict[str, Any]:
        """The next event of this name (and with these fields) after the last one waited for."""

        def found() -> dict[str, Any] | None:
            for number in range(self._next, len(self.seen)):
                event = self.seen[number]
                if event["event"] == name and fields.items() <= event.items():
                    self._next = number + 1
                    return event
            return None

        try:
            wait_for(f"{name} {fields}", lambda: self.peek(found))
        except AssertionError as error:
            raise AssertionError(f"{error}; seen: {self.seen[self._next :]}") from None
        event = found()
        assert event is not None
        return event

    def peek(self, found: Any) -> bool:
        before = self._next
        result = found() is not None
        self._next = before
        return result

    def names(self) -> list[str]:
        return [event["event"] for event in self.seen]

    def end(self, number: int = signal.SIGINT) -> int:
        """Send a signal; the exit status."""
        self.child.send_signal(number)
        status = self.child.wait(10)
        self._reader.join(10)
        return status


@pytest.fixture
def events(net: Net) -> Iterator[Events]:
    """The events of the test's own instance, from when it is down."""
    found = Events(net)
    yield found
    if found.child.poll() is None:
        found.end(signal.SIGKILL)


# -- what happens ----------------------------------------------------------------------------------


def test_from_the_first_lease_to_the_end_and_over_the_next_start(net: Net, events: Events) -> None:
    assert events.first["state"] == "down"
    for _ in range(2):
        child = net.hold()
        pids = net.pids()
        up = events.wait("instance-up", state="running", driver="slirp4netns")
        assert (up["supervisor"], up["holder"]) == (pids["supervisor"], pids["holder"])
        taken = events.wait("lease-taken", kind="process", pid=child.pid)
        assert taken["instance"] == net.name
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", taken["time"])
        net.release(child)
        events.wait("lease-returned", kind="process", pid=child.pid)
        events.wait("instance-down")
        net.wait_until_down()
    assert events.names() == [
        "watching", *["instance-up", "lease-taken", "lease-returned", "instance-down"] * 2,
    ]  # fmt: skip


def test_a_running_instance_is_not_news(net: Net) -> None:
    net.hold()
    events = Events(net)
    assert events.first["state"] == "running"
    other = net.hold()
    events.wait("lease-taken", pid=other.pid)
    assert events.names() == ["watching", "lease-taken"]
    events.end()


def test_named_leases(net: Net, events: Events) -> None:
    net.run("up", "--name", "web")
    events.wait("instance-up")
    events.wait("lease-taken", kind="named", id="web", pid=None)
    net.run("up", "--name", "db")
    events.wait("lease-taken", kind="named", id="db")
    net.run("down", "--name", "web")
    events.wait("lease-returned", kind="named", id="web")
    net.run("down", "--name", "db")
    events.wait("lease-returned", kind="named", id="db")
    events.wait("instance-down")


def test_a_driver_that_dies_and_comes_back(net: Net, events: Events) -> None:
    net.hold()
    events.wait("instance-up")
    driver = net.pids()["driver"]
    kill(driver)
    died = events.wait("driver-died", driver="slirp4netns", pid=driver)
    assert died["reason"] == "was killed by signal 9"
    restarted = events.wait("driver-restarted", driver="slirp4netns", restarts=1)
    assert restarted["pid"] == wait_for("it runs again", lambda: net.pids()["driver"])


def test_a_driver_that_keeps_dying(net: Net, events: Events) -> None:
    net.hold()
    events.wait("instance-up")
    # The pause before it is started again grows until it can be seen.
    for _ in range(5):
        kill(wait_for("the driver runs", lambda: net.pids()["driver"]))
        events.wait("driver-died", reason="was killed by signal 9")
        events.wait("driver-restarted")
        if "instance-degraded" in events.names():
            break
    events.wait("instance-running")
    names = events.names()
    assert names.index("instance-degraded") < names.index("instance-running")
    assert names.index("driver-died") < names.index("instance-degraded")


def test_a_supervisor_that_is_killed_is_replaced_and_named(net: Net, events: Events) -> None:
    child = net.hold()
    old = events.wait("instance-up")["supervisor"]
    kill(old)
    # Nobody but the stream itself runs a command now.
    new = events.wait("supervisor-replaced", previous=old)["pid"]
    assert is_alive(new) and net.pids()["supervisor"] == new
    kill(new)
    events.wait("supervisor-replaced", previous=new)
    assert "instance-down" not in events.names()
    net.release(child)
    events.wait("instance-down")


def test_a_holder_that_is_killed(net: Net, events: Events) -> None:
    net.hold()
    old = events.wait("instance-up")["holder"]
    kill(old)
    new = events.wait("holder-replaced", previous=old)["pid"]
    assert net.pids()["holder"] == new


def test_an_instance_that_is_ended_by_force(net: Net, events: Events) -> None:
    child = net.hold()
    events.wait("lease-taken", pid=child.pid)
    net.run("down", "--all", "--force")
    events.wait("lease-returned", pid=child.pid)
    events.wait("instance-down")


def test_resolv_conf_inside_changes(net: Net, tmp_path: Path) -> None:
    output = tmp_path / "events"

    def told() -> list[dict[str, Any]]:
        return [json.loads(line) for line in output.read_text().splitlines()]

    # In a machine of its own, of which the host's resolv.conf is the test's to change.
    with Shell(net, tmp_path / "stage") as shell:
        shell.run(f"rootlessnet up; rootlessnet events --json > {output} &")
        wait_for("it watches", lambda: output.exists() and told())
        shell.run("echo nameserver 203.0.113.88 > /etc/resolv.conf")
        wait_for("the change is told", lambda: len(told()) > 1)
        event = told()[1]
        assert event["event"] == "resolv-conf-changed"
        assert event["nameservers"] == ["10.0.2.3", "203.0.113.88"]
        shell.run("rootlessnet down; kill $!")


# -- how it ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_without_a_word(net: Net, events: Events, number: int) -> None:
    assert events.end(number) == -number
    assert events.child.stderr is not None and events.child.stderr.read() == ""


def test_it_ends_when_nobody_reads_any_more_though_nothing_happens(net: Net) -> None:
    child = net.start("events")
    assert child.stdout is not None and child.stdout.readline()
    child.stdout.close()
    assert child.wait(10) == -signal.SIGPIPE
    child.stdout = None
    assert child.stderr is not None and child.stderr.read() == ""


def test_it_sleeps_without_a_timer_while_nothing_happens(net: Net, events: Events) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("kernel: the numbers of system calls are those of x86_64")
    net.hold()
    events.wait("lease-taken")

    def sleeps() -> bool:
        number, *arguments = Path(f"/proc/{events.child.pid}/syscall").read_text().split()
        # poll(2), and its timeout is -1.
        return number == "7" and int(arguments[2], 16) & 0xFFFFFFFF == 0xFFFFFFFF

    wait_for("it polls without a timeout", sleeps)


def test_a_state_directory_that_is_removed_ends_it(tmp_path: Path) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    net = Net(tmp_path / "static", runtime)
    events = Events(net)
    (runtime / "rootlessnet").rmdir()
    assert events.child.wait(10) == 125
    assert events.child.stderr is not None
    assert events.child.stderr.read() == (
        f"rootlessnet: watch {runtime}/rootlessnet: it is gone, or there are too many watches\n"
    )
    events.end(0)
    net.end()


def test_text_for_people(net: Net) -> None:
    child = net.start("events")
    assert child.stdout is not None
    assert child.stdout.readline().split()[1:] == ["watching", "state=down"]
    net.run("up", "--name", "web")
    lines = [child.stdout.readline() for _ in range(2)]
    assert lines[0].split()[1] == "instance-up"
    assert re.fullmatch(r"\S+ lease-taken id=web kind=named\n", lines[1]) or "process" in lines[1]
    net.run("down", "--name", "web")
    child.send_signal(signal.SIGTERM)


# -- what is told of two documents -----------------------------------------------------------------


def told(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(event.name, event.fields) for event in changes.between(before, after)]


DOWN = {**document(state="down", leases=[]), "netns": None}


def test_nothing_is_told_of_nothing() -> None:
    assert told(document(), document()) == told(DOWN, DOWN) == []


def test_containers_and_their_networks() -> None:
    one = attachment("a", "podman0", "10.89.0.2/24", 7)
    two = attachment("b", "podman1", "10.89.1.2/24", 8, "eth1")
    setting_up = document(containers=[container("c", one, state="setup")])
    ready = document(containers=[container("c", one)])
    both = document(containers=[container("c", one, two)])
    connected = {"container": "c", "network": "a", "interface": "eth0",
                 "addresses": ["10.89.0.2/24"]}  # fmt: skip
    assert told(document(), setting_up) == []
    assert told(setting_up, ready) == told(document(), ready) == [
        ("container-setup", {"container": "c"}), ("network-connected", connected),
    ]  # fmt: skip
    begun = document(containers=[container("c", one, {**two, "addresses": [], "mac": ""})])
    assert told(ready, begun) == []
    assert told(begun, both) == told(ready, both)
    (event,) = told(ready, both)
    assert event[0] == "network-connected" and event[1]["network"] == "b"
    assert told(both, ready) == [("network-disconnected", {"container": "c", "network": "b"})]
    assert told(ready, document()) == [("container-teardown", {"container": "c"})]
    # Its connections are told no more than when podman removes a container.
    assert told(ready, DOWN)[0] == ("container-teardown", {"container": "c"})


def test_ports() -> None:
    with_port = document(ports=[port("c", connections=1)])
    fields = port("c")
    assert told(document(), with_port) == [("port-added", fields)]
    assert told(with_port, document()) == [("port-removed", fields)]
    assert told(with_port, document(ports=[port("c", connections=2)])) == []


def test_another_life_of_the_instance_between_two_looks() -> None:
    other = document(netns={"path": "/proc/9/ns/net", "inode": 9}, leases=[])
    assert [name for name, _ in told(document(), other)] == [
        "lease-returned", "lease-returned", "instance-down", "instance-up",
    ]  # fmt: skip


def test_an_outage_between_two_looks_is_told_without_its_state() -> None:
    driver = {**document()["driver"], "pid": 300, "restarts": 2, "last_exit": "has ended"}
    assert told(document(), document(driver=driver)) == [
        ("driver-died", {"driver": "slirp4netns", "pid": 102, "reason": "has ended"}),
        ("driver-restarted", {"driver": "slirp4netns", "pid": 300, "restarts": 2}),
    ]
