"""A container as its record has it, in the terms of the runtimes netavark_run and cni_run."""

from __future__ import annotations

import os

from rootlessnet.errors import warn
from rootlessnet.instance import dns
from rootlessnet.networks import cni, container_netns
from rootlessnet.networks.attachment import Attachment, Container, hashed
from rootlessnet.networks.network import from_document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.instance.paths import Instance


def module(record: dict[str, Any]) -> Any:
    """The module that attaches the container: netavark_run or cni_run."""
    from importlib import import_module

    return import_module(f"rootlessnet.networks.{record['backend']}_run")


def item_of(attachment: Attachment, phase: str) -> dict[str, Any]:
    """What the record says about an attachment that is about to be made."""
    return {
        "network": attachment.network.document(),
        "interface": attachment.interface,
        "static_ips": attachment.static_ips,
        "static_mac": attachment.static_mac,
        "aliases": attachment.aliases,
        "addresses": attachment.addresses,
        "phase": phase,
        "status": {},
        "peer": 0,
    }


def _attachment(item: dict[str, Any]) -> Attachment:
    found = Attachment(
        from_document(item["network"]),
        item["interface"],
        static_ips=item["static_ips"],
        static_mac=item["static_mac"],
        aliases=item["aliases"],
    )
    found.addresses = list(item["addresses"])
    return found


def of_record(record: dict[str, Any], path: str, names: list[str] | None = None) -> Container:
    """The container as a runtime wants it, with these of its networks or with all."""
    chosen = record["networks"] if names is None else names
    attachments = []
    for name in chosen:
        try:
            attachments.append(_attachment(record["networks"][name]))
        except ValueError as error:
            warn(f"container {record['id']}: network {name}: {error}")
    return as_container(record, path, attachments)


def as_container(record: dict[str, Any], path: str, attachments: list[Attachment]) -> Container:
    """The container as a runtime wants it, with these attachments."""
    id = record["id"]
    if record["backend"] == cni.NAME and not id.replace("_", "").isalnum():
        # Not every id of ours is one for CNI plugins; and in the names of their results a dash
        # separates.
        id = hashed(id)
    return Container(id, path, attachments, name=record["id"], hostname=record["hostname"])


class Namespace:
    """The container's namespace as a path that leads there for sure, as a context; "" when gone."""

    def __init__(self, record: dict[str, Any]) -> None:
        self._record = record

    def __enter__(self) -> str:
        self._fd = container_netns.open_again(self._record)
        if self._fd is None:
            return ""
        path: str = self._record["netns"]["path"]
        try:
            info = os.stat(path)
            if (info.st_dev, info.st_ino) == (os.fstat(self._fd).st_dev, os.fstat(self._fd).st_ino):
                return path
        except OSError:
            pass
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def __exit__(self, *_: object) -> None:
        if self._fd is not None:
            os.close(self._fd)


def work(instance: Instance) -> str:
    """The directory for the runtimes' own files, which is made if need be."""
    path = dns.work_directory(instance)
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path
