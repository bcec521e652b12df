"""Run inside a network: latency to the internet, and which datagrams come back. Prints JSON."""

from __future__ import annotations

import http.client
import json
import socket
import statistics
import time

INTERNET = "203.0.113.1"
REQUESTS = 200
CONNECTIONS = 50
# Around each MTU that is compared, less headers.
SIZES = (
    1400, 3900, 8900, 16300, 19900, 31900, 47900, 49200, 60000, 65000, 65480, 65536, 70000, 131072,
    200000, 500000,
)  # fmt: skip
DATAGRAMS = (1, 1472, 1473, 3972, 3973, 8972, 9000, 16356, 19972, 31972, 40000, 47972, 60000, 65400)


def get(connection: http.client.HTTPConnection, path: str, size: int) -> float:
    """Seconds until the whole answer is here."""
    began = time.perf_counter()
    connection.request("GET", path)
    body = connection.getresponse().read()
    assert len(body) == size, path
    return time.perf_counter() - began


def get_new(path: str, size: int) -> float:
    connection = http.client.HTTPConnection(INTERNET, timeout=60)
    try:
        return get(connection, path, size)
    finally:
        connection.close()


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
    connection = http.client.HTTPConnection(INTERNET, timeout=60)
    requests = [get(connection, "/bytes/1", 1) for _ in range(REQUESTS)]
    connection.close()
    connections = [get_new("/bytes/1", 1) for _ in range(CONNECTIONS)]
    transfers = [get_new(f"/bytes/{size}", size) for size in SIZES]
    megabytes = [get_new("/bytes/1000000", 1_000_000) for _ in range(5)]
    print(
        json.dumps(
            {
                "request_us": statistics.median(requests) * 1e6,
                "connect_us": statistics.median(connections) * 1e6,
                "megabyte_ms": statistics.median(megabytes) * 1e3,
                "slowest_ms": max(requests + connections + transfers + megabytes) * 1e3,
                "unanswered": unanswered(),
            }
        )
    )


if __name__ == "__main__":
    main()
