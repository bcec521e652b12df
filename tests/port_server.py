"""A server for the tests of published ports: port_server.py PORT [ADDRESS]. Prints "up".

TCP: who starts with GET gets a page, with "flood" data for ever, with "much N" N bytes, with
"stop" the server's end, with "reset" a reset; who starts with "hold" is not listened to until
somebody says "release", and then gets an answer and a reset. All others get first the line
"CLIENT PORT SERVER" and then an echo to the end of what they say. UDP: "CLIENT PORT DATAGRAM".
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading

ANSWER = 20000
released = threading.Event()


def name(address: str) -> str:
    return address.removeprefix("::ffff:")


def serve(connection: socket.socket, client: tuple[str, int]) -> None:
    server = name(connection.getsockname()[0])
    line = f"{name(client[0])} {client[1]} {server}\n".encode()
    first = connection.recv(65536)
    if first.startswith(b"GET "):
        head = f"HTTP/1.0 200 OK\r\nContent-Length: {len(line)}\r\n\r\n".encode()
        connection.sendall(head + line)
    elif first == b"flood":
        while True:
            connection.sendall(bytes(1 << 20))
    elif first == b"stop":
        os._exit(0)
    elif first == b"reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif first.startswith(b"much "):
        connection.sendall(bytes(int(first[5:])))
    elif first.startswith(b"hold"):
        released.wait()
        connection.sendall(b"a" * ANSWER)
    elif first == b"release":
        released.set()
    else:
        connection.sendall(line)
        while first:
            connection.sendall(first)
            first = connection.recv(65536)
    connection.close()


def answer(server: socket.socket) -> None:
    while True:
        data, client = server.recvfrom(65536)
        server.sendto(f"{name(client[0])} {client[1]} ".encode() + data, client)


def main() -> None:
    port = int(sys.argv[1])
    address = sys.argv[2] if len(sys.argv) > 2 else "::"
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    udp = socket.socket(family, socket.SOCK_DGRAM)
    if address == "::":
        udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    udp.bind((address, port))
    threading.Thread(target=answer, args=(udp,), daemon=True).start()
    both = address == "::"
    tcp = socket.create_server((address, port), family=family, backlog=4096, dualstack_ipv6=both)
    print("up", flush=True)
    while True:
        threading.Thread(target=serve, args=tcp.accept(), daemon=True).start()


main()
