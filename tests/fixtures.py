"""Fixtures that every test may use."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import Net, own_processes, wait_for

_OURS = (
    "sleep infinity", "slirp4netns", "/usr/bin/slirp4netns", "pasta", "/usr/bin/pasta",
    "rootlessnet ", "rootlessnet: ports",
)  # fmt: skip


@pytest.fixture
def net(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Net]:
    """An instance of the test's own; afterwards nothing of it may be left but its lock.

    A parameter is the name of its driver (support.both_drivers).
    """
    before = set(own_processes())
    instance = Net(tmp_path / "static", driver=getattr(request, "param", "slirp4netns"))
    yield instance
    instance.end()
    instance.wait_until_down(20)
    instance.directory.with_name(f"{instance.name}.lock").unlink(missing_ok=True)

    def leaked() -> list[str]:
        new = {pid: name for pid, name in own_processes().items() if pid not in before}
        return [name for name in new.values() if name.startswith(_OURS)]

    wait_for("no process of ours is left", lambda: not leaked(), 10)


@pytest.fixture
def faulty_driver(net: Net, tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Environment with a driver, that of net, whose start is the given shell script; what it says
    of its features is the real one's."""

    def make(script: str) -> dict[str, str]:
        program = tmp_path / "bin" / net.driver
        program.parent.mkdir()
        program.write_text(
            "#!/bin/sh\n"
            'for last; do :; done; case "$last" in\n'
            f'--help|--version) exec /usr/bin/{net.driver} "$@";; esac\n'
            f"{script}\n"
        )
        program.chmod(0o755)
        conf = tmp_path / "containers.conf"
        conf.write_text(
            f'[engine]\nnetwork_cmd_path = "{program}"\n'
            f'helper_binaries_dir = ["{program.parent}"]\n'
        )
        return {"CONTAINERS_CONF": str(conf)}

    return make


_numbers = itertools.count()


@pytest.fixture
def hanging_driver(tmp_path: Path) -> dict[str, str]:
    """Environment in which slirp4netns starts and never gets ready."""
    program = tmp_path / f"slirp4netns-{next(_numbers)}"
    program.write_text(
        "#!/bin/sh\n"
        'case "$1" in --help|--version) exec /usr/bin/slirp4netns "$1";; esac\n'
        "exec sleep 1000\n"
    )
    program.chmod(0o755)
    conf = tmp_path / "hanging.conf"
    conf.write_text(f'[engine]\nnetwork_cmd_path = "{program}"\n')
    return {"CONTAINERS_CONF": str(conf)}
