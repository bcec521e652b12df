"""Run inside a network: latency to the internet, and which datagrams come back. Prints JSON."""

from __future__ import annotations

import json
import socket
import statistics
import time

INTERNET = "203.0.113.1"
ECHOES = 300
CONNECTIONS = 50
# Around each MTU that is compared, less headers.
SIZES = (
    1400, 3900, 8900, 16300, 19900, 31900, 47900, 49200, 60000, 65000, 65480, 65536, 70000, 131072,
    200000, 500000,
)  # fmt: skip
# What a program may ask for with SO_RCVBUF.
BUFFERS = (4096, 16384, 32768, 65536, 131072, 262144)
DATAGRAMS = (1, 1472, 1473, 3972, 3973, 8972, 9000, 16356, 19972, 31972, 40000, 47972, 60000, 65400)


def get(size: int, receive_buffer: int = 0) -> float:
    """Seconds for a page of so many bytes on a connection of its own."""
    began = time.perf_counter()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.settimeout(60)
        if receive_buffer:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        s.connect((INTERNET, 80))
        s.sendall(f"GET /bytes/{size} HTTP/1.0\r\n\r\n".encode())
        head, body = b"", -1
        while body < size:
            data = s.recv(65536)
            assert data, "the server hung up"
            if body >= 0:
                body += len(data)
                continue
            head += data
            if b"\r\n\r\n" in head:
                assert head.startswith(b"HTTP/1.1 200 "), head
                body = len(head.partition(b"\r\n\r\n")[2])
    return time.perf_counter() - began


def echoes() -> list[float]:
    """Seconds for each of many small datagrams there and back."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(2)
        s.connect((INTERNET, 7))
        for _ in range(ECHOES):
            began = time.perf_counter()
            s.send(b"x")
            s.recv(100)
            found.append(time.perf_counter() - began)
    return found


def unanswered() -> list[int]:
    """The sizes of datagrams that do not come back from the echo."""
    missing = []
    for size in DATAGRAMS:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(1)
            data = b"x" * size
            try:
                s.sendto(data, (INTERNET, 7))
                if not s.recv(65536).endswith(b" " + data):
                    missing.append(size)
            except OSError:
                missing.append(size)
    return missing


def main() -> None:
    round_trips = echoes()
    connections = [get(1) for _ in range(CONNECTIONS)]
    transfers = [get(size) for size in SIZES]
    megabytes = [get(1_000_000) for _ in range(5)]
    small = [get(1_000_000, size) for size in BUFFERS]
    print(
        json.dumps(
            {
                "echo_us": statistics.median(round_trips) * 1e6,
                "connect_us": statistics.median(connections) * 1e6,
                "megabyte_ms": statistics.median(megabytes) * 1e3,
                "slowest_ms": max(connections + transfers + megabytes) * 1e3,
                "small_ms": max(small) * 1e3,
                "each_small": [round(x * 1e3) for x in small],
                "unanswered": unanswered(),
            }
        )
    )


if __name__ == "__main__":
    main()
