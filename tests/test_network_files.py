"""The recorded check: podman and we write the same network file for the same command, to the byte,
and refuse the same commands with the same words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from network_support import BACKENDS, Home, error_of, masked

from rootlessnet.cli import network as command
from rootlessnet.errors import Error, reason

# No name of hexadecimal digits alone: it could be the beginning of an id, and then it is taken.
# In this order, in one home each: a network takes a subnet and an interface from the next.
COMMANDS = [
    "first --subnet 10.201.0.0/24",
    "used --subnet 10.201.0.7/24",
    "of-default --subnet 10.88.4.0/24",
    "of-host --subnet 203.0.113.0/24",
    "wrong --subnet 10.202.0.0",
    "wrong --subnet 10.202.0.0/33",
    "wrong --subnet 010.202.0.0/24",
    "hostbits --subnet 10.202.0.9/24",
    "gateway --subnet 10.203.0.0/24 --gateway 10.203.0.254 --ip-range 10.203.0.128/25",
    "wrong --subnet 10.204.0.0/24 --gateway 10.205.0.1",
    "wrong --subnet 10.204.0.0/24 --gateway nonsense",
    "wrong --subnet 10.204.0.0/24 --gateway fd00::1",
    "wrong --subnet 10.204.0.0/24 --gateway 10.204.0.1,10.204.0.2",
    "wrong --gateway 10.204.0.1",
    "wrong --ip-range 10.204.0.0/28",
    "wrong --subnet 10.204.0.0/24 --ip-range 10.205.0.0/28",
    "wrong --subnet 10.204.0.0/24 --ip-range 10.204.0.0/23",
    "wrong --subnet 10.204.0.0/24 --ip-range xx",
    "wrong --subnet 10.204.0.0/24 --ip-range 10.204.0.0/28 --ip-range 10.204.0.0/28",
    'labels --label x --label y= --label z=<a&b>\\"é\u2028 --label a=b=c',
    "wrong --label =x",
    "wrong --opt =x",
    "wrong --opt foo=x",
    "wrong --opt mtu=-1",
    "wrong --opt mtu=abc",
    "wrong --opt mtu=99999999999999999999",
    "options --opt mtu=1400 --opt vlan=5 --opt isolate=1",
    "empty --opt mtu= --opt vlan=0 --opt isolate=F",
    "wrong --opt vlan=4095",
    "wrong --opt isolate=maybe",
    "wrong --opt mode=bridge",
    "wrong --opt metric=5",
    "without --ipam-driver none",
    "wrong --ipam-driver none --subnet 10.205.0.0/24",
    "dhcp --ipam-driver dhcp",
    "wrong --ipam-driver dhcp --subnet 10.205.0.0/24",
    "wrong --ipam-driver foo",
    "local --ipam-driver host-local",
    "m1 -d macvlan --subnet 10.206.0.0/24",
    "m2 -d macvlan --subnet 10.206.0.0/24 --opt mode=vepa --opt mtu=1400 --opt parent=lo",
    "wrong -d macvlan --subnet 10.206.0.0/24 --opt mode=foo",
    "wrong -d macvlan --subnet 10.206.0.0/24 --opt isolate=1",
    "wrong -d macvlan --subnet 10.206.0.0/24 --opt parent=nowhere",
    "m3 -d macvlan",
    "wrong -d macvlan --internal",
    "wrong -d macvlan --ipam-driver host-local",
    "m4 -d macvlan --internal --subnet 10.206.0.0/24",
    "i1 -d ipvlan --subnet 10.207.0.0/24 --opt parent=lo",
    "i2 -d ipvlan --subnet 10.207.0.0/24 --opt mode=l3",
    "i3 -d ipvlan",
    "wrong -d overlay",
    "inside --internal",
    "inside-no-dns --internal --disable-dns",
    "no-dns --disable-dns",
    "dual --ipv6 --subnet 10.208.0.0/24",
    "dual-of-v6 --ipv6 --subnet fd55:0:0:1::/64",
    "dual-made-up --ipv6",
    "v6 --subnet fd56::/64 --gateway fd56::ff --ip-range fd56::1:0/112",
    "one --subnet 10.209.0.4/32",
    "two --subnet 10.209.0.8/31",
    "",
    "podman",
    "first",
    "_under",
    "with/slash",
    "a.b-c_d",
    "2f25",
    "none",
    "host",
    "bridge",
    "private",
    "slirp4netns",
    "container --subnet nonsense",
    "ns",
    "mapped --subnet ::ffff:10.210.0.0/120 --gateway ::ffff:10.210.0.9",
    "wrong --subnet=",
    "nothing --gateway= --subnet 10.211.0.0/24",
    "spaces --subnet 10.212.0.0/24 --gateway=10.212.0.2 --driver=",
]


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[tuple[Home, Home]]:
    pair = Home(tmp_path / "podman"), Home(tmp_path / "ours")
    yield pair
    for one in pair:
        one.end()


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_command_same_file(
    backend: str,
    homes: tuple[Home, Home],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    podmans, ours = homes
    for one in homes:
        one.configure(f'network_backend = "{backend}"')
    for name, value in ours.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    made = 0
    for line in COMMANDS:
        words = line.split(" ") if line else []
        done = podmans.podman("network", "create", *words, check=False)
        # In this process: 60 starts of the program add up.
        error = ""
        try:
            command.main(["create", *words])
        except Error as caught:
            error = reason(caught).partition(": ")[2]
        assert error == error_of(done.stderr), line
        assert capsys.readouterr().out == done.stdout, line
        made += not error
        # podman asks every plugin of every CNI network at each command: not too many of them.
        if len(ours.files(backend)) >= 10 or line == COMMANDS[-1]:
            compare(podmans, ours, backend)
            for one in homes:
                for path in one.directory(backend).iterdir():
                    if path.suffix != ".lock" and path.stem != "first":
                        path.unlink()
    assert made >= 25


def compare(podmans: Home, ours: Home, backend: str) -> None:
    """Both homes: every byte and mode of the files, and what both programs show."""
    files = ours.files(backend)
    assert files == podmans.files(backend)
    names = [name.rpartition(".")[0] for name in files]
    shown = podmans.podman("network", "inspect", *names, "podman").stdout
    assert masked(ours.run("inspect", *names, "podman").stdout) == masked(shown)
    listed = podmans.podman("network", "ls", "--format", "json").stdout
    assert masked(ours.run("ls", "--json").stdout) == masked(listed)
    for one in (podmans, ours):
        for path in one.directory(backend).iterdir():
            assert path.stat().st_mode & 0o777 == 0o644, path
        assert one.directory(backend).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("backend", BACKENDS)
def test_macvlan_without_addresses(backend: str, homes: tuple[Home, Home]) -> None:
    """podman 4.3 with CNI ends in a panic; what we make it can read."""
    podmans, ours = homes
    for one in homes:
        one.configure(f'network_backend = "{backend}"')
    done = podmans.podman(
        "network", "create", "-d", "macvlan", "--ipam-driver", "none", "plain", check=False
    )
    ours.run("create", "-d", "macvlan", "--ipam-driver", "none", "plain")
    if backend == "cni":
        assert "panic: " in done.stderr
    else:
        assert ours.files(backend) == podmans.files(backend)
    assert ours.podman("network", "inspect", "plain").stdout == ours.run("inspect", "plain").stdout


@pytest.mark.parametrize("backend", BACKENDS)
def test_pools_and_default_network_of_the_configuration(
    backend: str, homes: tuple[Home, Home]
) -> None:
    for one in homes:
        one.configure(
            f'network_backend = "{backend}"\n'
            'default_network = "mine"\ndefault_subnet = "10.66.0.0/26"\n'
            'default_subnet_pools = [{"base" = "10.66.0.0/24", "size" = 26},'
            ' {"base" = "10.67.0.0/25", "size" = 25}]'
        )
    podmans, ours = homes
    for _ in range(5):
        done = podmans.podman("network", "create", check=False)
        own = ours.run("create", check=False)
        assert own.stdout == done.stdout
        assert own.stderr.strip().removeprefix("rootlessnet: create a network: ") == error_of(
            done.stderr
        )
    assert ours.files(backend) == podmans.files(backend)
    assert len(ours.files(backend)) == 4
    assert masked(ours.run("inspect", "mine").stdout) == masked(
        podmans.podman("network", "inspect", "mine").stdout
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_damaged_files_are_skipped(backend: str, homes: tuple[Home, Home]) -> None:
    """Made from one good file; what podman lists of them is what we list."""
    home = homes[0]
    home.configure(f'network_backend = "{backend}"')
    home.podman("network", "create", "good")
    directory = home.directory(backend)
    suffix = "conflist" if backend == "cni" else "json"
    good = (directory / f"good.{suffix}").read_text()

    def write(name: str, old: str = "", new: str = "", *, text: str | None = None) -> None:
        content = good.replace('"good"', f'"{name}"') if text is None else text
        (directory / f"{name}.{suffix}").write_text(content.replace(old, new))

    write("empty", text="")
    write("no-json", text="{bad")
    write("list", text="[]")
    write("null", text="null")
    write("half", text=good[: len(good) // 2])
    write("trailing", text=good.replace('"good"', '"trailing"') + " x")
    write("wrong-name", text=good)
    write("bad name")
    write("gateway", "10.89.0.1", "10.77.0.1")
    write("no-gateway", "10.89.0.1", "nonsense")
    write("subnet", "10.89.0.0/24", "10.89.0.0")
    write("number", '"bridge"', "7")
    write("nothing", '"bridge"', "null")
    write("capitals", '"name"', '"NAME"')
    if backend == "netavark":
        write("id", '"id": "', '"id": "0')
        write("time", '"created": "2', '"created": "x')
        write("flag", '"internal": false', '"internal": "no"')
    else:
        write("plugins", '"plugins"', '"others"')
        write("version", '"0.4.0"', '"9.4.0"')
        write("plugin", '"tuning"', '"strange"')
        write("mtu", '"hairpinMode": true', '"hairpinMode": true, "mtu": "x"')
        write("ipam", '"host-local"', '"whereabouts"')
        write("single", text='{"cniVersion": "0.4.0", "name": "single", "type": "bridge"}')
    (directory / f"link.{suffix}").symlink_to("nowhere")
    (directory / f"directory.{suffix}").mkdir()
    expected = home.podman("network", "ls", "-q").stdout
    done = home.run("ls", "-q")
    assert done.stdout == expected
    assert "good\n" in expected
    lines = done.stderr.splitlines()
    assert all(line.startswith("rootlessnet: warning: ") for line in lines)
    assert any("no-json" in line for line in lines)
    assert masked(home.run("ls", "--json").stdout) == masked(
        home.podman("network", "ls", "--format", "json").stdout
    )
