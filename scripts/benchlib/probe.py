"""Run inside a network, as root there: latency to the internet, stalls, datagrams. Prints JSON.

A stall is a transfer into the namespace that stands still for seconds. Seen with large MTUs where
receive buffers are small (net.ipv4.tcp_rmem, SO_RCVBUF). The likely cause, not proved: BSD's TCP,
from which libslirp's stems, sends no part of a segment into a window that has room for neither the
whole of it nor half of the largest window seen, and looks again after 5 s.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import time
from pathlib import Path

INTERNET = "203.0.113.1"
ECHOES = 300
CONNECTIONS = 50
CHURN = 3000
# Around each MTU that is compared, less headers.
SIZES = (
    1400, 3900, 8900, 16300, 19900, 31900, 47900, 49200, 60000, 65000, 65480, 65536, 70000, 131072,
    200000, 500000,
)  # fmt: skip
MEGABYTE = 1_000_000
DATAGRAMS = (1, 1472, 1473, 3972, 3973, 8972, 9000, 16356, 19972, 31972, 40000, 47972, 60000, 65400)

# Minimum, default and maximum of receive buffers: Linux' own, the one before 4.20 that
# slirp4netns(1) advises, and a smaller one.
TCP_RMEM = Path("/proc/sys/net/ipv4/tcp_rmem")
SETTINGS = ("4096 131072 6291456", "4096 87380 6291456", "4096 65536 6291456")
# What a program may ask for with SO_RCVBUF.
BUFFERS = (8192, 16384, 32768, 49152, 65536, 131072)
STALL_SECONDS = 1.0


def get(size: int, receive_buffer: int = 0) -> float:
    """Seconds for a page of so many bytes on a connection of its own."""
    began = time.perf_counter()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.settimeout(STALL_SECONDS)
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


def stalls() -> tuple[int, int]:
    """How many transfers stalled, and of how many."""
    before = TCP_RMEM.read_text()
    stalled = total = 0
    try:
        for setting in SETTINGS:
            TCP_RMEM.write_text(setting)
            for size, buffer in [*((n, 0) for n in SIZES), *((MEGABYTE, n) for n in BUFFERS)]:
                total += 1
                try:
                    get(size, buffer)
                except TimeoutError:
                    stalled += 1
    finally:
        TCP_RMEM.write_text(before)
    return stalled, total


def refused() -> int:
    """How many of many connections, one after another, were refused.

    slirp4netns keeps the descriptor of each for seconds after its end, and has so many.
    """
    failed = 0
    for _ in range(CHURN):
        try:
            get(1)
        except OSError:
            failed += 1
    return failed


def main() -> None:
    if sys.argv[1:] == ["refused"]:
        print(json.dumps({"refused": refused(), "connections": CHURN}))
        return
    stalled, transfers = stalls()
    print(
        json.dumps(
            {
                "echo_us": statistics.median(echoes()) * 1e6,
                "connect_us": statistics.median(get(1) for _ in range(CONNECTIONS)) * 1e6,
                "megabyte_ms": statistics.median(get(MEGABYTE) for _ in range(10)) * 1e3,
                "stalled": stalled,
                "transfers": transfers,
                "unanswered": unanswered(),
            }
        )
    )


if __name__ == "__main__":
    main()
