"""Snapshots in Prometheus' text format, for the textfile collector of node_exporter.

Every metric has its instance as the first label. A counter begins again at zero with what it
counts: an interface that is made again, an instance that is started again; rate() knows that.
"""

from __future__ import annotations

import os

from rootlessnet.errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from rootlessnet.watch.snapshot import Snapshot

_STATES = ("running", "degraded", "down")
_LEASES = ("process", "named", "container")
_WAYS = {"rx": ("receive", "received"), "tx": ("transmit", "sent")}
_COUNTERS = {
    "bytes": "Bytes {way}",
    "packets": "Packets {way}",
    "errors": "Packets not {way} because of an error",
    "dropped": "Packets dropped instead of being {way}",
}


class Family:
    """A metric: its samples by their labels, so that none can be there twice."""

    __slots__ = ("help", "kind", "name", "samples")

    def __init__(self, name: str, kind: str, help: str) -> None:
        self.name = f"rootlessnet_{name}"
        self.kind = kind
        self.help = help
        self.samples: dict[tuple[tuple[str, str], ...], int] = {}

    def add(self, value: int | bool | None, **labels: object) -> None:
        """A sample; None is no sample."""
        if value is not None:
            key = tuple((name, str(text)) for name, text in labels.items())
            self.samples[key] = int(value)

    def lines(self) -> Iterable[str]:
        """Its part of the text."""
        yield f"# HELP {self.name} {self.help}."
        yield f"# TYPE {self.name} {self.kind}"
        for labels, value in self.samples.items():
            inner = ",".join(f'{name}="{_escape(text)}"' for name, text in labels)
            yield f"{self.name}{{{inner}}} {value}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def text(snapshots: Iterable[Snapshot]) -> str:
    """The whole text; metrics without a sample are left out."""
    families: dict[str, Family] = {}

    def family(name: str, kind: str, help: str) -> Family:
        return families.setdefault(name, Family(name, kind, help))

    for snapshot in snapshots:
        _Writer(snapshot, family).write()
    lines = [line for one in families.values() if one.samples for line in one.lines()]
    # A file name need not be UTF-8; the text has to be.
    found = "".join(f"{line}\n" for line in lines)
    return found.encode(errors="surrogateescape").decode(errors="replace")


class _Writer:
    """The samples of one instance."""

    def __init__(self, snapshot: Snapshot, family: Any) -> None:
        self._snapshot = snapshot
        self._instance = snapshot.name
        self._family = family

    def _gauge(self, name: str, help: str, value: int | bool | None, **labels: object) -> None:
        self._family(name, "gauge", help).add(value, instance=self._instance, **labels)

    def _counter(self, name: str, help: str, value: int | None, **labels: object) -> None:
        self._family(name, "counter", help).add(value, instance=self._instance, **labels)

    def write(self) -> None:
        document = self._snapshot.document
        for name in _STATES:
            help = "Whether the instance is in this state"
            self._gauge("instance_state", help, document["state"] == name, state=name)
        if self._snapshot.is_down:
            return
        driver = document["driver"]
        self._gauge(
            "instance_info", "What the instance is; always 1", 1,
            static_dir=document["static_dir"], driver=driver["name"],
            driver_version=driver["version"],
        )  # fmt: skip
        self._gauge("driver_up", "Whether the driver runs", driver["pid"] is not None)
        self._counter(
            "driver_restarts_total", "Times the driver was started again", driver["restarts"]
        )
        supervisor = document["supervisor"]
        self._gauge("supervisor_up", "Whether the supervisor runs", supervisor["pid"] is not None)
        self._gauge(
            "supervisor_resident_memory_bytes", "Resident memory of the supervisor",
            supervisor["rss_bytes"],
        )  # fmt: skip
        kinds = [lease["kind"] for lease in document["leases"]]
        for kind in dict.fromkeys((*_LEASES, *kinds)):
            self._gauge("leases", "Users of the instance", kinds.count(kind), kind=kind)
        self._gauge("processes", "Processes inside", self._snapshot.processes)
        self._interfaces()
        self._containers()
        self._ports()

    def _interfaces(self) -> None:
        for each in self._snapshot.interfaces:
            labels = {"interface": each.name}
            self._gauge("interface_up", "Whether the interface is set up", each.is_up, **labels)
            self._gauge("interface_mtu_bytes", "MTU of the interface", each.mtu, **labels)
            self._counters("interface", "on the interface", each.counters, labels)

    def _containers(self) -> None:
        containers = self._snapshot.containers
        self._gauge("containers", "Containers with a network of the instance", len(containers))
        for container in containers:
            self._gauge(
                "container_info", "A container and its state; always 1", 1,
                container=container.id, state=container.state,
            )  # fmt: skip
            for each in container.attachments:
                labels = {
                    "container": container.id,
                    "network": each.network,
                    "interface": each.interface,
                }
                if each.counters is not None:
                    self._counters("container", "by the container", each.counters, labels)

    def _counters(
        self, subject: str, where: str, counters: dict[str, int], labels: dict[str, str]
    ) -> None:
        for short, (way, verb) in _WAYS.items():
            for counter, words in _COUNTERS.items():
                self._counter(
                    f"{subject}_{way}_{counter}_total",
                    f"{words.format(way=verb)} {where}",
                    counters[f"{short}_{counter}"],
                    **labels,
                )

    def _ports(self) -> None:
        ports = self._snapshot.document["ports"]
        self._gauge("ports", "Published ports", len(ports))
        for port in ports:
            labels = {
                key: port.get(key, "")
                for key in ("proto", "host_ip", "host_port", "port", "target")
            }
            self._gauge("port_info", "A published port; always 1", 1, **labels)
            self._gauge(
                "port_connections", "Open connections of a published port",
                port.get("connections"), **labels,
            )  # fmt: skip


def write_file(path: str, content: str) -> None:
    """Put the text into a file so that a reader sees the old one or the new one, whole.

    Others may read it, as far as the umask lets them: the collector is another user. Raises Error.
    """
    # Not .prom at its end, or the collector would read it too early.
    temporary = f"{path}.{os.getpid()}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    data = content.encode()
    try:
        fd = os.open(temporary, flags, 0o644)
        try:
            with open(fd, "wb") as file:
                file.write(data)
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        # The name that was given, not the one beside it.
        reason = OSError(error.errno, error.strerror, path)
        raise Error("write the metrics") from reason
