"""The resolv.conf inside, and where it is mounted for every shape of the host's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from host_support import PREPARE
from support import Net

from rootlessnet.errors import Error
from rootlessnet.instance import mounts, resolvconf


def compose(text: str, *, ipv6: bool = True, fallback: bool = False) -> str:
    content = resolvconf.Content(text)
    return resolvconf.compose(content, "10.0.2.3", ipv6=ipv6, fallback=fallback)


def test_drivers_server_comes_first() -> None:
    assert compose("nameserver 203.0.113.1\n") == "nameserver 10.0.2.3\nnameserver 203.0.113.1\n"


def test_loopback_and_zoned_servers_are_left_out() -> None:
    text = "nameserver 127.0.0.1\nnameserver ::1\nnameserver fe80::1%eth0\nnameserver 127.1.2.3\n"
    assert compose(text) == "nameserver 10.0.2.3\n"


def test_ipv6_servers_only_with_ipv6() -> None:
    text = "nameserver 2001:db8::1\n"
    assert compose(text) == "nameserver 10.0.2.3\nnameserver 2001:db8::1\n"
    assert compose(text, ipv6=False) == "nameserver 10.0.2.3\n"


def test_last_search_and_options_line_wins_and_order_is_podmans() -> None:
    text = (
        "search a.test\noptions timeout:1\nnameserver 203.0.113.1 # why\n"
        "search b.test c.test\noptions ndots:2 rotate\n; comment\n"
    )
    assert compose(text) == (
        "search b.test c.test\nnameserver 10.0.2.3\nnameserver 203.0.113.1\n"
        "options ndots:2 rotate\n"
    )


def test_search_dot_is_omitted() -> None:
    assert compose("search .\n") == "nameserver 10.0.2.3\n"


def test_garbage_is_passed_over() -> None:
    assert compose("nameserver\nnameserver not-an-address\n\0\xff\n") == "nameserver 10.0.2.3\n"


def test_public_servers_only_when_asked_for() -> None:
    assert "8.8.8.8" not in compose("")
    assert compose("", ipv6=False, fallback=True) == (
        "nameserver 10.0.2.3\nnameserver 8.8.8.8\nnameserver 8.8.4.4\n"
    )
    assert "2001:4860:4860::8844" in compose("", fallback=True)
    assert "8.8.8.8" not in compose("nameserver 203.0.113.1\n", fallback=True)


@pytest.mark.parametrize(
    ("stub", "real"),
    [
        ("127.0.0.53", "run/systemd/resolve/resolv.conf"),
        ("127.0.0.1", "run/NetworkManager/no-stub-resolv.conf"),
    ],
)
def test_real_list_behind_a_stub(tmp_path: Path, stub: str, real: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/resolv.conf").write_text(f"nameserver {stub}\n")
    assert resolvconf.host_content(str(tmp_path)).nameservers == [stub]
    (tmp_path / real).parent.mkdir(parents=True)
    (tmp_path / real).write_text("nameserver 203.0.113.9\n")
    assert resolvconf.host_content(str(tmp_path)).nameservers == ["203.0.113.9"]


# -- where it is mounted: shapes as (links, files), expected target ---

SHAPES = {
    "regular file": ({}, ["/etc/resolv.conf"], "/etc/resolv.conf"),
    "absolute link below /run": (
        {"/etc/resolv.conf": "/run/systemd/resolve/stub-resolv.conf"}, [],
        "/run/systemd/resolve/stub-resolv.conf",
    ),
    "relative link": (
        {"/etc/resolv.conf": "../run/resolvconf/resolv.conf"}, [], "/run/resolvconf/resolv.conf",
    ),
    "two hops outside /run": (
        {"/etc/resolv.conf": "resolv.d/a", "/etc/resolv.d/a": "/opt/b"}, ["/opt/b"], "/opt/b",
    ),
    "chain inside /run stops at its first name": (
        {"/etc/resolv.conf": "/run/a", "/run/a": "/run/b"}, ["/run/b"], "/run/a",
    ),
    "symlinked parent directory": (
        {"/etc/resolv.conf": "/var/run/x/resolv.conf", "/var/run": "../run"}, [],
        "/run/x/resolv.conf",
    ),
    "link to a link to /run": (
        {"/etc/resolv.conf": "/opt/a", "/opt/a": "/run/z"}, [], "/run/z",
    ),
    "dangling below /run": ({"/etc/resolv.conf": "/run/nowhere"}, [], "/run/nowhere"),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_symlink_walk(tmp_path: Path, shape: str) -> None:
    links, files, expected = SHAPES[shape]
    for name in files:
        (tmp_path / name[1:]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name[1:]).touch()
    for name, target in links.items():
        (tmp_path / name[1:]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name[1:]).symlink_to(target)
    assert mounts.resolve("/etc/resolv.conf", str(tmp_path)) == expected


def test_symlink_walk_of_a_loop(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/resolv.conf").symlink_to("resolv.conf")
    with pytest.raises(Error, match="too many symlinks while resolving"):
        mounts.resolve("/etc/resolv.conf", str(tmp_path))


# Each shape once more on the real thing: /etc and /run are rebuilt in a mount namespace of the
# test's own, with the program's own means, and rootlessnet is run there.


MAKE = {
    "regular": "open('/etc/resolv.conf', 'w').write(TEXT)",
    "absolute": "os.makedirs('/run/x'); open('/run/x/r', 'w').write(TEXT);"
    "os.symlink('/run/x/r', '/etc/resolv.conf')",
    "resolved": "os.makedirs('/run/systemd/resolve');"
    "open('/run/systemd/resolve/stub-resolv.conf', 'w').write('nameserver 127.0.0.53');"
    "open('/run/systemd/resolve/resolv.conf', 'w').write(TEXT);"
    "os.symlink('../run/systemd/resolve/stub-resolv.conf', '/etc/resolv.conf')",
    "two hops": "os.mkdir('/etc/rd'); open('/opt/b', 'w').write(TEXT);"
    "os.symlink('/opt/b', '/etc/rd/a'); os.symlink('rd/a', '/etc/resolv.conf')",
    "chain": "open('/run/b', 'w').write(TEXT); os.symlink('/run/b', '/run/a');"
    "os.symlink('/run/a', '/etc/resolv.conf')",
    "directory link": "os.mkdir('/run/y'); open('/run/y/r', 'w').write(TEXT);"
    "os.symlink('/run/y', '/etc/yl'); os.symlink('yl/r', '/etc/resolv.conf')",
    "dangling below /run": "os.symlink('/run/no/where', '/etc/resolv.conf')",
    "dangling resolved": "os.symlink('/run/systemd/resolve/stub-resolv.conf', '/etc/resolv.conf')",
    "dangling elsewhere": "os.symlink('/no/where', '/etc/resolv.conf')",
    "missing": "pass",
}


@pytest.mark.parametrize("shape", MAKE)
def test_every_shape_of_the_hosts_file_on_the_real_thing(
    net: Net, tmp_path: Path, shape: str
) -> None:
    done = run_prepared(net, tmp_path, MAKE[shape], "cat", "/etc/resolv.conf")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "nameserver 10.0.2.3"
    if shape.startswith(("dangling", "missing")):
        assert lines[1:] == []
        assert done.stderr == (
            "rootlessnet: warning: the host's /etc/resolv.conf names no server: names will not "
            "be resolved inside (-o dns_fallback=true asks public servers)\n"
        )
    else:
        assert lines[1:] == ["nameserver 203.0.113.77"]
        assert done.stderr == ""


def run_prepared(net: Net, tmp_path: Path, make: str, *command: str):
    import sys

    stage = tmp_path / "stage"
    stage.mkdir()
    return net.enter(
        *command,
        check=False,
        prefix=["unshare", "-Urm", sys.executable, "-c", PREPARE, str(stage),
                f"TEXT = 'nameserver 203.0.113.77\\n'; {make}"],
    )  # fmt: skip


def test_rest_of_a_rebuilt_directory_is_still_there(net: Net, tmp_path: Path) -> None:
    done = run_prepared(net, tmp_path, MAKE["missing"], "sh", "-c", "ls -A /etc; cat /etc/passwd")
    assert set(os.listdir("/etc")) - {"resolv.conf"} <= set(done.stdout.split())
    assert Path("/etc/passwd").read_text() in done.stdout


def test_loop_is_a_clear_error(net: Net, tmp_path: Path) -> None:
    done = run_prepared(net, tmp_path, "os.symlink('resolv.conf', '/etc/resolv.conf')", "true")
    assert done.returncode == 125
    assert done.stderr.startswith("rootlessnet: ") and len(done.stderr.splitlines()) <= 2
    assert "resolv.conf" in done.stderr
    assert not net.directory.exists()


def test_fallback_on_the_real_thing(net: Net, tmp_path: Path) -> None:
    import sys

    stage = tmp_path / "stage"
    stage.mkdir()
    done = net.run(
        "enter", "-o", "dns_fallback=true", "cat", "/etc/resolv.conf",
        prefix=["unshare", "-Urm", sys.executable, "-c", PREPARE, str(stage), "pass"],
    )  # fmt: skip
    assert "nameserver 8.8.8.8\n" in done.stdout and done.stderr == ""
