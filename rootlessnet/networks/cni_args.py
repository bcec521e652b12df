"""What podman tells CNI plugins about a container: CNI_ARGS and the arguments of capabilities."""

from __future__ import annotations

import os

from rootlessnet.errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.networks.attachment import Attachment, Container

PROTOCOLS = ("tcp", "udp", "sctp")


def arguments(
    container: Container, attachment: Attachment, ports: list[dict[str, Any]]
) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """CNI_ARGS and the capability arguments of one attachment, podman's."""
    args = [("IgnoreUnknown", "1"), ("K8S_POD_NAME", container.name)]
    for pair in os.environ.get("CNI_ARGS", "").split(";"):
        key, equals, value = pair.partition("=")
        if equals:
            args.append((key, value))
    if attachment.static_mac:
        args.append(("MAC", attachment.static_mac))
    capability_args: dict[str, Any] = {}
    if len(attachment.static_ips) == 1:
        # Plugins before 1.0.0 know no other way.
        args.append(("IP", attachment.static_ips[0]))
    elif attachment.static_ips:
        capability_args["ips"] = attachment.static_ips
    if attachment.aliases:
        capability_args["aliases"] = {attachment.network.name: attachment.aliases}
    if ports:
        capability_args["portMappings"] = ports
    return args, capability_args


def port_mappings(mappings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """podman's port mappings as the capability portMappings has them: one entry a port and
    protocol. Raises Error."""
    found = []
    for mapping in mappings:
        protocol = mapping.get("protocol", "")
        if not protocol:
            raise Error("port protocol should not be empty")
        for each in protocol.split(","):
            if each not in PROTOCOLS:
                raise Error(f"unknown port protocol {each}")
            for offset in range(max(1, mapping.get("range", 1))):
                entry = {
                    "hostPort": mapping["host_port"] + offset,
                    "containerPort": mapping["container_port"] + offset,
                    "protocol": each,
                }
                if mapping.get("host_ip"):
                    entry["hostIP"] = mapping["host_ip"]
                found.append(entry)
    return found
