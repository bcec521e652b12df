"""A D-Bus connection for a handful of calls: blocking, with one deadline for everything.

dbus-next turns messages into bytes and back. Its own connections are left out: they need asyncio
(80 of its 90 ms of import), send a uid that is refused inside a user namespace, and spin when the
bus hangs up during authentication. Sockets and the handshake are here.

Runs in a short-lived child of the supervisor, so what it imports costs no memory for long, and a
hang can be ended from outside.
"""

from __future__ import annotations

import os
import sys
import time

from rootlessnet.errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
_MAX_LINE = 4096
_SHOWN = 60


def _load() -> Any:
    """dbus_next's marshalling modules, without the package's __init__ (asyncio, GLib, XML)."""
    if "dbus_next" not in sys.modules:
        # Not importlib.util.find_spec, nor urllib.parse below: importing those costs 4 ms.
        from importlib.machinery import PathFinder
        from types import ModuleType

        spec = PathFinder.find_spec("dbus_next")
        if spec is None:
            raise Error("talk D-Bus: the Python package dbus-next is missing")
        package = ModuleType("dbus_next")
        package.__path__ = list(spec.submodule_search_locations or [])
        sys.modules["dbus_next"] = package
    # First errors: it and message import each other, and only this order works.
    import dbus_next.errors  # noqa: F401
    from dbus_next import message

    return message


def variant(signature: str, value: object) -> Any:
    """A D-Bus variant."""
    _load()
    from dbus_next.signature import Variant

    return Variant(signature, value)


def user_address() -> str:
    """Where the user's bus is: DBUS_SESSION_BUS_ADDRESS, else the socket in XDG_RUNTIME_DIR."""
    address = os.environ.get("DBUS_SESSION_BUS_ADDRESS", "")
    if address:
        return address
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return f"unix:path={runtime}/bus"


SYSTEM_ADDRESS = "unix:path=/run/dbus/system_bus_socket"


class Connection:
    """Connected and named on the bus; raises Error or OSError, TimeoutError at the deadline."""

    def __init__(self, address: str, seconds: float) -> None:
        import socket

        self._message = _load()
        self._deadline = time.monotonic() + seconds
        self._serial = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(seconds)
        self._socket.connect(socket_path(address))
        self._authenticate()
        self._stream = self._socket.makefile("rb")
        self.call(*_BUS, "Hello")

    def _left(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer from the bus in time")
        self._socket.settimeout(left)

    def _authenticate(self) -> None:
        # Without an initial response the bus takes the uid from the socket's credentials. The uid
        # that we know ourselves by inside a user namespace (0) would be refused.
        self._socket.sendall(b"\0AUTH EXTERNAL\r\n")
        self._answer(b"DATA")
        self._socket.sendall(b"DATA\r\n")
        self._answer(b"OK ")
        self._socket.sendall(b"BEGIN\r\n")

    def _answer(self, expected: bytes) -> None:
        line = b""
        while not line.endswith(b"\r\n"):
            self._left()
            byte = self._socket.recv(1)
            if not byte or len(line) > _MAX_LINE:
                raise Error("authenticate to the bus: it hung up")
            line += byte
        if not line.startswith(expected):
            raise Error(f"authenticate to the bus: it said {line.rstrip()[:_SHOWN]!r}")

    def call(
        self, name: str, path: str, interface: str, member: str, signature: str = "", *body: object
    ) -> list[Any]:
        """Call a method and return the reply's values. Raises Error with the bus's words."""
        self._serial += 1
        message = self._message.Message(
            destination=name,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(body),
            serial=self._serial,
        )
        self._left()
        self._socket.sendall(message._marshall(False))
        while True:
            reply = self._read()
            if reply.reply_serial != self._serial:
                continue  # a signal: NameAcquired comes unasked
            if reply.error_name:
                text = reply.body[0] if reply.body else ""
                raise BusError(reply.error_name, f"{member}: {text or reply.error_name}")
            return list(reply.body)

    def _read(self) -> Any:
        from dbus_next._private.unmarshaller import Unmarshaller

        self._left()
        try:
            message = Unmarshaller(self._stream).unmarshall()
        except EOFError:
            raise Error("read from the bus: it hung up") from None
        if message is None:
            raise Error("read from the bus: it hung up")
        return message

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


class BusError(Error):
    """A method call failed; name is the D-Bus error name."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


def socket_path(address: str) -> str:
    """The path of the first Unix socket in a D-Bus address; NUL stands first for abstract ones."""
    for part in address.split(";"):
        transport, _, rest = part.partition(":")
        if transport != "unix":
            continue
        values = dict(item.partition("=")[::2] for item in rest.split(","))
        if "path" in values:
            return _unescape(values["path"])
        if "abstract" in values:
            return "\0" + _unescape(values["abstract"])
    raise Error(f"talk D-Bus: no Unix socket in {address}")


def _unescape(text: str) -> str:
    """A value of a D-Bus address: bytes that are not plain stand there as %XX."""
    first, *rest = os.fsencode(text).split(b"%")
    try:
        plain = first + b"".join(bytes.fromhex(part[:2].decode()) + part[2:] for part in rest)
    except ValueError:
        raise Error(f"talk D-Bus: {text} in the address is not escaped as %XX") from None
    return os.fsdecode(plain)
