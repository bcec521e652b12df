"""The servers of a contender. Prints "up", ends with its stdin.

    serve.py PORT     PORT iperf3, +1 a byte and the end, +2 HTTP, +3 reads all it gets,
                      +4 the same after a byte of its own

Given sockets by the socket activation protocol, it reads all it gets on the first, and that alone.
"""

from __future__ import annotations

import os
import resource
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

NGINX = """
daemon off; worker_processes 1; pid {dir}/pid; error_log {dir}/log;
events {{ worker_connections 8192; }}
http {{
    access_log off; keepalive_requests 1000000000; client_body_temp_path {dir}/a;
    proxy_temp_path {dir}/b; fastcgi_temp_path {dir}/c; uwsgi_temp_path {dir}/d;
    scgi_temp_path {dir}/e;
    server {{ listen 0.0.0.0:{port}; location / {{ return 200 "{body}"; }} }}
}}
"""


def bytes_forever(server: socket.socket) -> None:
    while True:
        connection, _ = server.accept()
        connection.send(b"x")
        connection.close()


def read_forever(server: socket.socket, greeting: bytes = b"") -> None:
    """From as many as come: no thread for each."""
    buffer = bytearray(1 << 20)
    connections: dict[int, socket.socket] = {}
    epoll = select.epoll()
    epoll.register(server, select.EPOLLIN)
    while True:
        for fd, _ in epoll.poll():
            if fd == server.fileno():
                connection, _ = server.accept()
                if greeting:
                    connection.send(greeting)
                connections[connection.fileno()] = connection
                epoll.register(connection, select.EPOLLIN)
            elif not read(connections[fd], buffer):
                connections.pop(fd).close()


def read(connection: socket.socket, buffer: bytearray) -> int:
    try:
        return connection.recv_into(buffer)
    except OSError:
        return 0


def start(function: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=function, args=arguments, daemon=True).start()


def listening(port: int) -> socket.socket:
    return socket.create_server(("0.0.0.0", port), backlog=4096)


def main() -> None:
    if os.environ.get("LISTEN_FDS"):
        start(read_forever, socket.socket(fileno=3))
        print("up", flush=True)
        sys.stdin.read()
        os._exit(0)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    port = int(sys.argv[1])
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
    with tempfile.TemporaryDirectory() as directory:
        conf = Path(directory) / "conf"
        conf.write_text(NGINX.format(dir=directory, port=port + 2, body="x" * 200))
        quiet = subprocess.DEVNULL
        children = [
            subprocess.Popen(["iperf3", "-s", "-p", str(port)], stdout=quiet, stderr=quiet),
            subprocess.Popen(["nginx", "-c", conf, "-p", directory], stderr=quiet),
        ]
        start(bytes_forever, listening(port + 1))
        start(read_forever, listening(port + 3))
        start(read_forever, listening(port + 4), b"x")
        for number in (port, port + 2):
            for _ in range(500):
                try:
                    socket.create_connection(("127.0.0.1", number)).close()
                    break
                except OSError:
                    time.sleep(0.01)
        print("up", flush=True)
        sys.stdin.read()
        for child in children:
            child.terminate()
            child.wait()
    os._exit(0)


if __name__ == "__main__":
    main()
