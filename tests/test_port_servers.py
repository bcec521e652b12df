"""Published ports of servers as people run them, asked by the clients that people use."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from port_support import MACHINE, MACHINE6, connect, free_port, listing, processes
from support import Net, kill, wait_for

NGINX = """
user root; daemon off; worker_processes 2; pid {dir}/pid; error_log {dir}/error;
events {{ }}
http {{
    log_format who '$remote_addr $request'; access_log {dir}/access who;
    client_body_temp_path {dir}/a; proxy_temp_path {dir}/b; fastcgi_temp_path {dir}/c;
    uwsgi_temp_path {dir}/d; scgi_temp_path {dir}/e;
    server {{
        listen 80; listen [::]:80; root {dir};
        allow 127.0.0.0/8; allow ::1; deny all;
    }}
}}
"""


@contextlib.contextmanager
def running(net: Net, *words: str) -> Iterator[None]:
    """A server inside that stays in the foreground."""
    child = net.start("enter", *words)
    try:
        yield
    finally:
        child.terminate()
        child.wait(10)


def dig(port: int, *words: str) -> str:
    """The short answer, empty for none."""
    command = ["dig", "+short", "+time=1", "+tries=1", "-p", str(port), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return done.stdout if done.returncode == 0 else ""


def test_a_name_server_is_asked_by_both_protocols(net: Net) -> None:
    port = free_port()
    publish = ("-p", f"{port}:53/udp", "-p", f"{port}:53/tcp")
    server = [
        "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
        "--user=root", "--pid-file=", "--address=/app.example/192.0.2.7",
        "--txt-record=long.example," + ",".join(["x" * 200] * 8),
    ]  # fmt: skip
    with running(net, *publish, "--", *server):
        wait_for("it answers", lambda: dig(port, "@127.0.0.1", "app.example") == "192.0.2.7\n")
        for address in ("127.0.0.1", "::1", MACHINE, MACHINE6):
            for how in ("+notcp", "+tcp"):
                assert dig(port, f"@{address}", how, "app.example") == "192.0.2.7\n"
        # Too large for the datagram that the client can take: it asks again by TCP.
        found = dig(port, "@127.0.0.1", "+bufsize=512", "long.example", "TXT")
        assert found.count("x") == 1600


def test_a_server_that_closes_what_it_does_not_know_keeps_its_port(net: Net) -> None:
    port = free_port()
    code = (
        "import os, socket; os.closerange(3, 4096); s = socket.create_server(('', 80))\n"
        "while True: s.accept()[0].sendall(b'hello')"
    )
    child = net.start("enter", "-p", f"{port}:80", "--", "python3", "-c", code)

    def answers() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), 5) as client:
                return client.recv(10) == b"hello"
        except OSError:
            return False

    wait_for("it answers", answers)
    kill(next(iter(processes(net))))
    wait_for("the next forwarder has its port as well", lambda: len(processes(net)) > 2)
    wait_for("it answers again", answers)
    kill(child.pid)
    wait_for("the port is free again", lambda: not listing(net))
    net.wait_until_down()


def test_a_web_server_knows_its_clients(net: Net, tmp_path: Path) -> None:
    conf = tmp_path / "nginx.conf"
    conf.write_text(NGINX.format(dir=tmp_path))
    (tmp_path / "one").write_text("hello")
    (tmp_path / "two").write_text("again")
    port = free_port()
    url = f"http://localhost:{port}/"
    with running(net, "-p", f"{port}:80", "--", "nginx", "-c", str(conf), "-p", str(tmp_path)):
        connect("127.0.0.1", port).close()
        # Several requests on one connection, by IPv4 and IPv6.
        for family in ("-4", "-6"):
            done = subprocess.run(
                ["curl", family, "--silent", "--fail", f"{url}one", f"{url}two"],
                check=True, capture_output=True, text=True, timeout=10,
            )  # fmt: skip
            assert done.stdout == "helloagain"
        # Its access list goes by the client's address.
        done = subprocess.run(
            ["curl", "--silent", "--write-out", "%{http_code}", "--output", "/dev/null",
             f"http://{MACHINE}:{port}/one"],
            check=True, capture_output=True, text=True, timeout=10,
        )  # fmt: skip
        assert done.stdout == "403"
        log = (tmp_path / "access").read_text().splitlines()
    addresses = [line.split()[0] for line in log]
    assert addresses == ["127.0.0.1"] * 2 + ["::1"] * 2 + [MACHINE]


def test_uploads_and_downloads_arrive_whole(net: Net) -> None:
    port = free_port()
    size = 64 << 20
    echo = ["busybox", "nc", "-l", "-p", "80", "-e", "busybox", "sha256sum"]
    expected = subprocess.run(
        ["sha256sum"], input=bytes(size), capture_output=True, check=True
    ).stdout.split()[0]
    with running(net, "-p", f"{port}:80", "--", *echo), connect("127.0.0.1", port) as client:
        for _ in range(64):
            client.sendall(bytes(1 << 20))
        client.shutdown(socket.SHUT_WR)
        assert client.makefile().read().split()[0].encode() == expected
