"""The backend: for the same home podman chooses the same, and refuses the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from network_support import Home, error_of
from network_support import home as home


def store(home: Home, kind: str, text: str) -> None:
    """Put a list of containers or images into podman's storage."""
    directory = home.graphroot / f"vfs-{kind}"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{kind}.json").write_text(text)


def conflists(home: Home, *names: str) -> None:
    directory = home.directory("cni")
    directory.mkdir(parents=True)
    for name in names:
        (directory / f"{name}.conflist").write_text(
            f'{{"cniVersion": "0.4.0", "name": "{name}", "plugins": [{{"type": "bridge"}}]}}'
        )


def sentinel(home: Home, data: bytes) -> None:
    home.graphroot.mkdir(parents=True, exist_ok=True)
    home.sentinel.write_bytes(data)


NOWHERE = 'helper_binaries_dir = ["/nowhere", "/here"]'
IMAGE = '[{"id":"4c0154a7d42399543ac01eae2f874abe2eb3b1dc45eff0ff55a3eca6d812fce8","names":["a"]}]'

# What is done to a fresh home, and what is chosen there; "" is an error.
CASES: dict[str, tuple[Callable[[Home], object], str]] = {
    "fresh": (lambda home: None, "netavark"),
    "configured cni": (lambda home: home.configure('network_backend = "cni"'), "cni"),
    "configured netavark": (
        lambda home: home.configure('network_backend = "netavark"'), "netavark"
    ),
    "configured nonsense": (lambda home: home.configure('network_backend = "foo"'), ""),
    "configured, not there": (
        lambda home: home.configure('network_backend = "netavark"', NOWHERE), ""
    ),
    "no netavark": (lambda home: home.configure("", NOWHERE), "cni"),
    "sentinel netavark": (lambda home: sentinel(home, b"netavark"), "netavark"),
    "sentinel cni": (lambda home: sentinel(home, b"cni"), "cni"),
    "sentinel with a newline": (lambda home: sentinel(home, b"netavark\n"), ""),
    "sentinel empty": (lambda home: sentinel(home, b""), ""),
    "sentinel is a directory": (lambda home: home.sentinel.mkdir(parents=True), ""),
    "sentinel, not there": (
        lambda home: (sentinel(home, b"netavark"), home.configure("", NOWHERE)), ""
    ),
    "sentinel before configuration": (
        lambda home: (sentinel(home, b"x"), home.configure('network_backend = "cni"')), "cni"
    ),
    "container": (lambda home: store(home, "containers", '[{"id":"a"}]'), "cni"),
    "no container": (lambda home: store(home, "containers", "[]"), "netavark"),
    "image": (lambda home: store(home, "images", IMAGE), "cni"),
    "null images": (lambda home: store(home, "images", "null"), "netavark"),
    "half an image": (lambda home: store(home, "images", IMAGE[:20]), "cni"),
    "no images' list": (lambda home: store(home, "images", "garbage"), "netavark"),
    "one CNI network": (lambda home: conflists(home, "one"), "cni"),
    "only the default CNI network": (lambda home: conflists(home, "podman"), "netavark"),
    "default CNI network and another": (lambda home: conflists(home, "podman", "a"), "cni"),
    "damaged CNI network": (
        lambda home: (conflists(home), (home.directory("cni") / "a.conflist").write_text("{")),
        "netavark",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_podman_chooses_the_same(tmp_path: Path, case: str) -> None:
    prepare, expected = CASES[case]
    podmans, ours = Home(tmp_path / "podman"), Home(tmp_path / "ours")
    try:
        for one in (podmans, ours):
            prepare(one)
        theirs = podmans.podman("info", "--format", "{{.Host.NetworkBackend}}", check=False)
        done = ours.run("backend", check=False)
        assert theirs.stdout.strip() == expected
        assert done.stdout.partition(":")[0] == expected
        if not expected:
            assert done.returncode == theirs.returncode == 125
            said = done.stderr.splitlines()[0].removeprefix(
                "rootlessnet: choose the network backend: "
            )
            # Go names the system call and writes in small letters.
            wanted = error_of(theirs.stderr).replace("value: read ", "value: ")
            assert said.lower() == wanted.replace(str(podmans.path), str(ours.path)).lower()
        written = [
            one.sentinel.read_bytes() if one.sentinel.is_file() else None for one in (podmans, ours)
        ]
        assert written[0] == written[1]
        if expected and written[1] is not None:
            assert ours.sentinel.stat().st_mode & 0o777 == 0o644
            assert podmans.sentinel.stat().st_mode & 0o777 == 0o644
    finally:
        podmans.end()
        ours.end()


def test_what_we_chose_counts_for_podman(home: Home) -> None:
    home.configure("", NOWHERE)
    assert home.run("backend").stdout == "cni: netavark is not in /nowhere /here\n"
    assert home.sentinel.read_bytes() == b"cni"
    home.configure("")
    assert home.podman("info", "--format", "{{.Host.NetworkBackend}}").stdout == "cni\n"
    assert home.run("backend").stdout == f"cni: recorded in {home.sentinel}\n"


def test_reasons(home: Home) -> None:
    assert home.run("backend").stdout == "netavark: netavark is there, and nothing from before it\n"
    home.sentinel.unlink()
    store(home, "images", IMAGE)
    path = home.graphroot / "vfs-images/images.json"
    assert home.json("backend", "--json") == {
        "backend": "cni",
        "reason": f"there are images from before: {path}",
        "source": str(home.sentinel),
        "network_dir": str(home.directory("cni")),
        "program": "",
    }


def test_storage_driver_tells_which_lists_count(home: Home) -> None:
    store(home, "images", IMAGE)
    home.environment["STORAGE_DRIVER"] = "overlay"
    assert home.run("backend").stdout.startswith("netavark: ")
    home.sentinel.unlink()
    home.environment["STORAGE_DRIVER"] = "vfs"
    assert home.run("backend").stdout.startswith("cni: ")


def test_a_choice_that_cannot_be_written_down_is_a_warning(home: Home) -> None:
    home.graphroot.mkdir(parents=True)
    home.graphroot.chmod(0o500)
    done = home.run("backend")
    home.graphroot.chmod(0o700)
    assert done.stdout.startswith("netavark: ")
    assert done.stderr.startswith("rootlessnet: warning: could not write network backend to file: ")
    assert not home.sentinel.exists()
