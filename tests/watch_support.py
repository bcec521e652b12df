"""Instances to look at: snapshots as the kernel and `status --json` would give them."""

from __future__ import annotations

from typing import Any

from rootlessnet.watch.snapshot import Interface, Snapshot

HOSTILE = '<script>alert(1)</script>&amp;"]--;`x`\\\n\x1b[2J\u202e#quot;'
"""A container's name that would mean something in every language that we write."""


def document(**changes: Any) -> dict[str, Any]:
    """`status --json` of a running instance."""
    found: dict[str, Any] = {
        "name": "rootless-netns-0123456789abcdef0123",
        "static_dir": "/home/alice/.local/share/containers/storage/libpod",
        "state": "running",
        "netns": {"path": "/proc/101/ns/net", "inode": 4026531840},
        "userns_inode": 4026531837,
        "supervisor": {"pid": 100, "scope": None, "rss_bytes": 20971520},
        "holder": {"pid": 101},
        "driver": {
            "name": "slirp4netns", "version": "1.2.0", "pid": 102, "restarts": 0, "options": {},
            "cidr": "10.0.2.0/24", "gateway": "10.0.2.2", "dns": "10.0.2.3",
            "address": "10.0.2.100", "mtu": 20000, "ipv6": True,
        },
        "linger": 0,
        "leases": [lease("120", 120, "sh"), lease("web", None, "", "named")],
        "ports": [],
        "containers": [],
    }  # fmt: skip
    found.update(changes)
    return found


def lease(id: str, pid: int | None, command: str, kind: str = "process") -> dict[str, Any]:
    since = "2026-11-21T08:00:00+00:00"
    return {"id": id, "kind": kind, "pid": pid, "command": command, "since": since}


def container(id: str, *attachments: dict[str, Any], state: str = "ready") -> dict[str, Any]:
    networks = {each["network"]: each for each in attachments}
    return {
        "id": id, "state": state, "netns": f"/run/netns/{id}", "pid": 200,
        "since": "2026-11-21T08:00:00+00:00", "hostname": id[:12], "backend": "netavark",
        "networks": networks, "publish": [],
    }  # fmt: skip


def attachment(
    network: str, bridge: str, address: str, peer: int, interface: str = "eth0"
) -> dict[str, Any]:
    return {
        "network": network, "interface": interface, "addresses": [address],
        "mac": "02:00:00:00:00:01", "bridge": bridge, "peer": peer,
    }  # fmt: skip


def port(target: str, host_port: int = 8080, **more: Any) -> dict[str, Any]:
    return {
        "proto": "tcp", "host_ip": "127.0.0.1", "host_port": host_port, "port": 80,
        "target": target, **more,
    }  # fmt: skip


def interfaces(count: int, bridges: int = 1) -> list[Interface]:
    """lo, tap0, bridges and a veth for each of so many containers."""
    found = [
        Interface("lo", 1, mtu=65536, addresses=["127.0.0.1/8"]),
        Interface("tap0", 2, kind="tun", mtu=20000, addresses=["10.0.2.100/24"]),
    ]
    for number in range(bridges):
        found.append(
            Interface(f"podman{number}", 3 + number, kind="bridge", mtu=1500,
                      addresses=[f"10.89.{number}.1/24"])
        )  # fmt: skip
    for number in range(count):
        found.append(
            Interface(f"veth{number}", 100 + number, kind="veth", mtu=1500,
                      master=3 + number % bridges, leads_out=True,
                      counters={"rx_bytes": 1000 + number, "tx_bytes": 5})
        )  # fmt: skip
    return found


def crowd(count: int, bridges: int = 1) -> Snapshot:
    """So many containers, spread over networks; every fifth publishes a port, and is on all."""
    containers, ports, made = [], [], interfaces(count, bridges)
    for number in range(count):
        home = number % bridges
        joined = [attachment(f"net{home}", f"podman{home}", f"10.89.{home}.{number + 2}/24",
                             100 + number)]  # fmt: skip
        id = f"{number:02x}" * 32 if number % 2 else f"web-{number}"
        if number % 5 == 4:
            ports.append(port(id, 8000 + number, connections=number))
            for other in range(bridges):
                if other != home:
                    index = 1000 + number * 10 + other
                    made.append(Interface(f"veth{number}x{other}", index, kind="veth",
                                          master=3 + other, leads_out=True))  # fmt: skip
                    joined.append(attachment(f"net{other}", f"podman{other}",
                                             f"10.89.{other}.{number + 2}/24", index,
                                             f"eth{other + 1}"))  # fmt: skip
        containers.append(container(id, *joined))
    ports.append(port("10.0.2.100", 9000))
    return Snapshot(document(containers=containers, ports=ports), made, 7, 1.0)
