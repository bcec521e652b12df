"""What is shipped: wheel, sdist, pipx, and the Debian package."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import wheels
from support import Net, wait_for

ROOT = Path(__file__).resolve().parent.parent
MAN = sorted((ROOT / "docs/man").glob("*.[1-8]"))
NEEDED = ("dbus-next", "psutil", "pyroute2", "python-daemon", "rich")
COMPLETIONS = {
    "rootlessnet.bash": "bash-completion/completions/rootlessnet",
    "rootlessnet.zsh": "zsh/site-functions/_rootlessnet",
    "rootlessnet.fish": "fish/vendor_completions.d/rootlessnet.fish",
}
UNITS = ("rootlessnet.service", "rootlessnet@.service", "behind-rootlessnet.conf")


def run(*command: str | Path, env: Mapping[str, str] | None = None, timeout: float = 120) -> str:
    done = subprocess.run(
        command, env=env, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and the wheel that was built out of that."""
    output = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "checkout"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".venv", ".git", ".*_cache"))
    build = [sys.executable, "-m", "hatchling", "build", "--directory", str(output)]
    subprocess.run([*build, "--target", "sdist"], cwd=source, check=True, capture_output=True)
    (archive,) = output.glob("*.tar.gz")
    (output / "unpacked").mkdir()
    run("tar", "-xf", archive, "-C", output / "unpacked")
    (unpacked,) = (output / "unpacked").iterdir()
    subprocess.run([*build, "--target", "wheel"], cwd=unpacked, check=True, capture_output=True)
    return output


def test_sdist_has_everything_of_the_checkout(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    wanted = ["README.md", "NEWS.md", "LICENSE", "hatch_build.py", "docs/architecture.md"]
    wanted += [f"completions/{name}" for name in COMPLETIONS]
    wanted += [f"systemd/{name}" for name in UNITS]
    for directory in ("docs", "rootlessnet", "scripts", "tests"):
        files = (path for path in (ROOT / directory).rglob("*") if path.is_file())
        wanted += [str(path.relative_to(ROOT)) for path in files if path.suffix != ".pyc"]
    assert set(wanted) - names == set()
    assert not [name for name in names if name.startswith(".ci")]


def test_wheel_has_program_units_pages_and_completions(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name.partition(".data/data/")[2] or name for name in archive.namelist()}
        metadata = next(name for name in names if name.endswith("entry_points.txt"))
        programs = archive.read(metadata).decode()
    wanted = {f"share/man/man{page.suffix[1:]}/{page.name}" for page in MAN}
    wanted |= {f"share/{place}" for place in COMPLETIONS.values()}
    wanted |= {f"rootlessnet/units/{name}" for name in UNITS}
    wanted |= {f"rootlessnet/completions/{name}" for name in COMPLETIONS}
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "rootlessnet").rglob("*.py")}
    assert wanted - names == set()
    assert "rootlessnet = " in programs and "rootlessnet-host-device = " in programs
    assert not [name for name in names if name.startswith(("tests", "scripts"))]


def test_pipx_installs_the_wheel(built: Path, tmp_path: Path, net: Net) -> None:
    (wheel,) = built.glob("*.whl")
    net.environment |= wheels.environment(tmp_path / "wheels", *NEEDED)
    net.environment |= {
        "PIPX_HOME": str(tmp_path / "pipx"),
        "PIPX_BIN_DIR": str(tmp_path / "bin"),
        "HOME": str(tmp_path),
    }
    run("pipx", "install", wheel, env=net.environment)
    program = tmp_path / "bin" / "rootlessnet"
    assert run(program, "--version", env=net.environment).startswith("rootlessnet ")
    inside = run(program, "enter", "--", "ip", "-brief", "address", "show", env=net.environment)
    assert "tap0" in inside
    assert "complete -F" in run(program, "completion", "bash", env=net.environment)
    units = run(program, "install-units", "--user-dir", tmp_path / "units", env=net.environment)
    assert str(program) in Path(units.splitlines()[0]).read_text()
    share = tmp_path / "pipx/venvs/rootlessnet/share"
    assert {page.name for page in MAN} == {page.name for page in share.glob("man/man*/*")}


# --- the Debian package --------------------------------------------------------------------------


def as_alice(*command: str) -> str:
    """As her who has no root, in her session's environment and without our virtual environment."""
    alice = pwd.getpwnam("alice")
    settings = [f"HOME={alice.pw_dir}", f"XDG_RUNTIME_DIR=/run/user/{alice.pw_uid}"]
    settings += ["PATH=/usr/bin:/bin", "LANG=C.UTF-8", "ROOTLESSNET_STATIC_DIR=/deb"]
    return run("runuser", "-u", "alice", "--", "env", "-i", *settings, *command)


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built as on a machine of its own."""
    base = tmp_path_factory.mktemp("deb")
    environment = wheels.environment(base / "wheels", *NEEDED, "hatchling")
    source = base / "checkout"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".venv", ".git", ".*_cache"))
    # Without our virtual environment's Python, as a user has it.
    environment |= {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(base)}
    path = run(source / "scripts/deb", base / "out", env=environment)
    return Path(path.strip())


@pytest.fixture(scope="module")
def installed(deb: Path) -> Iterator[None]:
    run("dpkg", "--install", deb)
    yield
    run("dpkg", "--purge", "rootlessnet")


@pytest.mark.root
def test_deb_says_what_it_needs(deb: Path) -> None:
    fields = dict(
        line.split(": ", 1)
        for line in run("dpkg-deb", "--field", deb).splitlines()
        if not line.startswith(" ")
    )
    assert fields["Package"] == "rootlessnet"
    assert fields["Architecture"] == "all"
    assert "~dev" in fields["Version"] or "dev" not in fields["Version"]
    assert fields["Recommends"] == "slirp4netns, uidmap, dbus-user-session"
    for name in ("python3 (>= 3.11)", "python3-psutil", "python3-dbus-next", "python3-rich"):
        assert name in fields["Depends"]
    owners = {line.split()[1] for line in run("dpkg-deb", "--contents", deb).splitlines()}
    assert owners == {"root/root"}


@pytest.mark.root
@pytest.mark.usefixtures("installed")
def test_deb_has_everything_in_its_place() -> None:
    listed = set(run("dpkg", "--listfiles", "rootlessnet").splitlines())
    wanted = {f"/usr/share/man/man{page.suffix[1:]}/{page.name}.gz" for page in MAN}
    wanted |= {
        "/usr/bin/rootlessnet",
        "/usr/bin/rootlessnet-host-device",
        "/usr/lib/cni/rootlessnet-host-device",
        "/usr/lib/systemd/user/rootlessnet.service",
        "/usr/lib/systemd/user/rootlessnet@.service",
        "/usr/share/bash-completion/completions/rootlessnet",
        "/usr/share/zsh/vendor-completions/_rootlessnet",
        "/usr/share/fish/vendor_completions.d/rootlessnet.fish",
        "/usr/share/doc/rootlessnet/copyright",
    }
    assert wanted - listed == set()
    unit = Path("/usr/lib/systemd/user/rootlessnet.service").read_text()
    assert "ExecStart=/usr/bin/rootlessnet up --foreground" in unit
    run("man", "--where", "rootlessnet-enter")
    run("dpkg", "--verify", "rootlessnet")


@pytest.mark.root
@pytest.mark.usefixtures("installed")
def test_deb_works_for_alice() -> None:
    assert as_alice("/usr/bin/rootlessnet", "--version").startswith("rootlessnet ")
    inside = as_alice("/usr/bin/rootlessnet", "enter", "--", "ip", "-brief", "address")
    assert "tap0" in inside
    as_alice("/usr/bin/rootlessnet", "enter", "--", "true")
    as_alice("/usr/bin/rootlessnet", "network", "ls", "--json")
    down = '"state": "down"'
    wait_for("it ends", lambda: down in as_alice("/usr/bin/rootlessnet", "status", "--json"))
    offered = as_alice("fish", "-c", "complete -C 'rootlessnet ent'")
    assert offered.startswith("enter\t")


@pytest.mark.root
@pytest.mark.usefixtures("installed")
def test_deb_starts_from_bytecode_and_without_site() -> None:
    """What makes its start no slower than that of a virtual environment."""
    private = Path("/usr/lib/rootlessnet")
    sources = list(private.rglob("*.py"))
    assert sources
    tag = sys.implementation.cache_tag
    for path in sources:
        assert (path.parent / "__pycache__" / f"{path.stem}.{tag}.pyc").exists(), path
    assert Path("/usr/bin/rootlessnet").read_text().startswith("#!/usr/bin/python3 -IS\n")


@pytest.mark.root
@pytest.mark.usefixtures("installed")
def test_deb_goes_without_a_trace() -> None:
    as_alice("/usr/bin/rootlessnet", "enter", "--", "true")
    run("dpkg", "--remove", "rootlessnet")
    assert not Path("/usr/lib/rootlessnet").exists()
    assert not os.path.lexists("/usr/bin/rootlessnet")
    status = subprocess.run(["dpkg", "--status", "rootlessnet"], capture_output=True, check=False)
    assert status.returncode != 0, "there is nothing left to purge"
