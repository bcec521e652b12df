"""What passes through a published port: bytes, addresses, ends, resets, many of them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from port_support import (
    MACHINE,
    MACHINE6,
    SERVER,
    add,
    ask,
    connect,
    free_port,
    instance,
    is_refused,
    listing,
    processes,
    serve,
    who,
    who_udp,
    works_again,
)
from support import PROGRAM, Net, kill, wait_for

from rootlessnet.ports import api, rules

INTERNET = "203.0.113.1"


@pytest.fixture
def port(net: Net) -> int:
    """Leads to a server inside, TCP and UDP, on all addresses."""
    serve(net)
    (number,) = add(net, "80")
    net.run("port", "add", f"{number}:80/udp")
    # Its IPv6 address inside comes a moment later.
    wait_for("IPv6 works", lambda: who("::1", number)[0].startswith("::1 "))
    return number


# -- addresses ---


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", MACHINE, MACHINE6])
def test_the_server_sees_the_client(port: int, host: str) -> None:
    seen, own = who(host, port)
    assert seen == own


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", MACHINE, MACHINE6])
@pytest.mark.parametrize("count", [1, 20])
def test_the_server_sees_the_client_by_udp(port: int, host: str, count: int) -> None:
    seen, own = who_udp(host, port, count)
    assert seen == own


@pytest.mark.parametrize("host", [MACHINE, f"[{MACHINE6}]"])
def test_the_server_sees_a_client_of_another_machine(port: int, host: str) -> None:
    url = f"http://{INTERNET}/get?url=http://{host}:{port}/"
    done = subprocess.run(
        ["curl", "--silent", "--fail", url], check=True, capture_output=True, text=True, timeout=10
    )
    expected = INTERNET if host == MACHINE else "2001:db8::1"
    assert done.stdout.split()[0] == expected


def test_a_server_without_ipv6_is_reached_by_ipv6(net: Net) -> None:
    serve(net, address="0.0.0.0")
    (port,) = add(net, "80")
    assert ask("::1", port).split()[2] == "10.0.2.100"


BRIDGE = """
set -e
ip link add bridge9 type bridge
ip address add 10.99.0.1/24 dev bridge9
ip address add fd99::1/64 dev bridge9 nodad
ip link set bridge9 up
unshare -n sh -c 'echo $$; exec sleep 1000' > {file} &
until [ -s {file} ]; do sleep 0.01; done
pid=$(cat {file})
ip link add veth9 type veth peer name eth0 netns $pid
ip link set veth9 master bridge9 up
inside="nsenter -t $pid -n"
$inside ip link set lo up
for n in 2 3; do
$inside ip address add 10.99.0.$n/24 dev eth0
done
$inside ip address add fd99::2/64 dev eth0 nodad
# Deprecated, or it would be the address from which the server answers datagrams to the other.
$inside ip address add fd99::3/64 dev eth0 nodad preferred_lft 0
$inside ip link set eth0 up
{route}
$inside {server} 80 & echo $! >> {file}
read x
"""
ROUTE = """$inside ip route add default via 10.99.0.1
$inside ip -6 route add default via fd99::1"""


@contextlib.contextmanager
def container(net: Net, tmp_path: Path, route: str = ROUTE) -> Iterator[int]:
    """A network namespace behind a bridge inside, with a server; its process."""
    file = tmp_path / "pids"
    record = net.directory / "containers/c1"
    script = BRIDGE.format(file=file, server=" ".join(SERVER), route=route)
    child = net.start("enter", "--", "sh", "-c", script)
    assert child.stdout is not None and child.stderr is not None
    try:
        assert child.stdout.readline() == "up\n"
        # Ports of a container are there as long as its record is.
        record.touch()
        yield int(file.read_text().split()[0])
    finally:
        record.unlink(missing_ok=True)
        for pid in map(int, file.read_text().split()):
            kill(pid)
        net.release(child)


def target(pid: int, last: int = 2) -> object:
    return api.behind_bridge("c1", f"10.99.0.{last}", f"fd99::{last}", f"/proc/{pid}/ns/net")


def publish(net: Net, pid: int) -> tuple[int, int]:
    wanted = [rules.parse("80")]
    (made,) = api.add(instance(net), api.container("c1"), wanted, target(pid))  # type: ignore[arg-type]
    udp = rules.parse(f"{made.host_port}:80/udp")
    api.add(instance(net), api.container("c1"), [udp], target(pid))  # type: ignore[arg-type]
    return made.host_port, made.host_port


def test_behind_a_bridge(net: Net, tmp_path: Path) -> None:
    with container(net, tmp_path) as pid:
        port, _ = publish(net, pid)
        assert listing(net)[0]["target"] == "c1"
        for host in (MACHINE, MACHINE6):
            seen, own = who(host, port)
            assert seen == own
            seen, own = who_udp(host, port, 20)
            assert seen == own
        # 127.0.0.1 cannot leave the machine; ::1 neither. The connection works all the same.
        assert who("127.0.0.1", port)[0].split()[0] == "10.99.0.1"
        assert who("::1", port)[0].split()[0] == "fd99::1"
        assert who_udp("127.0.0.1", port)[0].split()[0] == "10.99.0.1"
        assert who_udp("::1", port)[0].split()[0] == "fd99::1"
        assert api.remove(instance(net), api.container("c1")) == 2
        assert is_refused(MACHINE, port)


def test_a_container_that_moves(net: Net, tmp_path: Path) -> None:
    with container(net, tmp_path) as pid:
        port, _ = publish(net, pid)
        (other,) = add(net, "81")
        with connect(MACHINE, port) as before:
            before.sendall(b"x")
            reader = before.makefile()
            assert reader.readline().split()[2] == "10.99.0.2"
            api.retarget(instance(net), api.container("c1"), target(pid, 3))  # type: ignore[arg-type]
            assert ask(MACHINE, port).split()[2] == "10.99.0.3"
            before.sendall(b"still here\n")
            assert reader.readline() == "xstill here\n"
        assert {entry["host_port"] for entry in listing(net)} == {port, other}


def test_a_container_without_a_way_back(net: Net, tmp_path: Path) -> None:
    """On an internal network there is no default route: it works without the client's address."""
    with container(net, tmp_path, route="") as pid:
        port, _ = publish(net, pid)

        def given_up() -> bool:
            assert who(MACHINE, port)[0].split()[0] == "10.99.0.1"
            return "is not kept (the server has no way back to it)" in net.log()

        wait_for("it is found out", given_up)


def chains(net: Net) -> set[str]:
    """The chains of nft in the instance's namespace."""
    ruleset = net.inside("/usr/sbin/nft", "list", "ruleset")
    return {line.split()[1] for line in ruleset.splitlines() if line.strip().startswith("chain ")}


def test_nothing_is_filtered_that_need_not_be(net: Net, tmp_path: Path) -> None:
    """Connection tracking costs every packet, so it is there for datagrams alone."""
    serve(net, "-p", f"{free_port()}:80/tcp")
    (port,) = add(net, "80")
    assert ask(MACHINE, port)
    assert net.inside("/usr/sbin/nft", "list", "ruleset") == ""
    with container(net, tmp_path) as pid:
        behind, _ = publish(net, pid)
        for _ in range(2):
            assert chains(net) == {"prerouting"}
            seen, own = who(MACHINE, behind)
            assert seen == own
            # Firewalls that are set up anew begin so; whoever sets networks up anew repairs it.
            net.enter("/usr/sbin/nft", "flush", "ruleset")
            api.retarget(instance(net), api.container("c1"), target(pid))  # type: ignore[arg-type]
        net.run("port", "add", f"{port}:80/udp")
        assert chains(net) == {"prerouting", "output"}
        for host in ("127.0.0.1", MACHINE, MACHINE6):
            seen, own = who_udp(host, port)
            assert seen == own
        # The next forwarder has to know what its rules need, and leaves the rest.
        kill(processes(net)[0])
        works_again(behind)
        seen, own = who(MACHINE, behind)
        assert seen == own
        assert chains(net) == {"prerouting", "output"}


def test_without_nft_only_rules_that_need_it_are_warned_of(net: Net, tmp_path: Path) -> None:
    """As on a kernel that has no nf_tables."""
    nft = tmp_path / "nft"
    nft.write_text("#!/bin/sh\necho 'cache initialization failed: Invalid argument' >&2\nexit 1\n")
    nft.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    serve(net, env={"PATH": path})
    port = free_port()
    assert net.run("port", "add", f"{port}:80").stderr == ""
    seen, own = who(MACHINE, port)
    assert seen == own
    said = net.run("port", "add", f"{port}:80/udp", f"{free_port()}:81/udp").stderr
    assert said == (
        "rootlessnet: warning: the client's address is not kept (nft: cache initialization failed: "
        "Invalid argument): clients appear with an address of the instance "
        "(-o source_ip=snat says that this is wanted)\n"
    )
    assert who_udp(MACHINE, port)[0].split()[0] == "10.0.2.100"
    # It has been installed since.
    nft.unlink()
    other = free_port()
    assert net.run("port", "add", f"{other}:80/udp").stderr == ""
    seen, own = who_udp(MACHINE, other)
    assert seen == own


# -- what is refused, ended, reset ---


def test_refused_while_nothing_listens_inside(net: Net) -> None:
    net.hold()
    (port,) = add(net, "80")
    for _ in range(20):
        assert is_refused("127.0.0.1", port) and is_refused("::1", port)
    for _ in range(3):
        server = serve(net)
        assert ask("127.0.0.1", port)
        with connect("127.0.0.1", port) as s:
            s.sendall(b"stop")
            server.wait(5)
        wait_for("it is known", lambda: is_refused("127.0.0.1", port), 2)
        assert is_refused("::1", port)


@pytest.mark.parametrize(
    ("client", "server"), [("203.0.113.1", "10.0.2.100"), ("2001:db8::1", "::1")]
)
def test_a_refusal_inside_finds_its_way_back(net: Net, client: str, server: str) -> None:
    """To a socket with the address of a client, as the forwarder has them."""
    net.hold("-p", "127.0.0.1::80")
    text = f"""if True:
        import errno, sys
        from rootlessnet.ports import inside
        s = inside.make("t{6 if ":" in client else 4}m")
        s.bind(("{client}", 0))
        s.settimeout(5)
        code = s.connect_ex(("{server}", 9))
        print(errno.errorcode.get(code, code))
    """
    assert net.inside(sys.executable, "-c", text).strip() == "ECONNREFUSED"


def test_half_closed_both_ways(port: int) -> None:
    data = os.urandom(8 << 20)
    with connect("127.0.0.1", port) as s:

        def send() -> None:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        stream = s.makefile("rb")
        stream.readline()
        assert hashlib.sha256(stream.read()).digest() == hashlib.sha256(data).digest()
        sender.join()


def test_a_reset_of_the_server_reaches_the_client(port: int) -> None:
    with connect("127.0.0.1", port) as s:
        s.sendall(b"reset")
        with pytest.raises(ConnectionResetError):
            s.recv(1)


def test_a_server_that_hangs_up_on_an_upload(port: int) -> None:
    """Its answer arrives, then the reset, and all other connections go on."""
    others = [connect("127.0.0.1", port) for _ in range(8)]
    for other in others:
        other.sendall(b"x")
        other.makefile().readline()
    with connect("127.0.0.1", port) as s:
        s.sendall(b"hold")
        s.settimeout(0.3)
        with pytest.raises(TimeoutError):
            while True:
                s.sendall(bytes(1 << 20))
        s.settimeout(10)
        with connect("127.0.0.1", port) as other:
            other.sendall(b"release")
        answer = b""
        with pytest.raises(ConnectionResetError):
            while chunk := s.recv(65536):
                answer += chunk
        assert answer == b"a" * 20000
    for other in others:
        other.sendall(b"still here")
        assert other.recv(100)
        other.close()


def test_a_slow_reader_that_has_said_all_gets_all(port: int) -> None:
    """Even when the server has gone long before."""
    sizes = [1 << shift for shift in range(16, 24)]
    clients = []
    for size in sizes:
        clients.append(connect("127.0.0.1", port))
        clients[-1].sendall(b"much %d" % size)
        clients[-1].shutdown(socket.SHUT_WR)
    assert ask("127.0.0.1", port)
    for client, size in zip(clients, sizes, strict=True):
        with client:
            found = 0
            while chunk := client.recv(1 << 20):
                found += len(chunk)
            assert found == size


def test_a_reset_of_the_client_reaches_the_server(net: Net) -> None:
    code = (
        "import socket\n"
        "s = socket.create_server(('', 80)); print('up', flush=True); c, _ = s.accept()\n"
        "print(c.recv(9), flush=True)\n"
        "try: print(c.recv(9))\n"
        "except ConnectionResetError: print('reset')\n"
    )
    child = net.start("enter", "--", "/usr/bin/python3", "-c", code)
    assert child.stdout is not None and child.stdout.readline() == "up\n"
    (port,) = add(net, "80")
    with connect("127.0.0.1", port) as s:
        s.sendall(b"x")
        assert child.stdout.readline() == "b'x'\n"
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert child.stdout.readline() == "reset\n"


# -- many ---


def test_many_connections_leave_nothing_behind(net: Net) -> None:
    """The short form of scripts/soak --connections."""
    soak = Path(__file__).resolve().parent.parent / "scripts" / "soak"
    done = subprocess.run(
        [str(soak), "--connections", "2000", "--program", PROGRAM],
        env=net.environment, text=True, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3760  ended by: client" in done.stdout


def test_a_burst_beyond_the_limit_of_descriptors(net: Net) -> None:
    command = f"ulimit -n 400; exec {PROGRAM} enter -- {' '.join(SERVER)} 80"
    child = subprocess.Popen(
        ["sh", "-c", command], env=net.environment, stdout=subprocess.PIPE, text=True
    )
    net.children.append(child)
    assert child.stdout is not None and child.stdout.readline() == "up\n"
    (port,) = add(net, "127.0.0.1::80")
    connect("127.0.0.1", port).close()
    clients = [socket.create_connection(("127.0.0.1", port), 20) for _ in range(600)]
    for number, client in enumerate(clients):
        with client:
            client.sendall(b"%d" % number)
            client.shutdown(socket.SHUT_WR)
            reply = b""
            while chunk := client.recv(4096):
                reply += chunk
            assert reply.endswith(b"\n%d" % number)
    done = subprocess.run(
        ["ab", "-q", "-c", "300", "-n", "2000", f"http://127.0.0.1:{port}/"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "Complete requests:      2000\nFailed requests:        0\n" in done.stdout, (
        done,
        net.log(),
    )


def test_a_thousand_that_are_open(port: int, net: Net) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    clients = [connect("127.0.0.1", port) for _ in range(1000)]
    for number, client in enumerate(clients):
        client.sendall(b"%d" % number)
    for number, client in enumerate(clients):
        stream = client.makefile("rb")
        stream.readline()
        assert stream.read(len(b"%d" % number)) == b"%d" % number
        stream.close()
        client.close()


def test_slow_readers_cost_bounded_memory(net: Net, port: int) -> None:
    def resident() -> int:
        total = 0
        for pid in processes(net):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    total += int(line.split()[1])
        return total

    before = resident()
    clients = [connect("127.0.0.1", port) for _ in range(20)]
    for client in clients:
        client.sendall(b"flood")
    # Until all are stuck: what arrives does not grow any more.
    seen: list[int] = []

    def stuck() -> bool:
        import fcntl
        import termios

        waiting = 0
        for client in clients:
            waiting += struct.unpack("i", fcntl.ioctl(client, termios.FIONREAD, b"\0" * 4))[0]
        seen.append(waiting)
        return len(seen) > 40 and len(set(seen[-40:])) == 1 and waiting > 0

    wait_for("all readers are stuck", stuck, 20)
    # 64 MiB is the budget of a worker, 4 MiB its buffer; and some for what is about to be kept.
    assert resident() - before < 170 * 1024
    for client in clients:
        client.close()
    assert ask("127.0.0.1", port)


def test_many_clients_by_udp(port: int) -> None:
    with contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(200):
            s = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            s.settimeout(1)
            s.connect((MACHINE, port))
            s.send(b"x")
            sockets.append(s)
        again = 0
        for s in sockets:
            for _ in range(3):
                try:
                    host, number, _ = s.recv(100).decode().split()
                    break
                except TimeoutError:  # as a resolver does
                    again += 1
                    s.send(b"x")
            assert (host, int(number)) == s.getsockname()
        assert again <= 5


def test_large_datagrams(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(5)
        s.connect(("127.0.0.1", port))
        for size in (0, 1, 1472, 9000, 60000):
            s.send(b"x" * size)
            assert s.recv(65536).rpartition(b" ")[2] == b"x" * size


@pytest.mark.parametrize("host", ["127.0.0.1", MACHINE, MACHINE6])
def test_datagrams_of_all_sizes_stay_as_they_are(port: int, host: str) -> None:
    """Also those that come many at once; none is joined to another or changed."""
    sizes = [500] * 12 + [499, 0, 1, 1400, 1400, 200, 9000, 9000, 1400, 3, 3, 3]
    sent = {b"%03d" % number + b"x" * size for number, size in enumerate(sizes)}
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.settimeout(0.5)
        s.connect((host, port))
        own = f"{s.getsockname()[0]} {s.getsockname()[1]} ".encode()
        left = set(sent)
        for _ in range(10):  # a datagram may be lost
            for datagram in sorted(left):
                s.send(datagram)
            with contextlib.suppress(TimeoutError):
                while left:
                    answer = s.recv(65536)
                    assert answer.startswith(own)
                    assert answer.removeprefix(own) in sent
                    left.discard(answer.removeprefix(own))
        assert not left


def algorithm(shown: str) -> str:
    """The congestion control of the one connection that `ss -tinH` shows."""
    first, second = shown.strip().splitlines()
    assert first and second[0].isspace()
    return second.split()[0]


def test_nothing_paces_what_stays_on_the_machine(net: Net) -> None:
    allowed = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control").read_text().split()
    other = next((name for name in allowed if name != "reno"), None)
    if other is None:
        pytest.skip("the kernel allows nothing but reno")
    net.hold()
    net.inside("sh", "-c", f"echo {other} > /proc/sys/net/ipv4/tcp_congestion_control")
    serve(net)
    (port,) = add(net, "80")
    with connect("127.0.0.1", port) as s, connect(MACHINE, port) as far:
        for client in (s, far):
            client.sendall(b"x")
            client.recv(100)
            number = client.getsockname()[1]
            inside = ("ss", "-tinH", "state", "established")
            # Our end, and the server's own.
            assert algorithm(net.inside(*inside, f"sport = :{number} and dport = :80")) == "reno"
            assert algorithm(net.inside(*inside, f"sport = :80 and dport = :{number}")) == other
    default = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    for size, expected in ((1000, default), (8 << 20, "reno")):
        with connect("127.0.0.1", port) as s:
            s.sendall(b"much %d" % size)
            while size:
                size -= len(s.recv(1 << 20))
            where = f"sport = :{port} and dport = :{s.getsockname()[1]}"
            done = subprocess.run(["ss", "-tinH", where], capture_output=True, text=True, timeout=5)
            assert algorithm(done.stdout) == expected


def test_iperf3_through_a_port(net: Net) -> None:
    port = free_port()
    net.start("enter", "-p", f"127.0.0.1:{port}:5201", "--", "iperf3", "-s", "-1", "-p", "5201")
    wait_for("it is published", lambda: listing(net))
    wait_for("it listens", lambda: not _refused_quietly(net))
    done = subprocess.run(
        ["iperf3", "-c", "127.0.0.1", "-p", str(port), "-n", "50M", "-P", "4"],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done


def _refused_quietly(net: Net) -> bool:
    """Whether iperf3 listens yet; a connection would be the one that it serves."""
    return "5201" not in net.inside("ss", "-ltn")
