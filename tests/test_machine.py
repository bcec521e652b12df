"""Bad machines and damaged state: one clear line, exit 125, nothing left, the next run works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import PROGRAM, Net, both_drivers, kill, own_processes, wait_for


def failure(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert (done.returncode, done.stdout) == (125, ""), done
    lines = done.stderr.splitlines()
    assert lines[0].startswith("rootlessnet: ")
    assert all(line.startswith("  hint: ") for line in lines[1:]), lines
    return lines


# -- XDG_RUNTIME_DIR ---


def runtime_failure(net: Net, value: str) -> str:
    return failure(net.enter("true", env={"XDG_RUNTIME_DIR": value}, check=False))[0]


def test_runtime_dir_that_is_missing(net: Net) -> None:
    assert runtime_failure(net, "/no/such") == (
        "rootlessnet: use XDG_RUNTIME_DIR: /no/such: No such file or directory"
    )


def test_runtime_dir_that_is_relative(net: Net) -> None:
    assert runtime_failure(net, "x/y") == (
        "rootlessnet: use XDG_RUNTIME_DIR: x/y is not an absolute path"
    )


def test_runtime_dir_that_is_a_symlink(net: Net, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    assert runtime_failure(net, f"{tmp_path}/link") == (
        f"rootlessnet: use XDG_RUNTIME_DIR: {tmp_path}/link is a symbolic link"
    )
    assert os.listdir(tmp_path / "real") == []


def test_runtime_dir_of_somebody_else(net: Net) -> None:
    if os.getuid() == 0:
        pytest.skip("kernel: root owns every directory it could try")
    assert runtime_failure(net, "/root") == (
        f"rootlessnet: use XDG_RUNTIME_DIR: /root belongs to uid 0, not to uid {os.getuid()}"
    )


def test_runtime_dir_that_others_can_write_to(net: Net, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert runtime_failure(net, f"{tmp_path}/open") == (
        f"rootlessnet: use XDG_RUNTIME_DIR: {tmp_path}/open has mode 0777"
    )


def test_runtime_dir_that_is_not_writable(net: Net, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    assert runtime_failure(net, f"{tmp_path}/closed") == (
        f"rootlessnet: use XDG_RUNTIME_DIR: {tmp_path}/closed has mode 0500"
    )


def test_state_directory_prepared_by_another(net: Net, tmp_path: Path) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    (tmp_path / "trap").mkdir(mode=0o700)
    (runtime / "rootlessnet").symlink_to(tmp_path / "trap")
    assert runtime_failure(net, str(runtime)) == (
        f"rootlessnet: use the state directory: {runtime}/rootlessnet is a symbolic link"
    )
    assert os.listdir(tmp_path / "trap") == []


def test_without_runtime_dir_the_users_own_in_run_is_used(net: Net) -> None:
    environment = {k: v for k, v in net.environment.items() if k != "XDG_RUNTIME_DIR"}
    if not os.path.isdir(f"/run/user/{os.getuid()}"):
        pytest.skip("this user has no session")
    child = subprocess.run(
        [PROGRAM, "enter", "sh", "-c", f"{PROGRAM} status --json"],
        env=environment, text=True, capture_output=True, check=True,
    )  # fmt: skip
    assert '"state": "running"' in child.stdout


def test_runtime_dir_outside_run(tmp_path: Path, net: Net) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    other = Net(tmp_path / "static", runtime)
    assert "10.0.2.100" in other.inside("ip", "-br", "address", "show", "tap0")
    other.wait_until_down()
    assert os.listdir(runtime / "rootlessnet") == [f"{other.name}.lock"]


@both_drivers
def test_full_runtime_dir(net: Net, tmp_path: Path) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    script = (
        f"mount -t tmpfs -o size=64k,mode=700 x {runtime} && "
        f"(cat /dev/zero > {runtime}/full 2>/dev/null; true) && "
        f"{PROGRAM} enter true; echo $? >&2; ls {runtime} {runtime}/rootlessnet; "
        f"rm {runtime}/full; exec {PROGRAM} enter echo works"
    )
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script],
        env={**net.environment, "XDG_RUNTIME_DIR": str(runtime)},
        text=True, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    lines = done.stderr.splitlines()
    assert lines[0].startswith("rootlessnet: ")
    assert "No space left on device" in lines[0]
    assert "125" in lines
    assert done.stdout.endswith("works\n")
    assert net.name + "\n" not in done.stdout, "no state directory is left"


# -- what the kernel and the distribution have to offer ---


def test_user_namespaces_disabled(net: Net) -> None:
    # A user namespace of the test's own in which no further one may be made, and no privilege.
    script = (
        "echo 0 > /proc/sys/user/max_user_namespaces; "
        f"exec setpriv --inh-caps=-all --bounding-set=-all {PROGRAM} enter true"
    )
    done = subprocess.run(
        ["unshare", "-Ur", "sh", "-c", script],
        env=net.environment, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert failure(done) == [
        "rootlessnet: make the namespaces: No space left on device",
        "  hint: user namespaces are used up or disabled: sysctl user.max_user_namespaces",
    ]
    assert not net.directory.exists()


def test_no_newuidmap_maps_a_single_id_with_a_warning(net: Net, tmp_path: Path) -> None:
    for name in ("sh", "sleep", "cat", "slirp4netns"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    done = net.enter("cat", "/proc/self/uid_map", env={"PATH": str(tmp_path)})
    assert done.stdout.split() == ["0", str(os.getuid()), "1"]
    assert done.stderr == (
        "rootlessnet: warning: newuidmap is not installed: only one id is mapped, chown "
        "and su will fail inside\n"
    )


@both_drivers
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("mount -t tmpfs x /dev/net", "No such file or directory"),
        ("mount --bind /dev/null /dev/net/tun", ""),
    ],
)
def test_no_tun_device(net: Net, spoil: str, words: str) -> None:
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", f"{spoil} && exec {PROGRAM} enter true"],
        env=net.environment, text=True, capture_output=True, check=False, timeout=30,
    )  # fmt: skip
    lines = failure(done)
    assert lines[0].startswith(f"rootlessnet: start {net.driver}: it ended with status 1: ")
    if net.driver == "slirp4netns":
        assert words in lines[0]
    if words or net.driver == "pasta":
        assert lines[1].startswith("  hint: as root: modprobe tun")
    assert not net.directory.exists()


def test_no_slirp4netns_anywhere(net: Net) -> None:
    script = (
        "for file in /usr/bin/slirp4netns /usr/local/bin/slirp4netns; do "
        f"[ ! -e $file ] || mount --bind /dev/null $file; done; exec {PROGRAM} enter true"
    )
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script],
        env=net.environment, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert failure(done) == [
        "rootlessnet: start slirp4netns: slirp4netns not found",
        "  hint: install slirp4netns 0.4.0 or newer (Debian: apt install slirp4netns)",
    ]
    assert not net.directory.exists()


# -- damaged and foreign state ---


@pytest.mark.parametrize(
    "what", ["file", "symlink", "fifo", "tree", "old state", "regular fifo", "boot id", "closed"]
)
def test_whatever_stands_in_the_place_of_the_state_directory(
    net: Net, tmp_path: Path, what: str
) -> None:
    place = net.directory
    place.parent.mkdir(mode=0o700, exist_ok=True)
    bystander = tmp_path / "bystander"
    bystander.mkdir()
    (bystander / "precious").touch()
    if what == "file":
        place.write_bytes(os.urandom(1000))
    elif what == "symlink":
        place.symlink_to(bystander)
    elif what == "fifo":
        os.mkfifo(place)
    else:
        place.mkdir(mode=0o700)
        if what == "tree":
            (place / "root" / "deep").mkdir(parents=True)
            (place / "root" / "link").symlink_to(bystander)
        elif what == "boot id":
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            (place / "state.json").write_text(f'{{"boot_id": "{boot}"}}')
        elif what == "closed":
            place.chmod(0)
        elif what == "old state":
            (place / "state.json").write_bytes(b"\xff{[" * 1000)
            (place / "holder").write_text(f"{os.getpid()} 1 2 3 4\n")
            os.mkfifo(place / "lease.fifo")
        else:
            (place / "lease.fifo").write_text("no fifo")
    assert net.run("status").stdout.startswith(f"{net.name}: down\n")
    assert "10.0.2.100" in net.inside("ip", "-br", "address", "show", "tap0")
    assert (bystander / "precious").exists()


@pytest.mark.parametrize("damage", ["holder", "state.json", "both"])
def test_records_damaged_while_it_runs_leak_nothing(net: Net, damage: str) -> None:
    child = net.hold()
    pids = net.pids()
    for name in ("holder", "state.json"):
        if damage in (name, "both"):
            (net.directory / name).write_text("1 2 3\n")
    net.release(child)
    net.wait_until_down()
    wait_for("all have ended", lambda: not set(pids.values()) & set(own_processes()))


def test_damaged_record_of_a_running_instance_is_named(net: Net) -> None:
    net.hold()
    (net.directory / "state.json").write_text("junk")
    lines = failure(net.run("status", check=False))
    assert lines[0] == (
        f"rootlessnet: read {net.directory}/state.json: damaged, but the instance runs"
    )
    net.run("down", "--force")
    net.wait_until_down()


def test_lock_that_is_no_file(net: Net) -> None:
    lock = net.directory.with_name(f"{net.name}.lock")
    lock.parent.mkdir(mode=0o700, exist_ok=True)
    lock.symlink_to("/etc/passwd")
    try:
        lines = failure(net.enter("true", check=False))
        assert lines[0].startswith(f"rootlessnet: open the lock: {lock}: ")
    finally:
        lock.unlink()


def test_state_of_another_boot_is_discarded(net: Net) -> None:
    child = net.hold()
    state = (net.directory / "state.json").read_text()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    net.release(child)
    net.wait_until_down()
    net.directory.mkdir(mode=0o700)
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        import json

        forged = json.loads(state)
        forged["boot_id"] = boot[::-1]
        forged["driver"]["pid"] = bystander.pid
        (net.directory / "state.json").write_text(json.dumps(forged))
        net.enter("true")
        assert bystander.poll() is None, "a process of the same pid is not ours to end"
    finally:
        bystander.kill()
        bystander.wait()


@both_drivers
def test_everything_killed_and_the_next_run_starts_clean(net: Net) -> None:
    child = net.hold()
    pids = net.pids()
    first = net.status()["netns"]["inode"]
    kill(pids["supervisor"])
    child.kill()
    child.wait()
    kill(pids["driver"])
    kill(pids["holder"])
    assert net.inside("true") == ""
    net.wait_until_down()
    assert first


@both_drivers
def test_driver_ends_when_supervisor_and_holder_are_killed(net: Net) -> None:
    child = net.hold()
    pids = net.pids()
    kill(pids["supervisor"])
    kill(pids["holder"])
    wait_for(
        "the driver has ended by itself",
        lambda: pids["driver"] not in own_processes(),
    )
    child.kill()
    child.wait()
    net.enter("true")


def test_killed_start_leaves_nothing_running(net: Net, hanging_driver: dict[str, str]) -> None:
    child = net.start("enter", "true", env=hanging_driver)
    wait_for("the holder is there", lambda: (net.directory / "holder").exists())
    holder = int((net.directory / "holder").read_text().split()[0])
    supervisor = next(
        pid for pid, name in own_processes().items()
        if name.startswith("rootlessnet: supervisor")
        and str(holder) in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    )  # fmt: skip
    kill(supervisor)
    wait_for("the holder died with it", lambda: holder not in own_processes())
    child.communicate(timeout=20)
    assert child.returncode == 125
    net.enter("true")
    assert sys.executable
