"""Published ports as people read them: a range of ports is one entry."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

_KEYS = ("proto", "host_ip", "host_port", "port")


def lines(ports: Iterable[dict[str, Any]], arrow: str) -> list[str]:
    """What `status --json` has under `ports`, as HOST:PORT[-PORT] arrow PORT[-PORT]/PROTO."""
    runs: list[list[Any]] = []
    for port in ports:
        proto, host_ip, host_port, inside = (port[key] for key in _KEYS)
        if runs:
            *before, count = runs[-1]
            if before == [proto, host_ip, host_port - count, inside - count]:
                runs[-1][-1] += 1
                continue
        runs.append([proto, host_ip, host_port, inside, 1])
    return [_line(arrow, *run) for run in runs]


def _line(arrow: str, proto: str, host_ip: str, host_port: int, port: int, count: int) -> str:
    address = f"[{host_ip}]" if ":" in host_ip else host_ip or "*"
    return f"{address}:{_span(host_port, count)}{arrow}{_span(port, count)}/{proto}"


def _span(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first}-{first + count - 1}"
