"""pasta as the driver: what it connects and keeps closed, how it is chosen, and how it fails."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from host_support import Shell
from support import Net, both_drivers, failing, is_alive, kill, own_processes, wait_for

from rootlessnet.drivers import options, pasta
from rootlessnet.drivers.target import Features
from rootlessnet.errors import Error

INTERNET, INTERNET6, MACHINE = "203.0.113.1", "2001:db8::1", "203.0.113.2"

with_pasta = pytest.mark.parametrize("net", ["pasta"], indirect=True)

# -- what is connected ---

ASK = """
import socket, sys
query = b"\\1\\2\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\3web\\10internet\\4test\\0\\0\\1\\0\\1"
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.sendto(query, (sys.argv[1], 53))
print(socket.inet_ntoa(s.recv(512)[-4:]))
"""


@both_drivers
def test_the_internet_is_reached_by_tcp_udp_name_and_ipv6(net: Net) -> None:
    net.hold()
    for host in (INTERNET, f"[{INTERNET6}]", "web.internet.test"):
        assert net.inside("curl", "-sS", "-m", "5", f"http://{host}/") == "the internet\n", host
    for server in (INTERNET, "10.0.2.3"):
        assert net.inside(sys.executable, "-c", ASK, server) == f"{INTERNET}\n", server
    assert net.inside("curl", "-sS", f"http://{INTERNET}/address") == f"{MACHINE}\n"


@with_pasta
@pytest.mark.parametrize(("address", "works"), [(MACHINE, True), ("eth0", True), ("lo", False)])
def test_outbound_addr_is_an_address_or_an_interface(net: Net, address: str, works: bool) -> None:
    done = net.run(
        "enter", "-o", f"outbound_addr={address}", "curl", "-s", "-m", "2", f"http://{INTERNET}/",
        check=False,
    )  # fmt: skip
    assert (done.stdout == "the internet\n") is works, done


# -- what is closed ---


@pytest.fixture
def secret() -> Iterator[Callable[[str], int]]:
    """A service on an address of the host, which tells those who reach it; it returns the port."""
    sockets: list[socket.socket] = []

    def serve(address: str) -> int:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        tcp = socket.socket(family)
        tcp.bind((address, 0))
        tcp.listen()
        udp = socket.socket(family, socket.SOCK_DGRAM)
        udp.bind((address, port := tcp.getsockname()[1]))
        sockets.extend((tcp, udp))

        def answer_tcp() -> None:
            try:
                while True:
                    client, _ = tcp.accept()
                    client.sendall(b"secret")
                    client.close()
            except OSError:
                return

        def answer_udp() -> None:
            try:
                while True:
                    _, client = udp.recvfrom(100)
                    udp.sendto(b"secret", client)
            except OSError:
                return

        for answer in (answer_tcp, answer_udp):
            threading.Thread(target=answer, daemon=True).start()
        return port

    yield serve
    for one in sockets:
        one.close()


# All at once, as each that is closed costs the whole timeout.
REACH = """
import socket, sys, threading
found = []
def reach(host, port, kind):
    try:
        address = socket.getaddrinfo(host, port, type=kind)[0]
        with socket.socket(address[0], kind) as s:
            s.settimeout(1)
            s.connect(address[4])
            s.send(b"?")
            if s.recv(100) == b"secret":
                found.append(f"{host}/{'tcp' if kind == socket.SOCK_STREAM else 'udp'}")
    except OSError:
        pass
threads = [
    threading.Thread(target=reach, args=(host, int(port), kind))
    for port in sys.argv[1].split(",") for host in sys.argv[2:]
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(*sorted(set(found)))
"""
WAYS = ("127.0.0.1", "::1", "10.0.2.2", "10.0.2.3", "10.0.2.100", "fd00::2", "fd00::3",
        "fd00::100", "fe80::2%tap0", "0.0.0.0", "::")  # fmt: skip


def reached(net: Net, ports: list[int], *hosts: str) -> set[str]:
    return set(net.inside(sys.executable, "-c", REACH, ",".join(map(str, ports)), *hosts).split())


@both_drivers
def test_services_on_the_hosts_loopback_are_out_of_reach(
    net: Net, secret: Callable[[str], int]
) -> None:
    net.hold()
    open_to_all = secret(MACHINE)
    wait_for(
        "what is not on the loopback is reached in the same way",
        lambda: reached(net, [open_to_all], MACHINE) == {f"{MACHINE}/tcp", f"{MACHINE}/udp"},
    )
    assert reached(net, [secret("127.0.0.1"), secret("::1"), secret("127.0.0.9")], *WAYS) == set()


@both_drivers
def test_allow_host_loopback_opens_the_gateway_and_nothing_else(
    net: Net, secret: Callable[[str], int]
) -> None:
    port = secret("127.0.0.1")
    net.hold("-o", "allow_host_loopback=true")
    wait_for(
        "the gateway leads there",
        lambda: reached(net, [port], "10.0.2.2") == {"10.0.2.2/tcp", "10.0.2.2/udp"},
    )
    found = reached(net, [port], *WAYS)
    assert not {way for way in found if way.startswith(("127.", "::1", "10.0.2.100", "0.", "::/"))}


# -- how it is chosen ---


@pytest.mark.parametrize(
    ("conf", "arguments", "driver"),
    [
        ("", ["--driver", "pasta"], "pasta"),
        ('default_rootless_network_cmd = "pasta"', [], "pasta"),
        ('default_rootless_network_cmd = "pasta"', ["--driver", "slirp4netns"], "slirp4netns"),
        ('default_rootless_network_cmd = "slirp4netns"', [], "slirp4netns"),
        ("", [], "slirp4netns"),
    ],
)
def test_driver_is_what_the_command_line_or_containers_conf_says(
    net: Net, tmp_path: Path, conf: str, arguments: list[str], driver: str
) -> None:
    path = tmp_path / "containers.conf"
    path.write_text(f"[network]\n{conf}\n")
    net.hold(*arguments, env={"CONTAINERS_CONF": str(path)})
    assert net.status()["driver"]["name"] == driver
    other = "pasta" if driver == "slirp4netns" else "slirp4netns"
    assert net.run("enter", "--driver", driver, "true").returncode == 0
    done = net.run("enter", "--driver", other, "true", check=False)
    assert done.returncode == 125
    assert done.stderr.splitlines()[0] == (
        f"rootlessnet: --driver: {other} was asked for, but the running instance has {driver}"
    )


def refused(net: Net, *arguments: str, conf: str = "", path: Path | None = None) -> list[str]:
    env = {}
    if path:
        path.write_text(conf)
        env["CONTAINERS_CONF"] = str(path)
    done = net.run("enter", *arguments, "true", env=env, check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert not net.directory.exists()
    return done.stderr.splitlines()


def test_drivers_that_there_are_not(net: Net, tmp_path: Path) -> None:
    assert refused(net, "--driver", "vpnkit") == [
        "rootlessnet: --driver vpnkit: unknown driver",
        "  hint: drivers are slirp4netns, pasta",
    ]
    path = tmp_path / "containers.conf"
    conf = '[network]\ndefault_rootless_network_cmd = "vpnkit"\n'
    assert refused(net, conf=conf, path=path) == [
        f'rootlessnet: read {path}: invalid rootless network command "vpnkit"',
        "  hint: default_rootless_network_cmd may be one of slirp4netns, pasta",
    ]


# -- its options ---


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("foo=bar", 'unknown option for pasta: "foo=bar"'),
        ("mtu=65521", 'invalid mtu "65521": pasta takes at most 65520'),
        ("mtu=1279", 'invalid mtu "1279": pasta needs at least 1280'),
        (
            "cidr=10.0.2.0/26",
            'invalid cidr "10.0.2.0/26": pasta needs a prefix length from 1 to 25',
        ),
        (
            "port_handler=slirp4netns",
            "port_handler slirp4netns needs the driver slirp4netns, and this is pasta",
        ),
    ],
)
def test_options_that_it_cannot_have(net: Net, pair: str, message: str) -> None:
    assert refused(net, "--driver", "pasta", "-o", pair)[0] == f"rootlessnet: -o {pair}: {message}"


ALL = frozenset(["--outbound", "--outbound-if4", "--outbound-if6"])


def command_line(*pairs: str, features: frozenset[str] = ALL) -> str:
    chosen = options.defaults() | options.parse(pairs, driver="pasta")
    found = Features("/pasta", features, "9")
    return " ".join(pasta.arguments(chosen, found, ["123"], "/fifo"))


def test_command_line_closes_every_way_to_the_host() -> None:
    line = command_line("mtu=1500")
    assert line == (
        "/pasta --foreground --quiet --config-net --pid /fifo -I tap0 -m 1500 -a 10.0.2.100 -n 24 "
        "-g 10.0.2.2 --dns-forward 10.0.2.3 -a fd00::100 -g fd00::2 "
        "-t none -u none -T none -U none --no-netns-quit --no-map-gw 123"
    )


def test_command_line_with_every_option() -> None:
    line = command_line(
        "cidr=10.9.0.0/16", "enable_ipv6=false", "allow_host_loopback=true", "outbound_addr=lo",
        "outbound_addr6=2001:db8::2",
    )  # fmt: skip
    assert "-a 10.9.0.100 -n 16 -g 10.9.0.2 --dns-forward 10.9.0.3 -4 " in line
    assert "--outbound-if4 lo --outbound 2001:db8::2 -t none" in line
    assert line.endswith(" -U none --no-netns-quit 123"), "no --no-map-gw"


def test_option_that_this_pasta_lacks() -> None:
    with pytest.raises(Error) as caught:
        command_line("outbound_addr=lo", features=frozenset())
    assert str(caught.value) == "start pasta: outbound_addr not supported"


@pytest.mark.parametrize(
    ("words", "pairs"),
    [
        (["--map-gw"], ["allow_host_loopback=true"]),
        (["-m", "1500", "-4"], ["mtu=1500", "enable_ipv6=false"]),
        (["--mtu=1500", "-T", "none", "--quiet"], ["mtu=1500"]),
        (["-o", "2001:db8::2"], ["outbound_addr6=2001:db8::2"]),
        (["--outbound-if4", "eth0", "--ns-ifname=tap0"], ["outbound_addr=eth0"]),
    ],
)
def test_pastas_own_options_are_translated(words: list[str], pairs: list[str]) -> None:
    assert pasta.from_own_options(words, "x") == pairs


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ('"-T", "auto"', "-T auto: a shared network has -T none"),
        ('"--tcp-ports=80"', "--tcp-ports 80: a shared network has --tcp-ports none"),
        ('"--pcap", "x"', "--pcap cannot be used for a shared network"),
        ('"-m"', "-m cannot be used for a shared network"),
    ],
)
def test_pasta_options_that_would_open_the_host_are_refused_by_name(
    net: Net, tmp_path: Path, word: str, message: str
) -> None:
    path = tmp_path / "containers.conf"
    lines = refused(
        net, "--driver", "pasta", conf=f"[network]\npasta_options = [{word}]\n", path=path
    )
    assert lines[0] == f"rootlessnet: {path}: pasta_options: {message}"


@with_pasta
def test_pasta_options_reach_the_running_instance(net: Net, tmp_path: Path) -> None:
    path = tmp_path / "containers.conf"
    path.write_text(
        '[network]\npasta_options = ["-m", "1500", "-4"]\n'
        '[engine]\nnetwork_cmd_options = ["for", "slirp4netns"]\n'
    )
    out = net.inside("ip", "address", "show", "tap0", env={"CONTAINERS_CONF": str(path)})
    assert " mtu 1500 " in out and "fd00:" not in out


# -- its failures ---


@with_pasta
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ('exec 3>"$5"; exit 1', "it ended with status 1"),
        ('exec /usr/bin/pasta -m 999999 "$@"', "it ended with status 1: Invalid MTU: 999999"),
    ],
)
def test_pasta_that_ends_is_seen_at_once_with_its_words(
    net: Net, faulty_driver: Callable[[str], dict[str, str]], script: str, message: str
) -> None:
    assert failing(net, faulty_driver(script)) == [f"rootlessnet: start pasta: {message}"]


@with_pasta
def test_pasta_that_is_too_old_or_none(net: Net, tmp_path: Path) -> None:
    directory = tmp_path / "bin"
    directory.mkdir()
    path, conf = directory / "pasta", tmp_path / "containers.conf"
    conf.write_text(f'[engine]\nhelper_binaries_dir = ["{directory}"]\n')
    for text, words in (
        ("echo \"pasta: unrecognized option '--config-net'\" >&2; exit 1", "unrecognized option"),
        ("exec true", "no output"),
    ):
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        lines = failing(net, {"CONTAINERS_CONF": str(conf)})
        assert lines[0].startswith(f"rootlessnet: ask {path} for its features: ")
        assert words in lines[0]
        assert lines[1] == ("  hint: install passt 2023-03-09 or newer (Debian: apt install passt)")


@with_pasta
def test_no_pasta(net: Net, tmp_path: Path) -> None:
    for name in ("sh", "sleep", "true", "env"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    script = f"mount --bind /dev/null /usr/bin/pasta && exec {sys.executable} -m rootlessnet"
    prefix = ["unshare", "-Urm", "sh", "-c", f'{script} "$@"', "sh"]
    done = subprocess.run(
        [*prefix, "enter", "true"],
        env=net.environment, text=True, capture_output=True, check=False, timeout=30,
    )  # fmt: skip
    assert (done.returncode, done.stderr.splitlines()) == (125, [
        "rootlessnet: start pasta: pasta not found",
        "  hint: install passt 2023-03-09 or newer (Debian: apt install passt)",
    ])  # fmt: skip
    done = subprocess.run(
        [*prefix, "doctor"],
        env=net.environment, text=True, capture_output=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 1
    assert "apt install passt" in done.stdout


@with_pasta
def test_what_it_says_is_in_the_log(
    net: Net, faulty_driver: Callable[[str], dict[str, str]]
) -> None:
    net.hold(env=faulty_driver('echo "a word of pasta" >&2; exec /usr/bin/pasta "$@"'))
    assert "a word of pasta\n" in net.log()
    wait_for("logs shows it", lambda: "a word of pasta\n" in net.run("logs").stdout)


# -- its life ---


@with_pasta
def test_it_is_taken_over_restarted_and_ends_with_the_rest(net: Net) -> None:
    child = net.hold()
    before = net.pids()
    kill(before["supervisor"])
    assert net.inside("curl", "-sS", f"http://{INTERNET}/") == "the internet\n"
    after = net.pids()
    assert after["supervisor"] != before["supervisor"]
    assert after["driver"] == before["driver"], "nobody inside noticed"
    kill(after["driver"])
    wait_for("a new one", lambda: net.pids()["driver"] not in (None, after["driver"]))
    last = net.pids()
    kill(last["supervisor"])
    kill(last["holder"])
    wait_for("it has ended by itself", lambda: not is_alive(last["driver"]))
    child.kill()
    child.wait()
    net.enter("true")


@with_pasta
def test_one_that_keeps_dying_leaves_a_degraded_instance_until_it_works_again(
    net: Net, faulty_driver: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    script = f'[ ! -e {broken} ] || {{ echo cannot do it >&2; exit 9; }}; exec /usr/bin/pasta "$@"'
    child = net.hold(env=faulty_driver(script))
    broken.touch()
    kill(net.pids()["driver"])
    wait_for("it is tried again and again", lambda: net.status()["driver"]["restarts"] >= 3)
    document = net.status()
    assert (document["state"], document["driver"]["pid"]) == ("degraded", None)
    assert "it ended with status 9: cannot do it" in net.log()
    broken.unlink()
    wait_for("it is connected again", lambda: net.status()["state"] == "running")
    assert net.inside("curl", "-sS", f"http://{INTERNET}/") == "the internet\n"
    assert is_alive(child.pid)


@with_pasta
def test_supervisor_killed_before_it_is_ready_takes_it_along(
    net: Net, faulty_driver: Callable[[str], dict[str, str]]
) -> None:
    child = net.start("enter", "true", env=faulty_driver("exec sleep 985"))
    wait_for("it is started", lambda: "sleep 985 " in own_processes().values())
    (driver,) = [pid for pid, name in own_processes().items() if name == "sleep 985 "]
    supervisor = int(Path(f"/proc/{driver}/stat").read_text().rpartition(")")[2].split()[1])
    kill(supervisor)
    wait_for("it ended", lambda: "sleep 985 " not in own_processes().values())
    child.communicate(timeout=20)
    assert child.returncode == 125


@with_pasta
def test_files_it_needs_are_the_instances_own(net: Net) -> None:
    net.hold()
    words = Path(f"/proc/{net.pids()['driver']}/cmdline").read_text().split("\0")
    fifo = Path(words[words.index("--pid") + 1])
    assert fifo.parent == net.directory and fifo.is_fifo()


# -- names ---


@with_pasta
def test_server_that_the_host_left_comes_last_and_a_hidden_one_is_asked_by_a_new_pasta(
    net: Net, tmp_path: Path
) -> None:
    with Shell(net, tmp_path / "stage") as shell:
        run, inside = shell.run, shell.inside

        def driver() -> int:
            pid: int = json.loads(run("rootlessnet status --json"))["driver"]["pid"]
            return pid

        run("rootlessnet up")
        first = driver()
        assert inside() == "nameserver 10.0.2.3\nnameserver 203.0.113.77\n"
        run("echo 'nameserver 203.0.113.88' > /etc/resolv.conf")
        new = "nameserver 203.0.113.88\nnameserver 10.0.2.3\n"
        wait_for("the reachable one comes first", lambda: inside() == new, 2)
        assert driver() == first, "no connection was cut for it"
        run("echo 'nameserver 127.0.0.1' > /etc/resolv.conf")
        wait_for("pasta alone reaches it", lambda: inside() == "nameserver 10.0.2.3\n", 3)
        wait_for("a new one is there", lambda: driver() not in (None, first), 3)
        run("rootlessnet down")
