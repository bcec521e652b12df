"""Driver options: podman's messages byte for byte; what slirp4netns would refuse comes first."""

from __future__ import annotations

import pytest
from support import Net, both_drivers

from rootlessnet.drivers import options, slirp4netns
from rootlessnet.drivers.target import Features
from rootlessnet.errors import Error


def failure(pair: str) -> str:
    with pytest.raises(Error) as caught:
        options.parse([pair])
    return str(caught.value).removeprefix(f"-o {pair}: ")


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("cidr", 'unknown option for slirp4netns: "cidr"'),
        ("foo=bar", 'unknown option for slirp4netns: "foo=bar"'),
        ("cidr=", 'invalid cidr ""'),
        ("cidr=10.0.2.0", 'invalid cidr "10.0.2.0"'),
        ("cidr=10.0.2.0/33", 'invalid cidr "10.0.2.0/33"'),
        ("cidr=fd00::/64", 'invalid cidr "fd00::/64"'),
        ("cidr=10.0.2.0/255.255.255.0", 'invalid cidr "10.0.2.0/255.255.255.0"'),
        ("mtu=foo", 'invalid mtu "foo"'),
        ("mtu=67", 'invalid mtu "67"'),
        ("mtu=-1500", 'invalid mtu "-1500"'),
        ("mtu= 1500", 'invalid mtu " 1500"'),
        ("enable_ipv6=yes", 'invalid value of enable_ipv6 for slirp4netns: "yes"'),
        ("allow_host_loopback=1", 'invalid value of allow_host_loopback for slirp4netns: "1"'),
        ("outbound_addr=::1", 'invalid outbound_addr "::1"'),
        ("outbound_addr=nosuch0", 'invalid outbound_addr "nosuch0"'),
        ("outbound_addr6=127.0.0.1", 'invalid outbound_addr6: "127.0.0.1"'),
        ("port_handler=foo", 'unknown port_handler for slirp4netns: "foo"'),
    ],
)
def test_podmans_messages(pair: str, message: str) -> None:
    assert failure(pair) == message


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (
            "cidr=10.0.2.1/24",
            'invalid cidr "10.0.2.1/24": has to be a network address such as 10.0.2.0/24',
        ),
        (
            "cidr=10.0.2.0/26",
            'invalid cidr "10.0.2.0/26": slirp4netns needs a prefix length from 1 to 25',
        ),
        (
            "cidr=0.0.0.0/0",
            'invalid cidr "0.0.0.0/0": slirp4netns needs a prefix length from 1 to 25',
        ),
        ("mtu=65522", 'invalid mtu "65522": slirp4netns takes at most 65521'),
    ],
)
def test_what_slirp4netns_would_refuse(pair: str, message: str) -> None:
    assert failure(pair) == message


def test_later_options_win() -> None:
    assert options.parse(["mtu=1500", "cidr=10.9.0.0/24", "mtu=9000"]) == {
        "mtu": 9000,
        "cidr": "10.9.0.0/24",
    }


@pytest.mark.parametrize(
    ("cidr", "gateway", "dns", "address"),
    [
        ("10.0.2.0/24", "10.0.2.2", "10.0.2.3", "10.0.2.100"),
        ("192.168.1.128/25", "192.168.1.130", "192.168.1.131", "192.168.1.228"),
        ("172.16.0.0/12", "172.16.0.2", "172.16.0.3", "172.16.0.100"),
    ],
)
def test_addresses_follow_from_the_cidr(cidr: str, gateway: str, dns: str, address: str) -> None:
    found = options.Addressing(cidr)
    assert (found.gateway, found.dns, found.address) == (gateway, dns, address)


ALL = frozenset(
    ["--disable-host-loopback", "--mtu", "--enable-sandbox", "--enable-seccomp", "--cidr",
     "--outbound-addr", "--enable-ipv6", "--exit-fd", "--ready-fd"]
)  # fmt: skip


def command_line(*pairs: str, features: frozenset[str] = ALL) -> list[str]:
    chosen = options.defaults() | options.parse(pairs)
    found = Features("/slirp", features, "9")
    return slirp4netns.arguments(chosen, found, ["123"])


def test_default_command_line_is_podmans() -> None:
    mtu = options.DEFAULT_MTU
    assert (
        command_line()
        == (
            f"/slirp --disable-host-loopback --mtu={mtu} --enable-sandbox --enable-seccomp "
            "--enable-ipv6 -c -r 3 -e 4 123 tap0"
        ).split()
    )


def test_command_line_with_every_option() -> None:
    line = command_line(
        "mtu=1500", "cidr=10.9.0.0/24", "allow_host_loopback=true", "outbound_addr=127.0.0.1",
        "outbound_addr6=::1",
    )  # fmt: skip
    assert (
        line
        == (
            "/slirp --mtu=1500 --enable-sandbox --enable-seccomp --cidr=10.9.0.0/24 --enable-ipv6 "
            "--outbound-addr=127.0.0.1 --outbound-addr6=::1 -c -r 3 -e 4 123 tap0"
        ).split()
    )


@pytest.mark.parametrize(
    ("missing", "pair", "message"),
    [
        ("--cidr", "cidr=10.9.0.0/24", "cidr not supported"),
        ("--enable-ipv6", "enable_ipv6=true", "enable_ipv6 not supported"),
        ("--outbound-addr", "outbound_addr=127.0.0.1", "outbound_addr not supported"),
        ("--outbound-addr", "outbound_addr6=::1", "outbound_addr6 not supported"),
    ],
)
def test_option_that_this_slirp4netns_lacks(missing: str, pair: str, message: str) -> None:
    with pytest.raises(Error) as caught:
        command_line(pair, features=ALL - {missing})
    assert str(caught.value) == f"start slirp4netns: {message}"


def test_features_that_are_dropped_silently() -> None:
    few = ALL - {"--disable-host-loopback", "--mtu", "--enable-sandbox", "--enable-seccomp"}
    assert command_line("enable_ipv6=false", features=few) == "/slirp -c -r 3 -e 4 123 tap0".split()


@both_drivers
def test_options_reach_the_running_instance(net: Net) -> None:
    out = net.run(
        "enter", "-o", "cidr=10.11.12.0/24", "-o", "mtu=1400", "-o", "enable_ipv6=false",
        "sh", "-c", "ip -br address show tap0; ip -o link show tap0; ip route; "
        "cat /etc/resolv.conf",
    ).stdout  # fmt: skip
    assert "10.11.12.100/24" in out and "fd00:" not in out
    assert " mtu 1400 " in out
    assert "default via 10.11.12.2 dev tap0" in out
    assert "nameserver 10.11.12.3\n" in out


def test_bad_option_starts_nothing(net: Net) -> None:
    done = net.run("enter", "-o", "mtu=foo", "true", check=False)
    assert (done.returncode, done.stderr) == (
        125,
        'rootlessnet: -o mtu=foo: invalid mtu "foo"\n  hint: mtu is a number such as 20000\n',
    )
    assert not net.directory.exists()


def test_outbound_addr6_needs_ipv6(net: Net) -> None:
    done = net.run(
        "enter", "-o", "outbound_addr6=::1", "-o", "enable_ipv6=false", "true", check=False
    )
    assert done.stderr == (
        "rootlessnet: -o outbound_addr6: enable_ipv6=true is required for outbound_addr6\n"
    )


def test_options_of_containers_conf_come_first(net: Net, tmp_path) -> None:
    conf = tmp_path / "containers.conf"
    conf.write_text('[engine]\nnetwork_cmd_options = ["cidr=10.7.0.0/24", "mtu=1300"]\n')
    environment = {"CONTAINERS_CONF": str(conf)}
    out = net.run(
        "enter", "-o", "mtu=1400", "sh", "-c",
        "ip address show tap0", env=environment,
    ).stdout  # fmt: skip
    assert "10.7.0.100/24" in out and " mtu 1400 " in out


def test_bad_option_in_containers_conf_names_the_file(net: Net, tmp_path) -> None:
    conf = tmp_path / "containers.conf"
    conf.write_text('[engine]\nnetwork_cmd_options = ["mtu=1"]\n')
    done = net.enter("true", env={"CONTAINERS_CONF": str(conf)}, check=False)
    assert (done.returncode, done.stderr) == (
        125,
        f'rootlessnet: {conf}: network_cmd_options mtu=1: invalid mtu "1"\n'
        "  hint: mtu is a number such as 20000\n",
    )
