"""The servers of a contender: iperf3, nginx, and two of its own. Prints "up", ends with its stdin.

    serve.py PORT     PORT iperf3, +1 a byte and the end, +2 HTTP, +3 reads all it gets

Given sockets by the socket activation protocol, it serves the last of these on them alone.
"""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

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


def read_forever(server: socket.socket) -> None:
    while True:
        connection, _ = server.accept()
        threading.Thread(target=read_all, args=(connection,), daemon=True).start()


def read_all(connection: socket.socket) -> None:
    buffer = bytearray(1 << 20)
    try:
        while connection.recv_into(buffer):
            pass
    finally:
        connection.close()


def start(function: object, server: socket.socket) -> None:
    threading.Thread(target=function, args=(server,), daemon=True).start()  # type: ignore[arg-type]


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
        start(bytes_forever, socket.create_server(("0.0.0.0", port + 1), backlog=4096))
        start(read_forever, socket.create_server(("0.0.0.0", port + 3), backlog=4096))
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
