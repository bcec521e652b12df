"""With real root: as root, and between two users of one machine."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import PROGRAM, Net

pytestmark = pytest.mark.root


def test_root_needs_no_user_namespace_and_the_host_notices_nothing(net: Net) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    out = net.inside("sh", "-c", "readlink /proc/self/ns/user; ip -br address show tap0")
    assert out.splitlines()[0] == os.readlink("/proc/self/ns/user")
    assert "10.0.2.100/24" in out
    net.wait_until_down()
    assert Path("/proc/self/mountinfo").read_text() == before, "slirp4netns' sandbox stays inside"


def test_roots_instance_survives_the_death_of_its_parts(net: Net) -> None:
    from support import kill

    net.hold()
    namespace = net.inside("readlink", "/proc/self/ns/net")
    pids = net.pids()
    for name in ("supervisor", "holder", "driver"):
        kill(pids[name])
    assert net.inside("readlink", "/proc/self/ns/net") == namespace
    assert "10.0.2.100/24" in net.inside("ip", "-br", "address", "show", "tap0")


def run_as(user: str, *command: str, **options) -> subprocess.CompletedProcess[str]:
    record = pwd.getpwnam(user)
    environment = {
        "HOME": record.pw_dir, "PATH": os.environ["PATH"], "USER": user,
        "XDG_RUNTIME_DIR": f"/run/user/{record.pw_uid}",
    }  # fmt: skip
    return subprocess.run(
        ["setpriv", f"--reuid={user}", f"--regid={record.pw_gid}", "--init-groups", *command],
        env=environment, text=True, capture_output=True, check=False, cwd="/", **options,
    )  # fmt: skip


@pytest.fixture
def alices() -> Iterator[Path]:
    """The state directory of an instance that alice keeps running."""
    static_dir = "/tmp/alices-static-dir"
    up = run_as("alice", PROGRAM, "--static-dir", static_dir, "up", "--name", "neighbour")
    assert up.returncode == 0, up.stderr
    uid = pwd.getpwnam("alice").pw_uid
    name = Net(Path(static_dir)).name
    yield Path(f"/run/user/{uid}/rootlessnet/{name}")
    run_as("alice", PROGRAM, "--static-dir", static_dir, "down", "--all", "--force")


@pytest.mark.parametrize("what", ["", "lease.fifo", "state.json", "holder", "log", "root/run"])
def test_neighbour_cannot_reach_the_state(alices: Path, what: str) -> None:
    assert (alices / what).exists()
    for command in (["cat"], ["ls"], ["touch"], ["sh", "-c", "exec 3<>$0"]):
        done = run_as("mallory", *command, str(alices / what), timeout=10)
        assert "Permission denied" in done.stderr, (command, done)


def test_neighbour_cannot_join_or_signal(alices: Path) -> None:
    pid = (alices / "holder").read_text().split()[0]
    for command in (
        ["nsenter", "-t", pid, "-n", "true"],
        ["ls", f"/proc/{pid}/root"],
        ["kill", "-9", pid],
    ):
        done = run_as("mallory", *command)
        assert done.returncode != 0
        assert "not permitted" in done.stderr or "denied" in done.stderr, done.stderr


def test_neighbours_runtime_dir_is_refused(alices: Path) -> None:
    runtime = alices.parent.parent
    done = run_as("mallory", "env", f"XDG_RUNTIME_DIR={runtime}", PROGRAM, "enter", "true")
    assert done.returncode == 125
    alice, mallory = pwd.getpwnam("alice").pw_uid, pwd.getpwnam("mallory").pw_uid
    assert done.stderr == (
        f"rootlessnet: use XDG_RUNTIME_DIR: {runtime} belongs to uid {alice}, "
        f"not to uid {mallory}\n"
        "  hint: set XDG_RUNTIME_DIR to a directory of your own; after su or sudo, unset it\n"
    )


def test_directory_prepared_in_tmp_by_a_neighbour_is_refused(tmp_path: Path) -> None:
    uid = pwd.getpwnam("alice").pw_uid
    trap = Path(f"/tmp/rootlessnet-{uid}")
    assert not trap.exists()
    # alice without a session of her own has to take a directory in /tmp.
    script = (
        f"mount -t tmpfs x /run/user && exec setpriv --reuid={uid} --clear-groups "
        f"{PROGRAM} enter true"
    )
    made = run_as("mallory", "mkdir", "-m", "777", str(trap))
    assert made.returncode == 0
    try:
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", script],
            env={"PATH": os.environ["PATH"], "HOME": "/home/alice"},
            text=True, capture_output=True, check=False, cwd="/",
        )  # fmt: skip
        assert done.returncode == 125
        mallory = pwd.getpwnam("mallory").pw_uid
        assert done.stderr.splitlines()[0] == (
            f"rootlessnet: use the runtime directory: {trap} belongs to uid {mallory}, "
            f"not to uid {uid}"
        )
        assert os.listdir(trap) == []
    finally:
        trap.rmdir()


def test_user_without_a_session_gets_a_directory_in_tmp() -> None:
    uid = pwd.getpwnam("alice").pw_uid
    directory = Path(f"/tmp/rootlessnet-{uid}")
    script = (
        f"mount -t tmpfs x /run/user && exec setpriv --reuid={uid} --regid={uid} --clear-groups "
        f"{PROGRAM} enter ip -br address show tap0"
    )
    try:
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", script],
            env={"PATH": os.environ["PATH"], "HOME": "/home/alice"},
            text=True, capture_output=True, check=False, cwd="/",
        )  # fmt: skip
        assert "10.0.2.100/24" in done.stdout, done.stderr
        assert directory.stat().st_mode & 0o777 == 0o700
    finally:
        subprocess.run(["rm", "-rf", str(directory)], check=False)


def test_logout_without_lingering_ends_everything() -> None:
    """The session of a user who does not linger: her manager ends after it, and all with it."""
    from support import wait_for

    uid = pwd.getpwnam("mallory").pw_uid
    assert not Path("/var/lib/systemd/linger/mallory").exists()
    ours = f"{PROGRAM} --static-dir /tmp/mallorys"
    script = f"{ours} up; {ours} status; cat"
    session = subprocess.Popen(
        ["systemd-run", "--quiet", "--pipe", "--wait", "--uid=mallory", "-p", "PAMName=login",
         "sh", "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert session.stdout is not None
    line = session.stdout.readline()
    assert line.endswith(": running\n"), line
    state = Path(f"/run/user/{uid}/rootlessnet")
    assert state.is_dir()
    session.communicate("", timeout=20)

    def processes() -> list[str]:
        return [
            name for name in os.listdir("/proc")
            if name.isdecimal() and os.path.exists(f"/proc/{name}")
            and os.stat(f"/proc/{name}").st_uid == uid
        ]  # fmt: skip

    def gone() -> bool:
        try:
            return not processes() and not state.exists()
        except FileNotFoundError:
            return False

    wait_for("logind has ended the user's manager, and with it all of ours", gone, 60)
