"""What is in the place of a record of ours and is none: no command waits for it, or believes it."""

from __future__ import annotations

import os
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Net, is_alive, kill, wait_for

from rootlessnet.kernel import files

RECORDS = [
    "state.json", "holder", "degraded", "log", "leases/keep", "containers/c1", "containers.lock",
    "containers.pending", "addresses.db", "ports/rules.json", "ports/forwarder", "ports/wanted",
]  # fmt: skip

COMMANDS = [
    ["status"], ["enter", "true"], ["path"], ["ps"], ["container", "ls"], ["port", "ls"],
    ["logs", "--file"], ["container", "setup", "--new", "c2"], ["container", "teardown", "c1"],
]  # fmt: skip

REFUSED_BY = {
    "state.json": {"status"},
    "holder": {"status", "enter", "path", "container setup", "container teardown"},
    "log": {"logs"},
}


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def _link(path: Path) -> None:
    path.symlink_to("/dev/zero")


KINDS: dict[str, Callable[[Path], None]] = {"fifo": os.mkfifo, "socket": _socket, "link": _link}


def _wait_for_end(pids: dict[str, int]) -> None:
    wait_for("they have ended", lambda: not any(map(is_alive, pids.values())))


@pytest.mark.parametrize("name", RECORDS)
def test_a_fifo_in_place_of_a_record_keeps_nobody_waiting(net: Net, name: str) -> None:
    net.run("up", "--name", "keep")
    net.run("container", "setup", "--new", "c1")
    net.run("port", "add", "127.0.0.1:0:80")
    pids = net.pids()
    path = net.directory / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    refused = set()
    for command in COMMANDS:
        done = net.run(*command, check=False, timeout=10)
        if done.returncode:
            assert done.returncode == 125
            assert str(path) in done.stderr.splitlines()[0]
            refused.add(" ".join(command[:2]) if command[0] == "container" else command[0])
    assert refused == REFUSED_BY.get(name, set())
    net.run("down", "--force", timeout=10)
    assert not net.directory.exists()
    _wait_for_end(pids)


@pytest.mark.parametrize("name", ["state.json", "holder", "log", "leases/keep"])
def test_a_fifo_does_not_keep_the_next_supervisor_waiting(net: Net, name: str) -> None:
    net.run("up", "--name", "keep")
    pids = net.pids()
    (net.directory / name).unlink()
    os.mkfifo(net.directory / name)
    kill(pids["supervisor"])
    done = net.run("enter", "true", check=False, timeout=10)
    if name in ("state.json", "holder"):
        assert done.returncode == 125
        assert f"{net.directory}/{name}: damaged, but the instance is in use" in done.stderr
    else:
        assert (done.returncode, done.stderr) == (0, "")
    assert is_alive(pids["holder"]), "what is in use is not torn down by guesswork"
    net.run("down", "--force", timeout=10)
    _wait_for_end(pids)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "record"
    KINDS[kind](path)
    if kind == "link":
        with pytest.raises(OSError, match="not a regular file"):
            files.read(str(path), 100, follow=True)
    with pytest.raises(OSError, match=r"not a regular file|symbolic links"):
        files.read(str(path), 100)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "record"
    files.replace(str(path), b"one", mode=0o644)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"one", 0o644)
    files.replace(str(path), b"two")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"two", 0o600)
    assert os.listdir(tmp_path) == ["record"]


@pytest.mark.parametrize("kind", ["fifo", "link", "file"])
def test_what_a_killed_writer_left_is_in_nobodys_way(tmp_path: Path, kind: str) -> None:
    left = tmp_path / ".record.new"
    KINDS.get(kind, Path.touch)(left)
    files.replace(str(tmp_path / "record"), b"new", durable=True)
    assert (tmp_path / "record").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["record"]


def test_a_full_disk_leaves_the_old_file_and_no_other(net: Net, tmp_path: Path) -> None:
    """Also where there was room for the beginning."""
    script = (
        "import os, sys\n"
        "from rootlessnet.kernel import files, libc\n"
        "os.chdir(sys.argv[1])\n"
        "files.replace('./record', b'old')\n"
        "try:\n"
        "    files.replace('./record', bytes(1 << 20), durable=True)\n"
        "except OSError as error:\n"
        "    print(error.strerror, os.listdir(), open('record').read())\n"
    )
    mounted = f'mount -t tmpfs -o size=64k x {tmp_path} && exec {sys.executable} -c "$1" {tmp_path}'
    done = net.run("enter", "--", "sh", "-c", mounted, "sh", script, check=False)
    assert (done.stdout, done.stderr) == ("No space left on device ['record'] old\n", "")
