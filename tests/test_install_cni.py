"""rootlessnet install-cni: the plugin under both its names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from device_support import PLUGIN

HINT = "  hint: rootlessnet --help shows the commands and their options\n"


def install(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rootlessnet", "install-cni", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def links(directory: Path) -> dict[str, str]:
    return {path.name: os.path.realpath(path) for path in directory.iterdir()}


def test_install(tmp_path: Path) -> None:
    both = dict.fromkeys(("host-device", "rootlessnet-host-device"), os.path.realpath(PLUGIN))
    for _ in range(2):
        done = install(str(tmp_path))
        assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
        assert links(tmp_path) == both
    answer = subprocess.run(
        [tmp_path / "host-device"],
        env={"CNI_COMMAND": "VERSION"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == (
        '{"cniVersion":"1.1.0","supportedVersions":'
        '["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}\n'
    )


def test_somebody_elses_plugin_is_kept(tmp_path: Path) -> None:
    other = tmp_path / "host-device"
    other.write_text("theirs")
    done = install(str(tmp_path))
    assert (done.stdout, done.returncode) == ("", 125)
    assert done.stderr == (
        f"rootlessnet: install {other}: another plugin has that name\n"
        "  hint: --force replaces it; in a directory of its own both can be kept\n"
    )
    assert other.read_text() == "theirs"
    assert install("--force", str(tmp_path)).returncode == 0
    assert links(tmp_path)["host-device"] == os.path.realpath(PLUGIN)
    assert sorted(links(tmp_path)) == ["host-device", "rootlessnet-host-device"]


def test_errors(tmp_path: Path) -> None:
    for arguments, error in (
        ([], "install-cni: too few arguments: install-cni DIR [--force]"),
        (["a", "b"], "unexpected argument b"),
    ):
        done = install(*arguments)
        assert (done.stderr, done.returncode) == (f"rootlessnet: {error}\n{HINT}", 125)
    done = install(str(tmp_path / "none"))
    link = tmp_path / "none/rootlessnet-host-device"
    assert done.returncode == 125
    assert done.stderr == f"rootlessnet: install {link}: No such file or directory\n"
