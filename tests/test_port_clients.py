"""Whose address a server sees, and what is said where it is not the client's."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from functools import partial

import pytest
from port_support import (
    HERE,
    MACHINE,
    MACHINE6,
    add,
    connect,
    cpu_ticks,
    free_port,
    is_refused,
    is_reset,
    listing,
    processes,
    serve,
    who,
    who_far,
    who_udp,
)
from support import Net, both_drivers, kill, wait_for

WANTED = "they appear with an address of the instance (-o source_ip=snat says that this is wanted)"
IPV4_ONLY = "the server is reached by IPv4 only"
IPV6_ONLY = "the server is reached by IPv6 only"


def address6(net: Net) -> str:
    """That of the instance; it comes a moment after the instance."""

    def look() -> str:
        out = net.inside("ip", "-6", "-o", "address", "show", "dev", "tap0", "scope", "global")
        return "" if "tentative" in out or not out else out.split()[3].partition("/")[0]

    found: str = wait_for("the instance has an IPv6 address", look)
    return found


def published(net: Net) -> int:
    """The port that leads to a server inside, by TCP and UDP."""
    (port,) = add(net, "80")
    net.run("port", "add", f"{port}:80/udp")
    wait_for("IPv6 works", lambda: who("::1", port)[0].split()[0] in ("::1", address6(net)))
    return port


def clients(port: int) -> list[Callable[[], tuple[str, str]]]:
    """Of all kinds: each tells whom the server sees, and who it is."""
    here = [partial(ask, host, port) for ask in (who, who_udp) for host in HERE]
    far = [
        partial(who_far, proto, host, port)
        for proto in ("tcp", "udp")
        for host in (MACHINE, MACHINE6)
    ]
    return [*here, *far]


def lost(net: Net) -> list[dict[str, str]]:
    """Whose address each rule does not keep, and why."""
    return [entry["source_ip_lost"] for entry in listing(net)]


@both_drivers
def test_every_client_is_seen_with_its_address_and_port(net: Net) -> None:
    serve(net)
    port = published(net)
    for client in clients(port):
        seen, own = client()
        assert seen == own, client
    assert {entry["source_ip"] for entry in listing(net)} == {"preserve"}
    assert lost(net) == [{}, {}]
    assert "warning" not in net.log()


def test_snat_hides_all_of_them(net: Net) -> None:
    serve(net, "-o", "source_ip=snat")
    port = published(net)
    addresses = {"10.0.2.100", address6(net)}
    seen = {client()[0].split()[0] for client in clients(port)}
    assert seen == addresses
    assert {entry["source_ip"] for entry in listing(net)} == {"snat"}
    assert lost(net) == [{}, {}]
    assert "warning" not in net.log()


def test_a_client_with_a_link_local_address_is_hidden_alone(net: Net) -> None:
    serve(net)
    port = published(net)
    index = next(number for number, name in socket.if_nameindex() if name != "lo")
    with open("/proc/net/if_inet6", encoding="ascii") as file:
        digits = next(line.split()[0] for line in file if line.startswith("fe80"))
    address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET6, kind) as s:
            s.settimeout(5)
            s.connect((address, port, 0, index))
            s.send(b"x")
            assert s.recv(100).decode().split()[0] == address6(net)
    for client in clients(port):
        seen, own = client()
        assert seen == own, client
    why = "it means nothing in another network"
    assert lost(net) == [{"link-local": why}] * 2
    for proto in ("tcp", "udp"):
        text = f"{port}:80/{proto}: the address of clients with a link-local address is not kept"
        assert net.log().count(f"warning: {text} ({why}): {WANTED}") == 1


# -- what is said ----------------------------------------------------------------------------------


def test_a_server_of_the_other_family_is_told_in_the_log(net: Net) -> None:
    """At the first client, and once."""
    net.hold()
    server = serve(net, address="0.0.0.0")
    address6(net)
    done = net.run("port", "add", "--json", "80")
    assert done.stderr == ""
    port = json.loads(done.stdout)[0]["host_port"]
    assert who("127.0.0.1", port)[0].split()[0] == "127.0.0.1"
    assert lost(net) == [{}]
    for _ in range(3):
        assert who("::1", port)[0].split()[0] == "10.0.2.100"
    text = f"warning: {port}:80/tcp: the address of IPv6 clients is not kept ({IPV4_ONLY}): "
    wait_for("it is told", lambda: lost(net) == [{"ipv6": IPV4_ONLY}])
    assert net.log().count(text + WANTED) == 1
    assert net.log().count("is not kept") == 1
    # The next server is another matter.
    with connect("127.0.0.1", port) as s:
        s.sendall(b"stop")
    server.wait(5)
    wait_for("the port is shut", lambda: is_refused("127.0.0.1", port))
    serve(net, address="::")
    seen, own = who("::1", port)
    assert seen == own
    assert lost(net) == [{}]


def test_a_server_with_ipv6_only_is_told_too(net: Net) -> None:
    net.hold()
    serve(net, address=address6(net))
    (port,) = add(net, "127.0.0.1::80")
    assert who("127.0.0.1", port)[0].split()[0] == address6(net)
    wait_for("it is told", lambda: lost(net) == [{"ipv4": IPV6_ONLY}])
    assert f"the address of IPv4 clients is not kept ({IPV6_ONLY})" in net.log()


def test_what_is_certain_is_said_at_once(net: Net) -> None:
    net.hold("-o", "enable_ipv6=false")
    port = free_port()
    rule = f"[::1]:{port}:80"
    text = f"{rule}/tcp: the address of IPv6 clients is not kept ({IPV4_ONLY}): {WANTED}"
    for command in (("enter", "-p", rule, "--", "true"), ("port", "add", rule)):
        assert net.run(*command).stderr == f"rootlessnet: warning: {text}\n"
    assert f"warning: {text}" in net.log()
    assert lost(net) == [{"ipv6": IPV4_ONLY}]
    net.run("port", "rm", "--all")
    # Where it is wanted, where some client only is concerned, and where none is.
    for words in (["--source-ip=snat", rule], [f"{port}:80/udp"], [f"0.0.0.0:{port}:80"]):
        assert net.run("port", "add", *words).stderr == ""
        net.run("port", "rm", "--all")


def test_snat_of_some_rules(net: Net) -> None:
    serve(net, address="0.0.0.0")
    net.run("port", "add", "--source-ip=snat", "127.0.0.1:18080:80")
    add(net, "127.0.0.1::80")
    assert [entry["source_ip"] for entry in listing(net)] == ["snat", "preserve"]
    assert net.status()["ports"] == listing(net)


@pytest.mark.parametrize("hosts", [("127.0.0.1", "::1"), (MACHINE, MACHINE6)])
def test_by_udp_too_the_other_family_is_found(net: Net, hosts: tuple[str, str]) -> None:
    """With the first datagram; and when another server comes, the client's own is found again."""
    four, six = hosts
    net.hold()
    server = serve(net, address="0.0.0.0")
    six_only = address6(net)
    (port,) = add(net, "80/udp")
    seen, own = who_udp(four, port, 10)
    assert seen == own
    assert who_udp(six, port, 10)[0].split()[0] == "10.0.2.100"
    wait_for("it is told", lambda: lost(net) == [{"ipv6": IPV4_ONLY}])
    kill(server.pid)
    server = serve(net, address=six_only)
    assert who_udp(four, port, 10)[0].split()[0] == six_only
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
        s.settimeout(0.1)
        (port,) = add(net, "80/udp")
        s.connect((six, port))
        own = "{} {}".format(*s.getsockname())
        kill(server.pid)
        wait_for("the server is gone", lambda: not _is_answered(s))
        serve(net)
        seen = wait_for("it is answered", lambda: _is_answered(s))
        assert seen == own
    # That nobody listened is no reason to warn.
    assert lost(net) == [{"ipv6": IPV4_ONLY, "ipv4": IPV6_ONLY}, {}]


def test_a_server_of_datagrams_that_dies_disturbs_nobody(net: Net) -> None:
    """It had listened and said nothing."""
    net.hold()
    address6(net)
    code = (
        "import socket\n"
        "s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(('::', 80))\n"
        "print('up', flush=True)\n"
        "while True: print(len(s.recv(100)), flush=True)\n"
    )
    server = net.start("enter", "--", "/usr/bin/python3", "-c", code)
    assert server.stdout is not None and server.stdout.readline() == "up\n"
    (port,) = add(net, "80/udp")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
        s.connect(("::1", port))
        for _ in range(10):
            s.send(b"x")
            assert server.stdout.readline() == "1\n"
        kill(server.pid)
        server.wait(5)
        for _ in range(10):
            s.send(b"x")
    workers = processes(net)[1:]

    def is_quiet() -> bool:
        before = cpu_ticks(*workers)
        time.sleep(0.1)
        return cpu_ticks(*workers) == before

    wait_for("nothing is done about it", is_quiet, 3)


def _is_answered(s: socket.socket) -> str:
    """Whom a server of datagrams sees; "" without an answer."""
    s.send(b"x")
    try:
        return s.recv(100).decode().rpartition(" ")[0]
    except TimeoutError:
        return ""


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", HERE)
def test_who_talks_on_to_a_server_that_has_gone_is_reset(net: Net, host: str) -> None:
    """It had said all and heard all, so its own end was no reset."""
    serve(net)
    port = published(net)
    with connect(host, port) as s:
        s.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with s.makefile("rb") as stream:
            assert b"Content-Length" in stream.read()
        wait_for("it is reset", partial(is_reset, s))


def test_slirp4netns_has_a_view_of_its_own(net: Net) -> None:
    serve(net, "-o", "port_handler=slirp4netns")
    (port,) = add(net, "80")
    assert who("127.0.0.1", port)[0].split()[0] == "10.0.2.2"
    seen, own = who(MACHINE, port)
    assert seen == own
    assert lost(net) == [{"loopback": "slirp4netns shows an address of its own"}]
    done = net.run("port", "add", "--source-ip=snat", "0.0.0.0:18080:80", check=False)
    assert (done.returncode, done.stderr) == (
        125,
        "rootlessnet: publish 0.0.0.0:18080:80/tcp: port_handler=slirp4netns cannot hide the "
        "client's address\n  hint: leave port_handler away\n",
    )
