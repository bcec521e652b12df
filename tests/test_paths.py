"""Which instance: static dir, key and lock, the same as podman's for the same configuration."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support import RUNTIME, Net

from rootlessnet.instance.paths import Instance


def test_key_is_podmans() -> None:
    path = "/home/alice/.local/share/containers/storage/libpod"
    assert Instance("/run", path).name == "rootless-netns-ced1f21335ca354fd28e"


def test_lock_is_outside_the_directory_it_guards() -> None:
    instance = Instance("/run/user/1/rootlessnet", "/x")
    assert instance.lock_path == instance.directory + ".lock"


def chosen(home: Path, *arguments: str, **variables: str) -> str:
    """The static dir that the program uses in this home."""
    import json

    base = {"HOME": str(home), "PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(RUNTIME)}
    done = subprocess.run(
        ["rootlessnet", *arguments, "status", "--json"],
        env=base | variables, check=True, capture_output=True, text=True,
    )  # fmt: skip
    static_dir: str = json.loads(done.stdout)["static_dir"]
    return static_dir


def test_order_of_the_sources(tmp_path: Path) -> None:
    config = tmp_path / ".config/containers"
    config.mkdir(parents=True)
    assert chosen(tmp_path) == f"{tmp_path}/.local/share/containers/storage/libpod"
    assert chosen(tmp_path, XDG_DATA_HOME="/data") == "/data/containers/storage/libpod"
    (config / "storage.conf").write_text('[storage]\ndriver = "vfs"\ngraphroot = "/graph/$UID"\n')
    assert chosen(tmp_path) == f"/graph/{os.getuid()}/libpod"
    (config / "containers.conf").write_text('[engine]\nstatic_dir = "/from/conf"\n')
    assert chosen(tmp_path) == "/from/conf"
    (config / "containers.conf.d").mkdir()
    (config / "containers.conf.d/10-a.conf").write_text('[engine]\nstatic_dir = "/drop/in"\n')
    assert chosen(tmp_path) == "/drop/in"
    assert chosen(tmp_path, ROOTLESSNET_STATIC_DIR="/from/env") == "/from/env"
    assert chosen(tmp_path, "--static-dir", "/opt/", ROOTLESSNET_STATIC_DIR="/from/env") == "/opt"


def test_leading_slashes_are_one() -> None:
    from rootlessnet.instance import paths

    assert paths.resolve_static_dir("//opt//x/../y/")[0] == "/opt/y"


def test_comments_and_other_tables_do_not_count(tmp_path: Path) -> None:
    config = tmp_path / ".config/containers"
    config.mkdir(parents=True)
    (config / "containers.conf").write_text(
        '[engine]\n# static_dir = "/no"\n  #static_dir="/no"\n[network]\nstatic_dir = "/neither"\n'
    )
    assert chosen(tmp_path).startswith(f"{tmp_path}/.local/share")


def test_environment_chooses_the_files(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text('[engine]\nstatic_dir = "/one"\n')
    two.write_text('[engine]\nstatic_dir = "/two"\n')
    assert chosen(tmp_path, CONTAINERS_CONF=str(one)) == "/one"
    assert chosen(tmp_path, CONTAINERS_CONF=str(one), CONTAINERS_CONF_OVERRIDE=str(two)) == "/two"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[engine]\nstatic_dir = /x\n", "Invalid value (at line 2, column 14)"),
        ("[engine]\nstatic_dir = 3\n", 'static_dir in [engine] has to be a string, "..."'),
        ('[engine\nstatic_dir = "/x"\n', "Expected ']' at the end of a table declaration"),
        ("[engine]\nstatic_dir = '\udcff'\n", "'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_damaged_configuration_is_named(net: Net, tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "containers.conf"
    path.write_text(text, errors="surrogateescape")
    environment = {k: v for k, v in net.environment.items() if k != "ROOTLESSNET_STATIC_DIR"}
    done = subprocess.run(
        ["rootlessnet", "enter", "true"], env={**environment, "CONTAINERS_CONF": str(path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 125
    assert done.stderr.splitlines()[0].startswith(f"rootlessnet: read {path}: {reason}")


PODMAN_CASES = {
    "default": ({}, {}),
    "graphroot": ({"storage.conf": '[storage]\ndriver="vfs"\ngraphroot="{home}/graph"\n'
                                   'runroot="{home}/run"\n'}, {}),
    "static_dir": ({"containers.conf": '[engine]\nstatic_dir = "{home}/static"\n'}, {}),
    "data home": ({}, {"XDG_DATA_HOME": "{home}/data"}),
    "rootless_storage_path": (
        {"storage.conf": '[storage]\ndriver="vfs"\nrootless_storage_path="{home}/r$UID"\n'}, {}
    ),
    "symlinked storage": ({}, {"XDG_DATA_HOME": "{home}/link"}),
}  # fmt: skip


@pytest.mark.parametrize("case", PODMAN_CASES)
def test_podman_computes_the_same_key(tmp_path: Path, case: str) -> None:
    """podman names its own namespace file by the key; it is made here, and removed again."""
    home = tmp_path / "home"
    files, variables = PODMAN_CASES[case]
    (home / ".config/containers").mkdir(parents=True)
    (home / "target/containers/storage").mkdir(parents=True)
    (home / "link").symlink_to("target")
    for name, text in files.items():
        (home / ".config/containers" / name).write_text(text.replace("{home}", str(home)))
    variables = {key: value.replace("{home}", str(home)) for key, value in variables.items()}
    ours = Instance("", chosen(home, **variables)).name
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    environment = {
        "HOME": str(home), "PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(runtime), **variables,
    }  # fmt: skip
    script = (
        f"podman --log-level=error unshare --rootless-netns true; ls {runtime}/netns; "
        f"kill $(cat {runtime}/libpod/tmp/rootless-netns/*.pid); "
        f"umount -l {runtime}/netns/*"
    )
    done = subprocess.run(
        ["podman", "--log-level=error", "unshare", "sh", "-c", script],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout.split() == [ours], done.stderr
    subprocess.run(
        ["podman", "unshare", "rm", "-rf", str(home), str(runtime / "netns")],
        env=environment, check=False, capture_output=True,
    )  # fmt: skip
    for pid in (runtime / "libpod/tmp/pause.pid", runtime / "libpod/pause.pid"):
        if pid.exists():
            os.kill(int(pid.read_text()), 9)
