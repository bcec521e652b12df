"""What the forwarder is asked, and by whom: one line of JSON, answered by one
(rootlessnet.ports.control).

    {"do": "add", "owner", "rules", "target", "source_ip"}      {"rules": [...], "warnings": [...]}
    {"do": "remove", "owner", "rules": null or [...]}           {"removed": 1}
    {"do": "retarget", "owner", "target"}                       {"retargeted": 1, "warnings": [...]}
    {"do": "list"}                                              {"rules": [...]}
    {"do": "connections"}                                       {"connections": [[rule, [1, 0]]],
                                                                 "lost": [[rule, {kind: why}]]}
    whatever goes wrong                                         {"error": "...", "hint": "..."}
"""

from __future__ import annotations

import os
import select
import time
from functools import partial

from rootlessnet.errors import Error, hint, reason
from rootlessnet.instance.logfile import say
from rootlessnet.kernel.trace import trace
from rootlessnet.ports import control, files, rules
from rootlessnet.ports.target import PRESERVE, SNAT, from_dict

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from typing import Any

    from rootlessnet.instance.paths import Instance
    from rootlessnet.ports.bugs import Bugs
    from rootlessnet.ports.processes import Watched
    from rootlessnet.ports.rules import Rule
    from rootlessnet.ports.running import Running
    from rootlessnet.ports.table import Table
    from rootlessnet.ports.target import Target


class Requests:
    """The socket, and who is connected to it. `watched` is to be polled; when `due` has come, by
    the monotonic clock, `tick` is to be called."""

    def __init__(self, instance: Instance, running: Running, table: Table, bugs: Bugs) -> None:
        """Raises OSError."""
        self._bugs = bugs
        self._path = files.path(instance, files.SOCKET)
        self._running = running
        self._table = table
        self._clients: dict[int, _Client] = {}
        self._server = control.listen(self._path)

    def watched(self) -> Iterator[Watched]:
        """What is to be polled."""
        yield self._server.fileno(), select.POLLIN, self._ready
        for fd, client in self._clients.items():
            yield fd, client.events, client.ready

    @property
    def due(self) -> float:
        """When to call `tick`; 0 for never."""
        return min((client.deadline for client in self._clients.values()), default=0.0)

    def tick(self) -> None:
        """Let go of those who have their answer, or take too long."""
        now = time.monotonic()
        for fd, client in list(self._clients.items()):
            if client.done or now > client.deadline:
                client.close()
                del self._clients[fd]

    def are_open(self) -> bool:
        """Whether somebody asks at the moment."""
        return bool(self._clients)

    def _ready(self) -> None:
        self.accept()

    def accept(self) -> bool:
        """Take the next who wants to ask; whether there was one."""
        try:
            connection, _ = self._server.accept()
        except OSError:
            return False
        if len(self._clients) >= control.MAX_CLIENTS:
            connection.close()
            return True
        self._clients[connection.fileno()] = _Client(connection, self._answer)
        return True

    def close(self) -> None:
        """Who connects from now on finds no socket, and asks for a forwarder."""
        try:
            os.unlink(self._path)
        except OSError:
            pass

    def _answer(self, request: Any, peer: control.Peer) -> dict[str, Any]:
        """Do what a client asks. What is wrong with it is in the answer."""
        try:
            action = self._understand(request, peer)
        except Error as error:
            return {"error": reason(error), "hint": hint(error)}
        except (ValueError, KeyError, TypeError) as error:
            return {"error": f"ask the port forwarder: {error}", "hint": ""}
        try:
            trace("requests:understood")
            return action()
        except Error as error:
            return {"error": reason(error), "hint": hint(error)}
        except OSError as error:
            return {"error": f"change published ports: {reason(error)}", "hint": ""}
        except Exception as error:
            self._bugs.tell()
            return {
                "error": f"change published ports: {type(error).__name__}: {error}",
                "hint": "this is a mistake of the program: rootlessnet logs shows where",
            }

    def _understand(self, request: Any, peer: control.Peer) -> Callable[[], dict[str, Any]]:
        """What is to be done. Raises ValueError, KeyError or TypeError when it makes no sense, and
        Error when it is not allowed."""
        if not isinstance(request, dict):
            raise ValueError("not a request")
        what = request.get("do")
        if what == "list":
            return self._list
        if what == "connections":
            return self._connections
        if what not in ("add", "remove", "retarget"):
            raise ValueError(f"unknown request {what!r}")
        owner = request["owner"]
        if not isinstance(owner, str):
            raise ValueError("not an owner")
        files.check_owner(owner)
        # Who is inside can change where a container is anyway, and end it: the ports that it has
        # may follow.
        is_following = what != "add" and owner.startswith(files.CONTAINER + ":")
        if not (self._running.from_inside or is_following or peer.is_outside()):
            raise Error(
                "change published ports: from inside the instance this is not allowed",
                hint="do it outside, or start the instance with -o allow_ports_from_inside=true",
            )
        if what == "retarget":
            return partial(self._retarget, owner, from_dict(request["target"]))
        asked = request["rules"] if what == "add" else request.get("rules")
        which = None if asked is None else [rules.from_list(one) for one in asked]
        if what == "remove":
            return partial(self._remove, owner, which)
        target, source_ip = request.get("target"), request.get("source_ip") or ""
        if target is not None:
            from_dict(target)
        if source_ip not in ("", PRESERVE, SNAT):
            raise ValueError(f"unknown source_ip {source_ip!r}")
        return partial(self._add, owner, _spread(which or []), target, source_ip)

    def _list(self) -> dict[str, Any]:
        found = [
            {"owner": owner, "rule": rule.as_list(), "target": name}
            for owner, rule, name in self._table
        ]
        return {"rules": found}

    def _connections(self) -> dict[str, Any]:
        return {
            "connections": [[rule.as_list(), counts] for rule, counts in self._table.connections()],
            "lost": [[rule.as_list(), why] for rule, why in self._table.lost()],
        }

    def _add(
        self, owner: str, asked: list[Rule], target: dict[str, Any] | None, source_ip: str
    ) -> dict[str, Any]:
        made, warnings = self._table.add(owner, asked, target, source_ip)
        return {"rules": [rule.as_list() for rule in made], "warnings": warnings}

    def _remove(self, owner: str, which: list[Rule] | None) -> dict[str, Any]:
        return {"removed": self._table.remove(owner, which)}

    def _retarget(self, owner: str, target: Target) -> dict[str, Any]:
        count, warnings = self._table.retarget(owner, target)
        return {"retargeted": count, "warnings": warnings}


class _Client:
    """Somebody who asks; it has a limit in time, size and number, and blocks nobody."""

    def __init__(
        self,
        connection: socket.socket,
        answer: Callable[[Any, control.Peer], dict[str, Any]],
    ) -> None:
        self._connection = connection
        self._answer = answer
        connection.setblocking(False)
        self._peer = control.Peer(connection)
        self._data = bytearray()
        self._reply = b""
        self.events = select.POLLIN
        self.done = False
        self.deadline = time.monotonic() + control.SECONDS
        if not self._peer.is_ours():
            say(f"uid {self._peer.uid} asked for ports and was turned away")
            self._say({"error": "change published ports: not your instance", "hint": ""})

    def ready(self) -> None:
        """Read or write some more."""
        try:
            if self._reply:
                self._write()
            else:
                self._read()
        except BlockingIOError:
            pass
        except OSError:
            self.done = True
        except BaseException:
            self.done = True
            raise

    def _read(self) -> None:
        import json

        chunk = self._connection.recv(1 << 16)
        self._data += chunk
        if b"\n" in self._data:
            line = bytes(self._data).partition(b"\n")[0]
            try:
                request = json.loads(line)
            except (ValueError, RecursionError):
                request = None
            self._say(self._answer(request, self._peer))
        elif not chunk or len(self._data) > control.MAX_LINE:
            self.done = True

    def _say(self, answer: dict[str, Any]) -> None:
        import json

        self._reply = json.dumps(answer).encode() + b"\n"
        self.events = select.POLLOUT
        try:
            self._write()
        except BlockingIOError:
            pass
        except OSError:
            self.done = True

    def _write(self) -> None:
        sent = self._connection.send(self._reply)
        self._reply = self._reply[sent:]
        self.done = not self._reply

    def close(self) -> None:
        self._connection.close()


def _spread(asked: list[Rule]) -> list[Rule]:
    """A range whose host ports are free to choose is a rule for each port."""
    found = []
    for rule in asked:
        if rule.host_port or rule.count == 1:
            found.append(rule)
        else:
            found += [
                rules.Rule(rule.proto, rule.host_ip, 0, rule.port + number)
                for number in range(rule.count)
            ]
    return found
