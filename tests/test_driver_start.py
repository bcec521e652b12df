"""A driver that is missing, too old, dies or never answers: one line, nothing left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from support import Net, both_drivers, failing, own_processes

Faulty = Callable[[str], dict[str, str]]


@both_drivers
def test_driver_that_ends_is_seen_at_once_with_its_words(net: Net, faulty_driver: Faulty) -> None:
    start = time.monotonic()
    lines = failing(net, faulty_driver("echo cannot frobnicate >&2; exit 3"))
    assert time.monotonic() - start < 5, "well before the deadline of 10 s"
    assert lines == [
        f"rootlessnet: start {net.driver}: it ended with status 3: cannot frobnicate",
    ]


@both_drivers
def test_driver_that_is_killed(net: Net, faulty_driver: Faulty) -> None:
    assert failing(net, faulty_driver("kill -SEGV $$")) == [
        f"rootlessnet: start {net.driver}: it was killed by signal 11",
    ]


@both_drivers
def test_driver_that_never_answers_ends_at_the_deadline(net: Net, faulty_driver: Faulty) -> None:
    start = time.monotonic()
    lines = failing(net, faulty_driver("echo thinking; exec sleep 987"), "--timeout", "1")
    assert 1 <= time.monotonic() - start < 6
    assert lines[0].startswith(f"rootlessnet: start {net.driver}: no answer after ")
    assert lines[0].endswith(": thinking")
    assert not any(command == "sleep 987 " for command in own_processes().values())


def test_driver_that_closes_its_ready_pipe_and_goes_on(net: Net, faulty_driver: Faulty) -> None:
    lines = failing(net, faulty_driver("exec 3>&-; exec sleep 1000"), "--timeout", "1")
    assert lines == ["rootlessnet: start slirp4netns: it closed its ready pipe and went on"]


def test_real_driver_that_refuses_its_arguments(net: Net, faulty_driver: Faulty) -> None:
    lines = failing(net, faulty_driver('exec /usr/bin/slirp4netns "$@" --mtu=99999999'))
    assert lines[0].startswith("rootlessnet: start slirp4netns: it ended with status 1: ")
    assert "mtu" in lines[0].lower()


def test_no_driver(net: Net, tmp_path: Path) -> None:
    for name in ("sh", "sleep", "true"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    conf = tmp_path / "containers.conf"
    conf.write_text('[engine]\nnetwork_cmd_path = "/no/such/slirp4netns"\n')
    assert failing(net, {"CONTAINERS_CONF": str(conf)}) == [
        "rootlessnet: start slirp4netns: /no/such/slirp4netns not found",
        "  hint: install slirp4netns 0.4.0 or newer (Debian: apt install slirp4netns)",
    ]


def test_program_that_is_no_slirp4netns(net: Net, tmp_path: Path) -> None:
    conf = tmp_path / "containers.conf"
    conf.write_text('[engine]\nnetwork_cmd_path = "/usr/bin/true"\n')
    lines = failing(net, {"CONTAINERS_CONF": str(conf)})
    assert lines[0].startswith("rootlessnet: ask /usr/bin/true for its features: Usage: ")


def test_driver_that_hangs_at_its_help(net: Net, tmp_path: Path) -> None:
    program = tmp_path / "slow"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    conf = tmp_path / "containers.conf"
    conf.write_text(f'[engine]\nnetwork_cmd_path = "{program}"\n')
    lines = failing(net, {"CONTAINERS_CONF": str(conf)}, "--timeout", "1")
    assert lines == [f"rootlessnet: run {program} --help: no answer in time"]


@both_drivers
def test_driver_may_open_as_many_files_as_the_caller_is_allowed(net: Net) -> None:
    import resource

    net.hold()
    limits = Path(f"/proc/{net.pids()['driver']}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
    assert line.split()[3] == str(resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def test_log_of_the_running_driver_is_kept(net: Net) -> None:
    net.hold()
    assert "received tapfd" in net.log()
    assert "supervisor: running:" in net.log()


@both_drivers
def test_dead_driver_is_started_again(net: Net) -> None:
    from support import kill, wait_for

    net.hold()
    before = net.pids()
    kill(before["driver"])
    wait_for("a new driver", lambda: net.pids()["driver"] not in (None, before["driver"]))
    wait_for("it is connected", lambda: net.status()["state"] == "running")
    assert net.status()["driver"]["restarts"] == 1
    assert "10.0.2.100/24" in net.inside("ip", "-br", "address", "show", "tap0")
    assert "default via 10.0.2.2" in net.inside("ip", "route")
    assert os.path.exists(f"/proc/{before['holder']}")
