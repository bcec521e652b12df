"""status, ps and path: what outside tools rely on."""

from __future__ import annotations

import json
import os
import re

from support import Net, both_drivers

KEYS = {
    "name", "static_dir", "state", "netns", "userns_inode", "supervisor", "holder", "driver",
    "leases", "ports", "containers",
}  # fmt: skip


@both_drivers
def test_status_of_a_running_instance(net: Net) -> None:
    child = net.hold("-o", "mtu=1500", "-o", "enable_ipv6=false")
    document = net.status()
    assert KEYS <= set(document)
    assert (document["name"], document["static_dir"]) == (net.name, str(net.static_dir))
    assert document["state"] == "running"
    holder = document["holder"]["pid"]
    assert document["netns"]["path"] == f"/proc/{holder}/ns/net"
    assert os.stat(document["netns"]["path"]).st_ino == document["netns"]["inode"]
    assert os.stat(f"/proc/{holder}/ns/user").st_ino == document["userns_inode"]
    assert document["supervisor"]["rss_bytes"] > 1 << 20
    driver = document["driver"]
    assert (driver["name"], driver["restarts"]) == (net.driver, 0)
    if net.driver == "slirp4netns":  # pasta's builds are of whatever version
        assert re.fullmatch(r"\d+\.\d+\.\d+\S*", driver["version"])
    assert (driver["cidr"], driver["gateway"], driver["dns"], driver["address"]) == (
        "10.0.2.0/24", "10.0.2.2", "10.0.2.3", "10.0.2.100",
    )  # fmt: skip
    assert (driver["mtu"], driver["ipv6"]) == (1500, False)
    assert driver["options"]["mtu"] == 1500
    (lease,) = document["leases"]
    assert (lease["kind"], lease["pid"]) == ("process", child.pid)
    assert lease["command"] == "sh -c 'echo in; read x'"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", lease["since"])
    assert document["ports"] == document["containers"] == []


def test_status_with_no_instance(net: Net) -> None:
    document = net.status()
    assert KEYS <= set(document)
    assert (document["name"], document["static_dir"], document["state"]) == (
        net.name, str(net.static_dir), "down",
    )  # fmt: skip
    assert all(document[key] is None for key in ("netns", "userns_inode", "supervisor", "driver"))
    assert all(document[key] == [] for key in ("leases", "ports", "containers"))
    assert net.run("status").stdout.startswith(f"{net.name}: down\n")


def test_status_for_people(net: Net) -> None:
    net.hold()
    text = net.run("status").stdout
    assert text.startswith(f"{net.name}: running\n")
    assert "10.0.2.100 in 10.0.2.0/24, gateway 10.0.2.2, DNS 10.0.2.3" in text


def test_long_name_of_a_lease_stands_apart(net: Net) -> None:
    net.run("up", "--name", "rootlessnet")
    net.run("up", "--name", "web")
    lines = net.run("status").stdout.splitlines()
    assert {"    rootlessnet named", "    web       named"} <= set(lines)
    net.run("down", "--all")


def test_status_of_all_instances(net: Net) -> None:
    net.hold()
    names = [item["name"] for item in json.loads(net.run("status", "--all", "--json").stdout)]
    assert net.name in names


@both_drivers
def test_names_that_are_no_text_are_shown_in_any_locale(net: Net) -> None:
    for name in ("\udcff", "é"):
        for command in (("status",), ("graph",), ("config",), ("status", "--json")):
            words = (*command, f"--static-dir=/{name}")
            done = net.run(*words, env={"PYTHONIOENCODING": "ascii:strict"})
            assert "/\\" in done.stdout
    done = net.run("device", "stats", "\udcff", check=False, errors="surrogateescape")
    assert (done.returncode, len(done.stderr.splitlines())) == (125, 1)
    # Nor do names steer a terminal.
    done = net.run("\x1b[31m\r", check=False)
    assert done.stderr.startswith("rootlessnet: unknown command \\x1b[31m\\r\n")


def test_ps_shows_leases_and_processes(net: Net) -> None:
    child = net.start("enter", "sh", "-c", "sleep 100 & echo in; read x; kill $!")
    assert child.stdout is not None and child.stdout.readline() == "in\n"
    document = json.loads(net.run("ps", "--json").stdout)
    assert [lease["pid"] for lease in document["leases"]] == [child.pid]
    commands = {process["command"]: process for process in document["processes"]}
    assert commands["sleep 100"]["ppid"] == child.pid
    assert commands["sleep 100"]["lease"] is True
    assert len(commands) == 2, "neither holder nor driver is listed"
    text = net.run("ps").stdout.splitlines()
    assert text[0].split() == ["PID", "USER", "SINCE", "LEASE", "COMMAND"]
    assert any(line.endswith("sleep 100") for line in text)
    net.release(child)


def test_path_is_for_nsenter(net: Net) -> None:
    net.hold()
    path = net.run("path").stdout.strip()
    assert os.stat(path).st_ino == net.status()["netns"]["inode"]


def test_path_with_no_instance(net: Net) -> None:
    done = net.run("path", check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == (
        f"rootlessnet: find the network namespace: {net.name} is not running\n"
        "  hint: rootlessnet enter starts it\n"
    )
