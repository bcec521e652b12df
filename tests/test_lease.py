"""Users are counted by the kernel: nothing leaks, and nothing in use is torn down."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support import PROGRAM, Net, is_alive, own_processes, wait_for


def test_last_one_out_cleans_up(net: Net) -> None:
    first, second = net.hold(), net.hold()
    pids = net.pids()
    inode = net.status()["netns"]["inode"]
    net.release(first)
    assert all(is_alive(pid) for pid in pids.values())
    assert net.status()["state"] == "running"
    net.release(second)
    net.wait_until_down()
    wait_for("every process has ended", lambda: not any(map(is_alive, pids.values())))
    assert f"net:[{inode}]" not in _visible_namespaces()
    assert os.listdir(net.directory.parent) == [f"{net.name}.lock"] or not [
        name for name in os.listdir(net.directory.parent) if name == net.name
    ]


def _visible_namespaces() -> set[str]:
    found = set()
    for pid in own_processes():
        try:
            found.add(os.readlink(f"/proc/{pid}/ns/net"))
        except OSError:
            continue
    return found


def test_killed_users_leak_nothing(net: Net) -> None:
    children = [net.hold() for _ in range(3)]
    for child in children:
        child.kill()
    net.wait_until_down()


def test_whole_process_group_killed_leaks_nothing(net: Net) -> None:
    child = net.start("enter", "sh", "-c", "sleep 100 & echo in; wait", start_new_session=True)
    assert child.stdout is not None and child.stdout.readline() == "in\n"
    os.killpg(child.pid, signal.SIGKILL)
    net.wait_until_down()


def test_child_that_outlives_the_command_keeps_the_instance(net: Net) -> None:
    fifo = f"{net.static_dir}-fifo"
    os.mkfifo(fifo)
    out = net.inside(
        "sh", "-c", f"(read x < {fifo}; ip -br address show tap0 > {fifo}.out) >&- 2>&- & echo $!"
    )
    assert is_alive(int(out))
    assert net.status()["state"] == "running"
    assert [lease["pid"] for lease in net.status()["leases"]] == [int(out)]
    with open(fifo, "w") as writer:
        writer.write("\n")
    net.wait_until_down()
    with open(f"{fifo}.out") as result:
        assert "10.0.2.100" in result.read()


def test_program_that_closed_every_descriptor_keeps_the_instance(net: Net) -> None:
    fifo = f"{net.static_dir}-fifo"
    os.mkfifo(fifo)
    code = (
        "import os\n"
        "if os.fork(): os._exit(0)\n"
        "os.setsid(); os.closerange(0, 65536)\n"
        f"os.read(os.open({fifo!r}, os.O_RDONLY), 1)\n"
    )
    net.enter("python3", "-c", code)
    writer = os.open(fifo, os.O_WRONLY)
    wait_for("the supervisor has seen the last lease go", lambda: not net.status()["leases"])
    assert net.status()["state"] == "running"
    assert net.inside("true") == "", "the same instance can be used again"
    assert net.status()["state"] == "running"
    os.close(writer)
    net.wait_until_down()


def test_what_a_command_writes_into_the_lease_does_no_harm(net: Net) -> None:
    child = net.hold()
    net.enter("sh", "-c", "for fd in /proc/$$/fd/2??; do echo junk > $fd; done")
    assert net.status()["state"] == "running"
    net.release(child)


def test_hundred_first_entries_make_one_instance(net: Net) -> None:
    gate = Path(f"{net.static_dir}-gate")
    children = [
        subprocess.Popen(
            [PROGRAM, "enter", "--timeout", "60", "--", "sh", "-c",
             f"readlink /proc/self/ns/net; until [ -e {gate} ]; do sleep 0.1; done"],
            env=net.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(100)
    ]  # fmt: skip
    lines = []
    for child in children:
        assert child.stdout is not None
        lines.append(child.stdout.readline())
    log = net.log()
    document = net.status()
    helpers = [
        command
        for command in own_processes().values()
        if command.startswith(("slirp4netns", "/usr/bin/slirp4netns"))
        and f" {document['holder']['pid']} " in command
    ]
    gate.touch()
    results = [(*child.communicate(timeout=60), child.returncode) for child in children]
    assert [result[2] for result in results] == [0] * 100, results
    assert [result[1] for result in results] == [""] * 100
    assert set(lines) == {f"net:[{document['netns']['inode']}]\n"}
    assert len(helpers) == 1
    assert log.count("supervisor: running:") == 1


def test_parallel_short_commands_all_succeed(net: Net) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: net.enter("true", check=False), range(60)))
    assert [(done.returncode, done.stderr) for done in results] == [(0, "")] * 60


def test_linger_keeps_the_instance_for_the_next_one(net: Net) -> None:
    net.run("enter", "--linger", "1.5", "true")
    left = time.monotonic()
    first = net.status()
    assert first["state"] == "running" and first["leases"] == []
    net.enter("true")
    assert net.status()["netns"] == first["netns"]
    net.wait_until_down()
    assert time.monotonic() - left >= 1.5


def test_status_and_friends_are_no_users(net: Net) -> None:
    child = net.hold()
    for arguments in (["status"], ["ps"], ["path"], ["status", "--json"]):
        net.run(*arguments)
    net.release(child)
    net.wait_until_down()
    assert net.status()["state"] == "down"
    assert not net.directory.exists()


def test_what_subordinate_ids_left_in_run_is_removed(net: Net) -> None:
    net.enter("setpriv", "--reuid=5", "--regid=5", "--clear-groups", "true")
    net.enter("sh", "-c", "mkdir -p /run/d/e && touch /run/d/e/f && chown -R 5:5 /run/d")
    net.wait_until_down()
