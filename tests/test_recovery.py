"""The instance survives whatever happens to its parts, and nobody inside notices."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from support import PROGRAM, Net, both_drivers, is_alive, kill, wait_for


def works(net: Net) -> bool:
    """Whether the network inside is connected."""
    out = net.inside("sh", "-c", "ip -br address show tap0; ip route")
    return "10.0.2.100/24" in out and "default via 10.0.2.2" in out


def namespace_of(child: subprocess.Popen[str]) -> str:
    return os.readlink(f"/proc/{child.pid}/ns/net")


def ready(net: Net) -> bool:
    document = net.status()
    return document["state"] == "running" and document["driver"]["pid"] is not None


# -- the driver ---


@both_drivers
def test_killed_driver_is_restarted_in_the_living_namespace(net: Net) -> None:
    child = net.hold()
    before, namespace = net.pids(), namespace_of(child)
    kill(before["driver"])
    wait_for("a new driver is up", lambda: ready(net) and net.pids() != before, 1)
    assert works(net)
    after = net.pids()
    assert (after["holder"], after["supervisor"]) == (before["holder"], before["supervisor"])
    assert namespace_of(child) == namespace
    assert net.status()["driver"]["restarts"] == 1
    assert net.driver in net.log() and "was killed by signal 9" in net.log()


@both_drivers
def test_command_that_comes_while_the_driver_is_out_waits_for_it(net: Net) -> None:
    net.hold()
    for _ in range(4):  # each time it waits longer, and a command waits for 2 s
        kill(net.pids()["driver"])
        wait_for("it is known", lambda: not is_up(net) or net.status()["driver"]["pid"], 5)
        assert works(net)


def is_up(net: Net) -> bool:
    return not (net.directory / "degraded").exists()


def test_driver_that_keeps_dying_is_restarted_with_back_off(net: Net, tmp_path: Path) -> None:
    program, broken = tmp_path / "slirp4netns", tmp_path / "broken"
    program.write_text(
        "#!/bin/sh\n"
        f'[ -e {broken} ] && case "$1" in --help|--version) ;; '
        "*) echo cannot do it >&2; exit 9;; esac\n"
        'exec /usr/bin/slirp4netns "$@"\n'
    )
    program.chmod(0o755)
    conf = tmp_path / "containers.conf"
    conf.write_text(f'[engine]\nnetwork_cmd_path = "{program}"\n')
    child = net.hold(env={"CONTAINERS_CONF": str(conf)})
    broken.touch()
    kill(net.pids()["driver"])
    wait_for("it is tried again and again", lambda: net.status()["driver"]["restarts"] >= 3)
    document = net.status()
    assert (document["state"], document["driver"]["pid"]) == ("degraded", None)
    assert "it ended with status 9: cannot do it" in net.log()
    done = net.enter("true")
    assert done.stderr == (
        "rootlessnet: warning: the network is not connected: its driver keeps dying, "
        "see rootlessnet logs\n"
    )
    assert is_alive(child.pid)
    broken.unlink()
    wait_for("it is connected again", lambda: ready(net))
    assert works(net)


# -- supervisor and holder ---

COMMANDS = {
    "enter": ["enter", "true"],
    "status": ["status"],
    "ps": ["ps"],
    "path": ["path"],
    "up": ["up", "--name", "x"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_next_command_of_any_kind_replaces_a_killed_supervisor(net: Net, command: str) -> None:
    child = net.hold()
    before, namespace = net.pids(), namespace_of(child)
    kill(before["supervisor"])
    assert is_alive(before["driver"]), "the network goes on"
    net.run(*COMMANDS[command])
    after = net.pids()
    assert after["supervisor"] != before["supervisor"]
    assert (after["holder"], after["driver"]) == (before["holder"], before["driver"])
    assert namespace_of(child) == namespace
    assert net.status()["state"] == "running" and works(net)
    if command == "up":
        net.run("down", "--name", "x")
    net.release(child)
    net.wait_until_down()


def test_users_that_left_in_the_meantime_are_not_counted(net: Net) -> None:
    first, second = net.hold(), net.hold()
    kill(net.pids()["supervisor"])
    net.release(first)
    assert net.status()["leases"][0]["pid"] == second.pid
    net.release(second)
    net.wait_until_down()


@both_drivers
def test_supervisor_killed_and_nobody_left_starts_clean(net: Net) -> None:
    child = net.hold()
    before = net.pids()
    kill(before["supervisor"])
    net.release(child)
    assert is_alive(before["holder"])
    assert net.status()["state"] == "down"
    wait_for("all are gone", lambda: not any(map(is_alive, before.values())))


@both_drivers
def test_killed_holder_is_replaced_in_the_same_namespaces(net: Net) -> None:
    child = net.hold()
    net.enter("sh", "-c", "echo kept > /run/mark")
    before, namespace = net.pids(), namespace_of(child)
    kill(before["holder"])
    wait_for("a new holder", lambda: net.pids()["holder"] not in (None, before["holder"]))
    after = net.pids()
    assert (after["supervisor"], after["driver"]) == (before["supervisor"], before["driver"])
    assert namespace_of(child) == namespace == net.inside("readlink", "/proc/self/ns/net").strip()
    assert net.inside("cat", "/run/mark") == "kept\n", "the mounts are the same"
    assert net.inside("id", "-u") == "0\n"
    assert works(net)


@both_drivers
@pytest.mark.parametrize("options", [[], ["--keep-id"]], ids=["root inside", "keep-id"])
def test_supervisor_and_holder_killed_are_rebuilt_from_a_living_user(
    net: Net, options: list[str]
) -> None:
    child = net.hold(*options)
    before, namespace = net.pids(), namespace_of(child)
    kill(before["supervisor"])
    kill(before["holder"])
    assert works(net)
    after = net.pids()
    assert not set(before.values()) & set(after.values())
    assert namespace_of(child) == namespace == net.inside("readlink", "/proc/self/ns/net").strip()
    assert net.inside("ls", "/run").split() != []
    assert net.status()["state"] == "running"
    net.release(child)
    net.wait_until_down()


@both_drivers
def test_a_driver_that_ends_late_is_not_taken_over(net: Net) -> None:
    """Without supervisor and holder it is to end, however long it takes over that."""
    child = net.hold()
    before = net.pids()
    os.kill(before["driver"], signal.SIGSTOP)
    kill(before["supervisor"])
    kill(before["holder"])
    assert works(net)
    assert not is_alive(before["driver"])
    assert net.pids()["driver"] not in (None, before["driver"])
    net.release(child)
    net.wait_until_down()


@both_drivers
def test_all_three_killed_with_a_user_inside(net: Net) -> None:
    child = net.hold()
    namespace = namespace_of(child)
    for pid in net.pids().values():
        kill(pid)
    assert works(net)
    assert namespace_of(child) == namespace == net.inside("readlink", "/proc/self/ns/net").strip()


@both_drivers
def test_all_three_killed_with_nobody_inside(net: Net) -> None:
    child = net.hold()
    namespace = namespace_of(child)
    pids = net.pids()
    net.run("enter", "true")
    kill(pids["supervisor"])
    net.release(child)
    for name in ("driver", "holder"):
        kill(pids[name])
    assert works(net)
    assert namespace


def test_a_process_that_took_over_a_pid_is_left_alone(net: Net) -> None:
    child = net.hold()
    for pid in net.pids().values():
        kill(pid)
    child.kill()
    child.wait()
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        for name in ("state.json", "holder"):
            path = net.directory / name
            text = path.read_text()
            document = json.loads(text) if name == "state.json" else None
            if document:
                for part in ("supervisor", "holder", "driver"):
                    document[part]["pid"] = bystander.pid
                path.write_text(json.dumps(document))
            else:
                path.write_text(f"{bystander.pid} {text.split(None, 1)[1]}")
        net.enter("true")
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_damaged_record_of_an_instance_in_use_is_not_guessed_at(net: Net) -> None:
    child = net.hold()
    kill(net.pids()["supervisor"])
    (net.directory / "state.json").write_text("{")
    done = net.run("enter", "true", check=False)
    assert done.returncode == 125
    assert done.stderr == (
        f"rootlessnet: read {net.directory}/state.json: damaged, but the instance is in use by "
        f"{child.pid}\n"
        "  hint: end these processes, or let rootlessnet do so: rootlessnet down --force\n"
    )
    assert is_alive(child.pid)
    net.run("down", "--force")
    net.wait_until_down()


@both_drivers
def test_supervisor_asked_to_stop_while_in_use_leaves_all_running(net: Net) -> None:
    child = net.hold()
    before = net.pids()
    os.kill(before["supervisor"], signal.SIGTERM)
    wait_for("it goes", lambda: not is_alive(before["supervisor"]))
    assert is_alive(before["driver"]) and is_alive(before["holder"])
    assert works(net)
    net.release(child)


def test_stopped_supervisor_does_not_stop_anybody(net: Net) -> None:
    net.hold()
    supervisor = net.pids()["supervisor"]
    os.kill(supervisor, signal.SIGSTOP)
    try:
        assert works(net)
    finally:
        os.kill(supervisor, signal.SIGCONT)


# -- what must not happen whatever one does ---


@pytest.mark.parametrize("runtime", ["", "runtime"], ids=["below /run", "elsewhere"])
def test_from_inside_nothing_is_supervised_or_cleared(
    net: Net, tmp_path: Path, runtime: str
) -> None:
    if runtime:
        (tmp_path / runtime).mkdir(mode=0o700)
        net.runtime = tmp_path / runtime
        net.environment["XDG_RUNTIME_DIR"] = str(net.runtime)
    child = net.start("enter", "bash")
    assert child.stdin is not None and child.stdout is not None

    def inside(command: str) -> str:
        child.stdin.write(f"{command} 2>&1; echo =END=\n")
        child.stdin.flush()
        lines = []
        while (line := child.stdout.readline()) != "=END=\n":
            assert line
            lines.append(line)
        return "".join(lines)

    assert inside("echo ready") == "ready\n"
    libraries = sorted(os.listdir("/var/lib"))
    pids = net.pids()
    kill(pids["supervisor"])
    assert "degraded" in inside(f"{PROGRAM} status")
    assert inside(f"{PROGRAM} enter true") == (
        "rootlessnet: use the instance: its supervisor is gone, and from inside there can be no "
        "other\n  hint: run any rootlessnet command outside, rootlessnet status for instance\n"
    )
    kill(pids["holder"])
    inside(f"{PROGRAM} status; {PROGRAM} down --all")
    assert net.status()["state"] == "running", "from outside it is put right"
    assert works(net)
    child.communicate("exit\n", timeout=20)
    net.wait_until_down()
    assert sorted(os.listdir("/var/lib")) == libraries


def test_from_another_user_namespace_nothing_in_use_is_cleared(net: Net) -> None:
    child = net.hold()
    kill(net.pids()["supervisor"])
    done = net.run("status", prefix=["unshare", "-r", "--"], check=False)
    assert done.returncode == 125
    assert done.stderr.splitlines()[0] == (
        f"rootlessnet: take over {net.name}: it is in use, but not to be reached from here"
    )
    assert is_alive(child.pid) and works(net)


def test_state_directory_removed_while_in_use(net: Net) -> None:
    import shutil

    child = net.hold()
    pids = net.pids()
    shutil.rmtree(net.directory)
    assert is_alive(pids["driver"]), "who is inside keeps the network"
    net.release(child)
    wait_for("all have ended", lambda: not any(map(is_alive, pids.values())))


def test_log_removed_while_in_use(net: Net) -> None:
    child = net.hold()
    (net.directory / "log").unlink()
    before = net.pids()
    kill(before["driver"])
    wait_for("a new driver", lambda: net.pids()["driver"] not in (None, before["driver"]))
    assert works(net)
    net.release(child)
    net.wait_until_down()


def test_holder_killed_while_lingering(net: Net) -> None:
    net.run("enter", "--linger", "1", "true")
    pids = net.pids()
    kill(pids["holder"])
    wait_for("all have ended", lambda: not any(map(is_alive, pids.values())))
    net.wait_until_down()


def test_enter_after_the_holder_was_killed_while_lingering(net: Net) -> None:
    net.run("enter", "--linger", "300", "true")
    before = net.status()
    kill(before["holder"]["pid"])
    wait_for("a new holder", lambda: net.status()["holder"]["pid"] != before["holder"]["pid"])
    assert net.status()["state"] == "running"
    assert works(net)
    assert net.status()["netns"]["inode"] == before["netns"]["inode"]
    net.run("down", "--force")


def test_no_room_while_parts_die(net: Net, tmp_path: Path) -> None:
    """A full runtime directory costs neither the network nor a busy loop."""
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    script = (
        f"mount -t tmpfs -o size=1m,mode=700 x {runtime}; export XDG_RUNTIME_DIR={runtime};"
        f"{PROGRAM} up; state() {{ {PROGRAM} status --json | python3 -c "
        "\"import json,sys; print(json.load(sys.stdin)['$1']['pid'])\"; };"
        "first=$(state driver 2>/dev/null || :); "
        f"d=$({PROGRAM} status --json | python3 -c 'import json,sys; s=json.load(sys.stdin);"
        'print(s["driver"]["pid"], s["holder"]["pid"], s["supervisor"]["pid"])\');'
        f"set -- $d; cat /dev/zero > {runtime}/full 2>/dev/null; kill -9 $1; sleep 0.5; kill -9 $2;"
        "sleep 1; t=$(cut -d' ' -f14 /proc/$3/stat); sleep 1; "
        f"echo ticks $(($(cut -d' ' -f14 /proc/$3/stat) - t)); rm {runtime}/full; sleep 2.5;"
        f"{PROGRAM} enter ip -br address show tap0; {PROGRAM} down; ls {runtime}/rootlessnet"
    )
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script],
        env=net.environment, text=True, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert int(lines[0].split()[1]) < 30, "of 100 ticks in the second"
    assert "10.0.2.100/24" in lines[1], done
    assert lines[2:] == [f"{net.name}.lock"]


@both_drivers
def test_driver_that_is_in_no_record_is_replaced(net: Net) -> None:
    net.hold(env={"ROOTLESSNET_CRASH_AT": "restart:driver"})
    pids = net.pids()
    kill(pids["driver"])
    wait_for("the supervisor is killed", lambda: not is_alive(pids["supervisor"]))
    assert works(net)
    wait_for("it is running", lambda: ready(net), 3)
    assert net.enter("true").stderr == ""


def test_blocked_signals_are_the_callers_on_both_paths(net: Net) -> None:
    code = (
        "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [1, 2, 15]);"
        "os.execvp(sys.argv[1], sys.argv[1:])"
    )
    prefix = ["python3", "-c", code]
    cold = net.inside("grep", "SigBlk", "/proc/self/status", prefix=prefix)
    net.hold()
    assert net.inside("grep", "SigBlk", "/proc/self/status", prefix=prefix) == cold
    assert int(cold.split()[1], 16) == 1 << 0 | 1 << 1 | 1 << 14
    for pid in net.pids().values():
        status = Path(f"/proc/{pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("SigBlk")]
        assert int(line.split()[1], 16) == 0


def test_linger_for_ever(net: Net) -> None:
    net.run("enter", "--linger", "300000000", "true")
    assert net.status()["state"] == "running"
    net.enter("true")
    assert net.status()["state"] == "running"
    net.run("up")
    net.run("down")
    assert net.status()["state"] == "running"
    assert net.run("down", "--force").stderr == ""
    assert not net.directory.exists()


# -- a look before teardown ---


def test_container_that_is_plugged_in_keeps_the_instance(net: Net, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    # The container has no lease: like a real one it inherits no descriptor.
    container = f"echo $$ > {tmp_path}/pid; until [ -e {stop} ]; do sleep 0.05; done"
    code = (
        "import os\n"
        "if os.fork() == 0:\n"
        "    os.closerange(0, 4096)\n"
        f"    os.execvp('unshare', ['unshare', '-n', 'sh', '-c', {container!r}])\n"
        f"path = '{tmp_path}/pid'\n"
        "while not (os.path.exists(path) and os.path.getsize(path)): pass\n"
        "pid = open(path).read().strip()\n"
        "os.system('ip link add veth0 type veth peer name eth0 netns ' + pid)\n"
    )
    try:
        net.enter("python3", "-W", "ignore", "-c", code)
        wait_for("no lease is left", lambda: not net.status()["leases"])
        assert net.status()["state"] == "running"
        assert "veth0" in net.inside("ip", "-br", "link"), "the same instance, with the link"
    finally:
        stop.touch()
    net.wait_until_down()


def test_bridge_that_nobody_is_plugged_into_does_not_keep_it(net: Net) -> None:
    net.enter("sh", "-c", "ip link add br0 type bridge; ip link add v0 type veth peer name v1")
    net.wait_until_down()


# -- crash points ---


def points(*prefixes: str) -> list[str]:
    """The trace points of the program itself, so that a new one is tested by being there."""
    import re

    import rootlessnet

    found: set[str] = set()
    for path in (Path(rootlessnet.__file__).parent / "instance").glob("*.py"):
        found.update(re.findall(r'trace\("([^"]+)"\)', path.read_text()))
    chosen = sorted(point for point in found if point.startswith(prefixes))
    assert chosen, prefixes
    return chosen


@both_drivers
@pytest.mark.parametrize("point", points("start:", "holder:m"))
def test_killed_at_each_point_of_the_start(net: Net, point: str) -> None:
    done = net.enter("true", env={"ROOTLESSNET_CRASH_AT": point}, check=False)
    assert done.returncode in (125, -signal.SIGKILL, 0), done
    assert works(net)
    net.wait_until_down()


@pytest.mark.parametrize("point", points("end:"))
def test_killed_at_each_point_of_the_end(net: Net, point: str) -> None:
    child = net.hold(env={"ROOTLESSNET_CRASH_AT": point})
    supervisor = net.pids()["supervisor"]
    net.release(child)
    wait_for("the supervisor is killed", lambda: not is_alive(supervisor))
    assert works(net)
    net.wait_until_down()


@pytest.mark.parametrize("dead", [["supervisor"], ["supervisor", "holder"]], ids="+".join)
@pytest.mark.parametrize("point", points("adopt:", "holder:replaced", "restart:"))
def test_killed_at_each_point_of_taking_over(net: Net, point: str, dead: list[str]) -> None:
    child = net.hold()
    namespace = namespace_of(child)
    pids = net.pids()
    for name in dead:
        kill(pids[name])
    net.run("status", env={"ROOTLESSNET_CRASH_AT": point}, check=False)
    assert works(net)
    assert namespace_of(child) == namespace == net.inside("readlink", "/proc/self/ns/net").strip()
    net.release(child)
    net.wait_until_down()


@both_drivers
@pytest.mark.parametrize("point", points("restart:", "holder:replaced"))
def test_killed_while_a_part_is_replaced(net: Net, point: str) -> None:
    child = net.hold(env={"ROOTLESSNET_CRASH_AT": point})
    namespace = namespace_of(child)
    pids = net.pids()
    kill(pids["driver" if point.startswith("restart") else "holder"])
    wait_for("the supervisor is killed", lambda: not is_alive(pids["supervisor"]))
    wait_for("the next command puts it right", lambda: works(net))
    assert namespace_of(child) == namespace == net.inside("readlink", "/proc/self/ns/net").strip()
    net.release(child)
    net.wait_until_down()


# -- load and abuse ---


def test_enters_while_everything_of_ours_is_killed_at_random(net: Net) -> None:
    """The short form of scripts/soak."""
    soak = Path(__file__).resolve().parent.parent / "scripts" / "soak"
    done = subprocess.run(
        [str(soak), "--enters", "150", "--workers", "8", "--program", PROGRAM],
        env=net.environment, text=True, capture_output=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
