"""rtnetlink requests: pyroute2's messages over a socket of our own.

pyroute2 encodes and decodes the messages. Its `IPRoute` is not used, and the package's own
`__init__`, which imports everything there is (asyncio, sqlite3, ssl and some hundred modules), is
not run: a whole process that does nothing but import takes three to four times as long with it
(scripts/bench-devices: 148 to 240 ms against 52 to 58).

This is how: the import system makes the empty module `pyroute2` from its spec, which knows
where the submodules are; while it stands in sys.modules the message modules are imported; then it
is taken away, so that a later `import pyroute2` anywhere in the process runs the real one, with
these submodules already loaded. Should a release of pyroute2 need its `__init__` after all
(ImportError or AttributeError), it is imported in full: slower, the same.

Nor does `IPRoute(netns=...)` serve us: it forks for each open, and its sockets cannot be handed
in. Here a socket belongs for life to the namespace in which a short-lived thread opened it.
"""

from __future__ import annotations

import errno
import os
import struct
import sys

from rootlessnet.kernel import netns

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_NEWADDR = 20
RTM_GETADDR = 22
RTM_NEWROUTE = 24
RTM_GETROUTE = 26

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_EXCL = 0x200
NLM_F_DUMP = 0x300
NLM_F_CREATE = 0x400

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12

# The kernel fills at most 32 KiB of a dump at once; one link with many virtual functions may need
# more. What is larger still is found by MSG_TRUNC.
_BUFFER = 1 << 18
_DUMP_ATTEMPTS = 5

_HEADER = struct.Struct("=IHHII")


class LinkError(OSError):
    """The kernel refused a request; `explanation` is its own text, if it gave one."""

    def __init__(self, number: int, explanation: str = "") -> None:
        text = os.strerror(number)
        super().__init__(number, f"{text} ({explanation})" if explanation else text)
        self.explanation = explanation


class Messages:
    """pyroute2's message classes, by the names they have there."""

    __slots__ = ("ifaddrmsg", "ifinfmsg", "rtmsg")

    def __init__(self) -> None:
        from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
        from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
        from pyroute2.netlink.rtnl.rtmsg import rtmsg

        self.ifaddrmsg: type[Any] = ifaddrmsg
        self.ifinfmsg: type[Any] = ifinfmsg
        self.rtmsg: type[Any] = rtmsg


_messages: Messages | None = None


def messages() -> Messages:
    """pyroute2's message classes, imported at the first call."""
    global _messages
    if _messages is None:
        _messages = _import_messages()
    return _messages


def _import_messages() -> Messages:
    if "pyroute2" in sys.modules:
        return Messages()
    from importlib import util

    spec = util.find_spec("pyroute2")
    if spec is None:
        raise ModuleNotFoundError("No module named 'pyroute2'", name="pyroute2")
    hollow = util.module_from_spec(spec)
    sys.modules["pyroute2"] = hollow
    try:
        return Messages()
    except (ImportError, AttributeError):
        for name in [name for name in sys.modules if name.startswith("pyroute2.")]:
            del sys.modules[name]
    finally:
        if sys.modules.get("pyroute2") is hollow:
            del sys.modules["pyroute2"]
    return Messages()


class Netlink:
    """A rtnetlink socket in the given network namespace (a descriptor), or in our own; or one that
    `open_socket` made elsewhere, which is ours from then on."""

    def __init__(
        self, namespace: int | None = None, *, socket: socket.socket | None = None
    ) -> None:
        if socket is None:
            socket = open_socket() if namespace is None else netns.inside(namespace, open_socket)
        self._socket = socket
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(self, message: Any, kind: int, flags: int = 0) -> None:
        """Have the kernel do something; raises LinkError."""
        self._send(message, kind, NLM_F_REQUEST | NLM_F_ACK | flags)
        for _ in self._answer():
            pass

    def get(self, message: Any, kind: int) -> Any:
        """The one message that answers a question; raises LinkError."""
        self._send(message, kind, NLM_F_REQUEST | NLM_F_ACK)
        answers = [self._decode(message, data) for data, _ in self._answer()]
        return answers[0]

    def dump(self, message: Any, kind: int) -> list[Any]:
        """Every object that there is; filtered by the kernel where it can.

        A list that changed while it was read is read again; after five attempts the last one is
        as good as it gets.
        """
        answers: list[Any] = []
        for _ in range(_DUMP_ATTEMPTS):
            again = type(message)()
            again.update(message)
            self._send(again, kind, NLM_F_REQUEST | NLM_F_DUMP)
            interrupted = False
            answers = []
            for data, flags in self._answer():
                interrupted |= bool(flags & NLM_F_DUMP_INTR)
                answers.append(self._decode(message, data))
            if not interrupted:
                break
        return answers

    def _send(self, message: Any, kind: int, flags: int) -> None:
        self._sequence += 1
        message["header"] = {
            "type": kind,
            "flags": flags,
            "sequence_number": self._sequence,
            "pid": 0,
        }
        message.encode()
        self._socket.send(message.data)

    @staticmethod
    def _decode(question: Any, data: bytes) -> Any:
        answer = type(question)(data)
        answer.decode()
        return answer

    def _answer(self) -> list[tuple[bytes, int]]:
        """Every message of the answer to the last request, with its flags."""
        import socket

        found: list[tuple[bytes, int]] = []
        while True:
            data, _, received, _ = self._socket.recvmsg(_BUFFER)
            if received & socket.MSG_TRUNC:
                raise LinkError(errno.EMSGSIZE)
            offset = 0
            while offset + _HEADER.size <= len(data):
                length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
                part = data[offset : offset + length]
                offset += (length + 3) & ~3
                if sequence != self._sequence:
                    continue
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    # Both begin with an error number; DONE may be without one on old kernels.
                    number = struct.unpack_from("=i", part, 16)[0] if length >= 20 else 0
                    if number:
                        raise LinkError(-number, _explanation(part, kind, flags))
                    return found
                found.append((part, flags))


def open_socket() -> socket.socket:
    """A socket for `Netlink`, in the network namespace of the calling thread."""
    import socket

    family = socket.AF_NETLINK
    opened = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        opened.bind((0, 0))
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
            try:
                opened.setsockopt(_SOL_NETLINK, option, 1)
            except OSError as e:
                if e.errno != errno.ENOPROTOOPT:
                    raise
    except BaseException:
        opened.close()
        raise
    return opened


def _explanation(part: bytes, kind: int, flags: int) -> str:
    """The kernel's own words for an error: NLMSGERR_ATTR_MSG of an extended acknowledgement."""
    if not flags & _NLM_F_ACK_TLVS:
        return ""
    offset = 20
    if kind == _NLMSG_ERROR:
        # The header of the request follows, and all of the request unless the answer is capped.
        request = struct.unpack_from("=I", part, 20)[0]
        offset += 16 if flags & _NLM_F_CAPPED else (request + 3) & ~3
    while offset + 4 <= len(part):
        length, attribute = struct.unpack_from("=HH", part, offset)
        if length < 4:
            break
        if attribute & 0x3FFF == _NLMSGERR_ATTR_MSG:
            text = part[offset + 4 : offset + length].rstrip(b"\0")
            return text.decode(errors="replace").rstrip(".")
        offset += (length + 3) & ~3
    return ""
