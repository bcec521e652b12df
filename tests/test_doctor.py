"""doctor and logs: what the user types when something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from support import PROGRAM, Net, both_drivers, kill, wait_for


def findings(net: Net, **options) -> dict[str, dict[str, str]]:
    done = net.run("doctor", "--json", check=False, **options)
    return {item["check"]: item for item in json.loads(done.stdout)}


@both_drivers
def test_good_machine(net: Net) -> None:
    done = net.run("doctor", check=False)
    assert done.returncode == 0, done.stdout
    assert "error" not in {line.split()[0] for line in done.stdout.splitlines()}
    found = findings(net)
    for check in ("runtime directory", "user namespaces", "subordinate ids", "tun device"):
        assert found[check]["level"] == "ok"
    assert "version" in found[net.driver]["text"]


def spoiled(net: Net, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["unshare", "-Urm", "sh", "-c", f"{script}; exec {PROGRAM} doctor"],
        env=net.environment, text=True, capture_output=True, check=False,
    )  # fmt: skip


def test_each_failing_check_names_the_command_that_mends_it(net: Net) -> None:
    done = spoiled(net, "mount -t tmpfs x /dev/net")
    assert done.returncode == 1
    lines = [line.split(None, 3) for line in done.stdout.splitlines()]
    at = next(n for n, words in enumerate(lines) if words[:3] == ["error", "tun", "device"])
    assert lines[at][3] == "/dev/net/tun is missing"
    assert " ".join(lines[at + 1]) == "mend it: sudo modprobe tun"


def test_no_driver(net: Net) -> None:
    done = spoiled(net, "mount --bind /dev/null /usr/bin/slirp4netns")
    assert done.returncode == 1
    assert "apt install slirp4netns" in done.stdout


def test_no_user_namespaces(net: Net) -> None:
    script = (
        "echo 0 > /proc/sys/user/max_user_namespaces;"
        f"exec setpriv --inh-caps=-all --bounding-set=-all {PROGRAM} doctor"
    )
    done = subprocess.run(
        ["unshare", "-Ur", "sh", "-c", script],
        env=net.environment, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "mend it: sudo sysctl -w user.max_user_namespaces=15000" in done.stdout


def test_no_newuidmap(net: Net, tmp_path: Path) -> None:
    for name in ("sleep", "slirp4netns"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    found = findings(net, env={"PATH": str(tmp_path)})["subordinate ids"]
    assert found["level"] == "warning"
    assert found["mend"] == "sudo apt install uidmap"


def test_leftovers_of_a_crash_are_shown_and_mended(net: Net) -> None:
    child = net.hold()
    kill(net.pids()["supervisor"])
    found = findings(net)["leftovers"]
    assert found["level"] == "warning" and net.name in found["text"]
    subprocess.run(
        ["sh", "-c", found["mend"]], env=net.environment, check=True, capture_output=True
    )
    assert "leftovers" not in findings(net)
    net.release(child)


def test_bad_runtime_dir(net: Net) -> None:
    done = net.run("doctor", env={"XDG_RUNTIME_DIR": "/no/such"}, check=False)
    assert done.returncode == 1
    assert "error    runtime dir          use XDG_RUNTIME_DIR: /no/such" in done.stdout


def test_nothing_is_left_by_the_doctor(net: Net) -> None:
    net.run("doctor", check=False)
    assert not net.directory.exists()


# -- logs ---


def test_log_file_of_the_running_instance(net: Net) -> None:
    net.hold()
    text = net.run("logs", "--file").stdout
    assert "supervisor: running:" in text and "received tapfd" in text


def test_journal_keeps_the_log_after_the_end(net: Net) -> None:
    if not os.path.exists("/run/systemd/journal/socket"):
        return
    net.enter("true")
    net.wait_until_down()
    wait_for("the journal has it", lambda: "unused: ending" in net.run("logs").stdout)
    assert "received tapfd" in net.run("logs").stdout


def test_log_is_followed_to_the_end(net: Net) -> None:
    child = net.hold()
    follower = net.start("logs", "--file", "-f")
    assert follower.stdout is not None
    line = ""
    while "running:" not in line:
        line = follower.stdout.readline()
        assert line
    kill(net.pids()["driver"])
    while "restarted as" not in line:
        line = follower.stdout.readline()
        assert line
    net.release(child)
    assert "unused: ending" in follower.communicate(timeout=20)[0]
    assert follower.returncode == 0


def test_no_log(net: Net) -> None:
    done = net.run("logs", "--file", check=False)
    assert (done.returncode, done.stderr) == (
        125,
        "rootlessnet: show the log: there is no journal, and no instance runs\n",
    )


def test_log_file_is_bounded(net: Net) -> None:
    net.hold()
    log = net.directory / "log"
    with log.open("a") as file:
        for _ in range(40):
            file.write("x" * 9999 + "\n")
            file.flush()
    wait_for("it is cut", lambda: log.stat().st_size < 300 * 1024)
    assert net.status()["state"] == "running"
