"""What a command sees of the file system."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support import RUNTIME, Net


def test_run_is_private_and_writable(net: Net) -> None:
    net.hold()
    net.enter("sh", "-c", "echo shared > /run/of-the-instance")
    assert not os.path.exists("/run/of-the-instance")
    assert net.inside("cat", "/run/of-the-instance") == "shared\n", "all of the instance share it"


def test_runtime_dir_is_the_real_one(net: Net) -> None:
    marker = RUNTIME / f"marker-{os.getpid()}"
    marker.write_text("here\n")
    try:
        assert net.inside("cat", str(marker)) == "here\n"
    finally:
        marker.unlink()


def test_run_systemd_is_still_there(net: Net) -> None:
    if os.path.isdir("/run/systemd"):
        assert net.inside("ls", "/run/systemd").split() == sorted(os.listdir("/run/systemd"))


def test_cni_directory_is_writable_and_nothing_disappears(net: Net) -> None:
    net.hold()
    net.enter("sh", "-c", "echo 1 > /var/lib/cni/mark")
    assert net.inside("cat", "/var/lib/cni/mark") == "1\n"
    assert not os.path.exists("/var/lib/cni/mark")
    inside = set(net.inside("ls", "-A", "/var/lib").split())
    assert inside == set(os.listdir("/var/lib")) | {"cni"}


def test_netns_made_by_one_command_is_seen_by_the_next(net: Net) -> None:
    net.hold()
    name = f"test-{os.getpid()}"
    path = RUNTIME / "netns" / name
    make = f"mkdir -p {path.parent} && : > {path} && unshare --net={path} true"
    try:
        net.enter("sh", "-c", make)
        assert "inet 127.0.0.1" not in net.inside("nsenter", f"--net={path}", "ip", "addr")
        assert os.stat(path).st_size == 0, "on the host it is an empty file"
        net.enter("umount", str(path))
    finally:
        path.unlink(missing_ok=True)


def test_mounts_of_a_command_are_its_own(net: Net, tmp_path: Path) -> None:
    net.hold()
    net.enter("sh", "-c", f"mount -t tmpfs x {tmp_path} && touch {tmp_path}/seen")
    assert net.inside("ls", str(tmp_path)) == ""
    assert os.listdir(tmp_path) == []


def test_mount_over_resolv_conf_is_the_commands_own(net: Net, tmp_path: Path) -> None:
    net.hold()
    (tmp_path / "mine").write_text("nameserver 203.0.113.200\n")
    mine = net.inside(
        "sh", "-c", f"mount --bind {tmp_path}/mine /etc/resolv.conf; cat /etc/resolv.conf"
    )
    assert mine == "nameserver 203.0.113.200\n"
    assert "203.0.113.200" not in net.inside("cat", "/etc/resolv.conf")


def test_mounts_inside_do_not_reach_the_host(net: Net) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    net.hold()
    net.enter(
        "mount", "-t", "tmpfs", "x", "/run/systemd" if os.path.isdir("/run/systemd") else "/mnt"
    )
    assert Path("/proc/self/mountinfo").read_text() == before


def test_propagation_is_slave_from_the_host_and_shared_inside(net: Net) -> None:
    lines = net.inside("cat", "/proc/self/mountinfo").splitlines()
    fields = {line.split()[4]: line.split(" - ")[0].split()[6:] for line in lines}
    assert any(field.startswith("shared:") for field in fields[f"{RUNTIME}/netns"])
    for point in ("/", str(RUNTIME)):
        assert not any(field.startswith("shared:") for field in fields[point])


def test_netns_file_of_one_command_is_seen_by_the_next(net: Net) -> None:
    holder = net.hold()
    path = RUNTIME / "netns" / f"test-{os.getpid()}"
    net.enter("sh", "-c", f"touch {path} && unshare -n mount --bind /proc/self/ns/net {path}")
    try:
        assert net.inside("stat", "-f", "-c", "%T", str(path)) == "nsfs\n"
        assert net.inside("nsenter", f"--net={path}", "ip", "-br", "link").split()[0] == "lo"
    finally:
        net.enter("sh", "-c", f"umount {path}; rm {path}")
    net.release(holder)


def test_a_directory_with_something_mounted_below_is_never_removed(tmp_path: Path) -> None:
    directory = tmp_path / "run time\\" / "state"
    (directory / "mounted").mkdir(parents=True)
    code = (
        "import errno, os, sys\n"
        "from rootlessnet.instance import cleanup\n"
        "try: cleanup.remove_tree(sys.argv[1])\n"
        "except OSError as error: sys.exit(error.errno == errno.EBUSY)\n"
    )
    script = 'mount -t tmpfs x "$1/mounted" && touch "$1/mounted/kept" && "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script, "sh", directory, sys.executable, code],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    assert directory.exists()
