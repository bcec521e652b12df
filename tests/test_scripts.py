"""The scripts of the README and of the figures, run as a person would."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import RUNTIME, own_processes, wait_for

ROOT = Path(__file__).resolve().parent.parent
IN_TESTBED = Path("/etc/rootlessnet-testbed").exists()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clean one."""
    target = tmp_path / "checkout"
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(".venv", ".git", ".*_cache"))
    return target


@pytest.fixture
def environment() -> dict[str, str]:
    """Without an index: the packages are those that the tests themselves run with."""
    packages = Path(sys.executable).parent.parent / "lib"
    site = next(packages.glob("python3.*/site-packages"))
    return {**os.environ, "PIP_NO_INDEX": "1", "PYTHONPATH": str(site)}


@pytest.fixture
def nothing_left() -> Iterator[None]:
    def state() -> tuple[set[str], set[str]]:
        base = RUNTIME / "rootlessnet"
        files = set(os.listdir(base)) if base.exists() else set()
        return set(own_processes().values()), files

    before = state()
    yield

    def left() -> list[str]:
        processes, files = state()
        ours = [p for p in processes - before[0] if "rootlessnet" in p or "slirp4netns" in p]
        return ours + sorted(files - before[1])

    wait_for("nothing is left", lambda: not left(), 10)


def attempt(checkout: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / "scripts/try"],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def check_the_show(done: subprocess.CompletedProcess[str], user: str, warning: str = "") -> None:
    complaints = [line for line in done.stderr.splitlines() if not warning or warning not in line]
    assert (done.returncode, complaints) == (0, []), done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) <= 100
    text = done.stdout
    assert re.search(rf"^rootlessnet \S+, run by {user}\.", text, re.MULTILINE), text
    assert re.search(r"^ .*\S  +tap0  10\.0\.2\.100/24$", text, re.MULTILINE), text
    assert re.search(r"  +nameserver 10\.0\.2\.3$", text, re.MULTILINE), text
    names = re.search(r"^network namespace +(net:\S+) +(net:\S+)$", text, re.MULTILINE)
    assert names is not None, text
    pages = re.findall(r"^  (\S+) +http://(\S+):\d+/ +(.*)$", text, re.MULTILINE)
    assert [page[:2] for page in pages] == [
        ("outside", "127.0.0.1"),
        ("inside", "127.0.0.1"),
        ("inside", "10.0.2.2"),
    ]
    assert pages[1][2] == "(Connection refused)"
    for page in (pages[0][2], pages[2][2]):
        hello = re.fullmatch(r"Hello, 127\.0\.0\.1:\d+! This is (net:\S+)\.", page)
        assert hello is not None, page
        assert hello[1] not in names.groups()


@pytest.mark.usefixtures("nothing_left")
def test_try_in_a_clean_checkout(
    checkout: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    import pwd

    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment["TMPDIR"] = str(temporary)
    check_the_show(attempt(checkout, environment), pwd.getpwuid(os.getuid()).pw_name)
    assert (checkout / ".venv/bin/rootlessnet").exists()
    # Again, with what the first made; and without a session's directory.
    del environment["XDG_RUNTIME_DIR"]
    done = attempt(checkout, environment)
    check_the_show(done, pwd.getpwuid(os.getuid()).pw_name)
    assert "virtual environment" not in done.stdout
    assert list(temporary.iterdir()) == []


def test_try_names_what_is_missing_without_apt(
    checkout: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "dirname", "id", "mktemp", "readlink", "rm", "python3"):
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    # Nothing to be found in the system's directories either.
    script = (checkout / "scripts/try").read_text().replace(":/usr/sbin:/sbin", "")
    (checkout / "scripts/try").write_text(script)
    environment["PATH"] = str(programs)
    done = attempt(checkout, environment)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == (
        "scripts/try: missing, and no apt-get to install them: slirp4netns, newuidmap, ip\n"
    )


@pytest.mark.root
@pytest.mark.usefixtures("nothing_left")
def test_try_as_root(checkout: Path, environment: dict[str, str]) -> None:
    # A system manager that is busy may take longer than we wait; then there is this one warning.
    done = attempt(checkout, environment)
    check_the_show(done, "root", warning="not moved into a systemd scope")


@pytest.mark.root
def test_try_under_sudo_is_run_as_the_user(environment: dict[str, str]) -> None:
    # Where she can read it, and not write.
    target = Path("/opt/rootlessnet-try")
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(".venv", ".git", ".*_cache"))
    subprocess.run(["chown", "-R", "root:", target], check=True)
    try:
        done = attempt(target, {**environment, "SUDO_USER": "alice"})
        # sudo leaves her process in her session; ours has come from root's, and may not leave it.
        check_the_show(done, "alice", warning="not moved into a systemd scope")
        assert not (target / ".venv").exists()
    finally:
        shutil.rmtree(target)


@pytest.mark.skipif(not IN_TESTBED, reason="kernel: podman's namespace is not ours to destroy")
def test_bench_prints_figures_and_limits() -> None:
    done = subprocess.run(
        [ROOT / "scripts/bench", "start", "--runs=1", "--json"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["machine"]["versions"]["podman"].startswith("podman version ")
    assert [check["name"] for check in found["start"]["checks"]] == [
        "warm enter : bare python",
        "warm enter : podman",
        "cold enter, to torn down : podman",
    ]
    assert all(row["median"] > 0 for row in found["start"]["rows"])


def test_shell_scripts_are_clean() -> None:
    files = [
        file
        for file in sorted((ROOT / "scripts").iterdir())
        if file.is_file() and file.read_bytes().startswith(b"#!/bin/bash")
    ]
    assert files
    done = subprocess.run(
        ["shellcheck", *files],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
