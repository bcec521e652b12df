"""The API socket of a supervised slirp4netns: ours in front, the real one's behind it.

Clients connect to our socket, at the path that the caller gave. So it stays when slirp4netns is
started again, and we know which forwards to put back. The real one's socket is nobody else's: it
was bound in a private directory and unlinked after that, and is reached through a descriptor. That
matters, as a request without `proto` crashes slirp4netns, and a client that says nothing stalls all
of its traffic: what we pass on is composed anew from values that were checked, and sent at once.

Replies have the original's words. Different from it: a request may come in pieces, a port has to be
one, and ids are never used again for as long as we run.
"""

from __future__ import annotations

import errno
import json  # noqa: TID253 - this module is imported where there is an API socket
import os
import select
import socket  # noqa: TID253
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MAX_REQUEST = 4095
_MAX_CLIENTS = 64
_CLIENT_SECONDS = 10.0
_BACKEND_SECONDS = 3.0


class Refused(Exception):
    """The reply is an error with this text."""


class Behind:
    """The API socket of the slirp4netns that runs now."""

    def __init__(self, path: str) -> None:
        """path is unlinked; its directory is the caller's to remove. Raises OSError."""
        self._fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        os.unlink(path)

    def ask(self, execute: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """The reply. Raises OSError when there is none, Refused with the error in it."""
        data = bytearray()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as channel:
            channel.settimeout(_BACKEND_SECONDS)
            channel.connect(f"/proc/self/fd/{self._fd}")
            channel.sendall(json.dumps({"execute": execute, "arguments": arguments}).encode())
            while chunk := channel.recv(65536):
                data += chunk
        try:
            reply = json.loads(data)
            if isinstance(reply, dict) and "error" in reply:
                raise Refused(str(reply["error"]["desc"]))
        except (ValueError, TypeError, KeyError) as error:
            raise OSError(f"slirp4netns answered {bytes(data[:80])!r}") from error
        if not isinstance(reply, dict):
            raise OSError(f"slirp4netns answered {bytes(data[:80])!r}")
        return reply

    def close(self) -> None:
        os.close(self._fd)


class Forwards:
    """The forwards that clients asked for: our id for each, and that of the slirp4netns of now."""

    def __init__(self) -> None:
        self._next = 1
        self._arguments: dict[int, dict[str, Any]] = {}
        self._theirs: dict[int, int] = {}

    def lost(self) -> None:
        """slirp4netns has ended, and with it all forwards."""
        self._theirs.clear()

    def missing(self) -> list[int]:
        """Those that have to be put back."""
        return [number for number in self._arguments if number not in self._theirs]

    def put_back(self, behind: Behind) -> list[str]:
        """Put back what is missing; what failed, in words. Raises OSError when nobody answers."""
        failed = []
        for number in self.missing():
            arguments = self._arguments[number]
            try:
                self._theirs[number] = _id_of(behind.ask("add_hostfwd", arguments))
            except Refused as error:
                failed.append(
                    f"{arguments['proto']} {arguments['host_addr']}:{arguments['host_port']}: "
                    f"{error}"
                )
        return failed

    def answer(self, request: dict[str, Any], behind: Behind) -> dict[str, Any]:
        """Do what is asked. Raises Refused, and OSError when slirp4netns gives no answer."""
        execute = request.get("execute")
        if not isinstance(execute, str):
            raise Refused("bad request: no execute found")
        arguments = request.get("arguments")
        if not isinstance(arguments, dict):
            arguments = {}
        if execute == "add_hostfwd":
            return self._add(_forward(arguments), behind)
        if execute == "list_hostfwd":
            return self._list(behind)
        if execute == "remove_hostfwd":
            return self._remove(arguments.get("id"), behind)
        raise Refused("bad request: unknown execute")

    def _add(self, arguments: dict[str, Any], behind: Behind) -> dict[str, Any]:
        theirs = _id_of(behind.ask("add_hostfwd", arguments))
        number, self._next = self._next, self._next + 1
        self._arguments[number], self._theirs[number] = arguments, theirs
        return {"return": {"id": number}}

    def _list(self, behind: Behind) -> dict[str, Any]:
        ours = {theirs: number for number, theirs in self._theirs.items()}
        entries = behind.ask("list_hostfwd", {}).get("entries")
        if not isinstance(entries, list):
            raise OSError("slirp4netns answered without entries")
        return {
            "entries": [
                {**one, "id": ours[one["id"]]}
                for one in entries
                if isinstance(one, dict) and isinstance(one.get("id"), int) and one["id"] in ours
            ]
        }

    def _remove(self, number: object, behind: Behind) -> dict[str, Any]:
        if isinstance(number, float):
            number = int(number) if number.is_integer() else None
        if not isinstance(number, int) or number not in self._arguments:
            raise Refused("bad request: remove_hostfwd: bad arguments.id")
        if number in self._theirs:
            behind.ask("remove_hostfwd", {"id": self._theirs[number]})
            del self._theirs[number]
        del self._arguments[number]
        return {"return": {}}


def _id_of(reply: dict[str, Any]) -> int:
    try:
        return int(reply["return"]["id"])
    except (KeyError, TypeError, ValueError) as error:
        raise OSError("slirp4netns answered without an id") from error


def _forward(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of add_hostfwd, checked in the original's order. Raises Refused."""

    def bad(name: str) -> Refused:
        return Refused(f"bad request: add_hostfwd: bad arguments.{name}")

    found: dict[str, Any] = {}
    if arguments.get("proto") not in ("tcp", "udp"):
        raise bad("proto")
    found["proto"] = arguments["proto"]
    for address, port in (("host_addr", "host_port"), ("guest_addr", "guest_port")):
        text = arguments.get(address)
        if not isinstance(text, str) or not text:
            text = "0.0.0.0" if address == "host_addr" else ""
        if text:
            try:
                socket.inet_pton(socket.AF_INET, text)
            except (OSError, ValueError):
                raise bad(address) from None
        found[address] = text
        number = arguments.get(port)
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise bad(port)
        if not 1 <= number < 65536:  # also refuses NaN
            raise bad(port)
        found[port] = int(number)
    return found


class _Client:
    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.data = bytearray()
        self.reply = b""
        self.request: dict[str, Any] | None = None
        self.tries = 0
        self.until = time.monotonic() + _CLIENT_SECONDS


class Front:
    """The socket that clients see."""

    def __init__(self, path: str) -> None:
        """Bind it, in place of what is there, as the original does. Raises OSError."""
        self.path = path
        self.forwards = Forwards()
        self._clients: dict[int, _Client] = {}
        self._listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        try:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            self._listener.bind(path)
            self._listener.listen(socket.SOMAXCONN)
            info = os.stat(path)
        except BaseException:
            self._listener.close()
            raise
        self._identity = (info.st_dev, info.st_ino)

    def register(self, events: dict[int, int]) -> None:
        """Add the descriptors to wait for, and what for, as poll(2) has it."""
        events[self._listener.fileno()] = select.POLLIN
        for number, client in self._clients.items():
            # One whose request waits for slirp4netns has nothing to say meanwhile.
            if client.reply or client.request is None:
                events[number] = select.POLLOUT if client.reply else select.POLLIN

    def seconds(self) -> float | None:
        """When to come back though nothing is readable."""
        if not self._clients:
            return None
        first = min(client.until for client in self._clients.values())
        return max(0.0, first - time.monotonic())

    def handle(self, ready: set[int], behind: Behind | None) -> bool:
        """Serve who is ready. Without behind requests wait; False when it gave no answer."""
        if self._listener.fileno() in ready:
            self._accept()
        for number in ready & self._clients.keys():
            client = self._clients[number]
            try:
                self._progress(client)
            except BlockingIOError:
                pass  # a new one with the number of another that was ready
            except OSError:
                self._drop(client)
        answered = True
        for client in list(self._clients.values()):
            if client.request is not None and not client.reply and behind is not None:
                answered = self._serve(client, behind) and answered
        now = time.monotonic()
        for client in list(self._clients.values()):
            if now > client.until:
                self._late(client)
        return answered

    def _accept(self) -> None:
        for _ in range(_MAX_CLIENTS):
            try:
                channel, _ = self._listener.accept()
            except OSError as error:
                # Without a free descriptor it would stay readable: the oldest has to go.
                if error.errno in (errno.EMFILE, errno.ENFILE) and self._clients:
                    self._drop(next(iter(self._clients.values())))
                    continue
                return  # nobody any more
            channel.setblocking(False)
            if len(self._clients) >= _MAX_CLIENTS:
                self._drop(next(iter(self._clients.values())))
            self._clients[channel.fileno()] = _Client(channel)

    def _progress(self, client: _Client) -> None:
        if client.reply:
            sent = client.channel.send(client.reply)
            client.reply = client.reply[sent:]
            if not client.reply:
                self._drop(client)
            return
        # All that is there: closing with something unread would cost the client our reply.
        chunk = client.channel.recv(65536)
        client.data += chunk
        if not chunk and not client.data:
            self._drop(client)
        elif len(client.data) > _MAX_REQUEST:
            self._reply(client, _error("bad request: too large message"))
        else:
            self._understand(client, complete=not chunk)

    def _understand(self, client: _Client, *, complete: bool) -> None:
        text = ""
        try:
            text = client.data.decode().lstrip()
            request, _ = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError):
            # It may be the first half; but then of an object.
            if complete or (text and not text.startswith("{")):
                self._reply(client, _error("bad request: cannot parse JSON"))
            return
        if not isinstance(request, dict):
            self._reply(client, _error("bad request: json_object() failed"))
            return
        client.request = request

    def _serve(self, client: _Client, behind: Behind) -> bool:
        assert client.request is not None
        client.tries += 1
        try:
            reply = self.forwards.answer(client.request, behind)
        except Refused as error:
            reply = _error(str(error))
        except OSError as error:
            if client.tries == 1:
                return False  # it is about to end, and the next one will be asked again
            reply = _error(f"slirp4netns gave no answer: {error}")
        self._reply(client, reply)
        return True

    def _late(self, client: _Client) -> None:
        if client.request is not None and not client.reply:
            self._reply(client, _error("slirp4netns is not running: it is being restarted"))
        elif client.data and not client.reply:
            self._reply(client, _error("bad request: cannot parse JSON"))
        else:
            self._drop(client)

    def _reply(self, client: _Client, document: dict[str, Any]) -> None:
        # As parson prints it, without spaces.
        client.reply = json.dumps(document, separators=(",", ":")).encode()
        client.until = time.monotonic() + _CLIENT_SECONDS
        try:
            self._progress(client)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        self._clients.pop(client.channel.fileno(), None)
        client.channel.close()

    def close(self) -> None:
        """Close it, and remove the file unless it is another one by now."""
        for client in list(self._clients.values()):
            self._drop(client)
        self._listener.close()
        try:
            info = os.stat(self.path)
            if (info.st_dev, info.st_ino) == self._identity:
                os.unlink(self.path)
        except OSError:
            pass


def _error(text: str) -> dict[str, Any]:
    return {"error": {"desc": text}}
