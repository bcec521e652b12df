"""slirp4netns' own forwarding (-o port_handler=slirp4netns), by its API socket. It leads to the
instance itself only; ports of containers are the forwarder's in any case.

    {"execute": "add_hostfwd", "arguments": {...}}       {"return": {"id": 1}}
    {"execute": "list_hostfwd"}                          {"entries": [...]}, without "return"
    {"execute": "remove_hostfwd", "arguments": {"id"}}   {"return": {}}
    whatever goes wrong                                  {"error": {"desc": "..."}}

It reads a request with one read(2) and handles one client at a time, on the thread that moves all
traffic. So: one connection a request, sent at once and whole; always with "proto", without which
1.2.0 dies; and nobody else can reach the socket, as its directory is private.
"""

from __future__ import annotations

import os

from rootlessnet.drivers.slirp4netns import API_SOCKET
from rootlessnet.errors import Error, reason
from rootlessnet.instance.logfile import say
from rootlessnet.ports import control

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.instance.paths import Instance
    from rootlessnet.ports.publication import Publication
    from rootlessnet.ports.rules import Rule

LOST = {"loopback": "slirp4netns shows an address of its own"}
"""Whose address the server does not see: rootlessnet.ports.clients."""
_SECONDS = 5.0
_MAX_REPLY = 4 << 20


def check(rule: Rule) -> None:
    """Raise Error for what slirp4netns cannot forward."""
    if rule.version == 6:
        raise Error(
            f"publish {rule}: port_handler=slirp4netns cannot publish IPv6 addresses",
            hint="leave port_handler away",
        )


class Api:
    """The API of the instance's slirp4netns. Methods raise Error or OSError."""

    def __init__(self, instance: Instance) -> None:
        self._path = instance.path(API_SOCKET)

    def _ask(self, execute: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        import json

        request: dict[str, Any] = {"execute": execute}
        if arguments is not None:
            request["arguments"] = arguments
        data = json.dumps(request).encode()
        assert len(data) < 4095 and (execute != "add_hostfwd" or request["arguments"]["proto"])
        directory = os.stat(os.path.dirname(self._path))
        if directory.st_uid != os.geteuid() or directory.st_mode & 0o077:
            raise Error(f"use {self._path}: others can reach it")
        try:
            with control.connect(self._path, _SECONDS) as connection:
                connection.sendall(data)
                connection.shutdown(1)
                reply = b""
                while chunk := connection.recv(65536):
                    reply += chunk
                    if len(reply) > _MAX_REPLY:
                        raise Error("slirp4netns says too much")
        except OSError as error:
            raise Error(f"ask slirp4netns to {execute}: {error.strerror or error}") from None
        try:
            answer = json.loads(reply)
            if "error" in answer:
                raise Error(f"slirp4netns: {answer['error']['desc']}")
            return dict(answer)
        except (ValueError, TypeError, KeyError):
            raise Error(f"slirp4netns gives no sensible answer to {execute}") from None

    def add(self, publication: Publication, address: str) -> None:
        """Forward all ports of a rule, or none."""
        rule = publication.rule
        check(rule)
        if not rule.host_port:
            rule.host_port = _free_port(rule)
        else:
            _refuse_taken(rule)
        try:
            for number in range(rule.count):
                publication.forwards.append(self._forward(rule, number, address))
        except BaseException:
            self.remove(publication)
            raise

    def _forward(self, rule: Rule, number: int, address: str) -> int:
        answer = self._ask(
            "add_hostfwd",
            {
                "proto": rule.proto,
                "host_addr": rule.host_ip or "0.0.0.0",
                "host_port": rule.host_port + number,
                "guest_addr": address,
                "guest_port": rule.port + number,
            },
        )
        found = answer.get("return", {})
        if not isinstance(found, dict) or not isinstance(found.get("id"), int):
            raise Error("slirp4netns gives no number for a forward")
        return int(found["id"])

    def remove(self, publication: Publication) -> None:
        """No longer; one that is gone is no error."""
        for number in publication.forwards:
            try:
                self._ask("remove_hostfwd", {"id": number})
            except Error as error:
                if "remove_hostfwd failed" not in str(error):
                    publication.forwards = []
                    raise
        publication.forwards = []

    def entries(self) -> list[dict[str, Any]]:
        """What it forwards."""
        answer = self._ask("list_hostfwd")
        found = answer.get("entries", answer.get("return", {}))
        if isinstance(found, dict):
            found = found.get("entries", [])
        return [entry for entry in found if isinstance(entry, dict)]

    def reconcile(self, publications: list[Publication], address: str) -> list[Publication]:
        """Make what it forwards what it should: after a restart it has nothing, after ours it has
        everything under numbers that we did not know. Those that it cannot forward are returned,
        and have no forwards."""
        wanted = {key for publication in publications for key in _keys(publication.rule)}
        there = {}
        for entry in self.entries():
            key = tuple(
                entry.get(name) for name in ("proto", "host_addr", "host_port", "guest_port")
            )
            if key in wanted and isinstance(entry.get("id"), int):
                there[key] = entry["id"]
            else:
                self._ask("remove_hostfwd", {"id": entry.get("id")})
        failed = []
        for publication in publications:
            publication.forwards = []
            try:
                for number, key in enumerate(_keys(publication.rule)):
                    known = there.get(key)
                    if known is None:
                        known = self._forward(publication.rule, number, address)
                    publication.forwards.append(known)
            except Error as error:
                say(f"not published again yet: {publication.rule}: {reason(error)}")
                failed.append(publication)
        for publication in failed:
            self.remove(publication)
        return failed


def _keys(rule: Rule) -> list[tuple[str, str, int, int]]:
    """What is listed for each port of a rule that is forwarded."""
    host = rule.host_ip or "0.0.0.0"
    return [(rule.proto, host, rule.host_port + n, rule.port + n) for n in range(rule.count)]


def _probe(rule: Rule, port: int) -> int:
    import socket

    kind = socket.SOCK_STREAM if rule.proto == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as sock:
        if rule.proto == "tcp":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((rule.host_ip or "0.0.0.0", port))
        if rule.proto == "tcp":
            sock.listen(1)
        number: int = sock.getsockname()[1]
        return number


def _free_port(rule: Rule) -> int:
    return _probe(rule, 0)


def _refuse_taken(rule: Rule) -> None:
    """slirp4netns tells no reason."""
    from rootlessnet.ports import listeners

    for number in range(rule.count):
        try:
            _probe(rule, rule.host_port + number)
        except OSError as error:
            raise listeners.refusal(rule, rule.host_port + number, error) from None
