"""Many datagrams at once: received by one system call, and those of the same size sent by one.

What is sent so (UDP_SEGMENT) also goes through the kernel as one, past every hook of netfilter, and
is taken apart at the end of its way. That is what makes it several times as fast as one datagram
after the other.
"""

from __future__ import annotations

import array
import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

MOST = 32
"""Datagrams at once. More would not fit into the queue of a receiver that is not running."""
_SIZE = 65536
_STRIDE = _SIZE + 1408
"""No power of two, or all beginnings would share one place in the processor's cache."""
_MOST_BYTES = 65000
_SOL_UDP, _UDP_SEGMENT = 17, 103
_MSG_DONTWAIT = 0x40
_POLLIN = 1
_CANNOT = (errno.EINVAL, errno.EMSGSIZE, errno.EIO, errno.EOPNOTSUPP, errno.ENOPROTOOPT)


class Bursts:
    """Uses a buffer of 4 MiB, which is somebody else's again after each call."""

    def __init__(self, buffer: bytearray) -> None:
        import ctypes
        from ctypes import (
            Structure,
            c_int,
            c_long,
            c_short,
            c_size_t,
            c_ssize_t,
            c_uint,
            c_uint16,
            c_void_p,
        )

        class Iovec(Structure):
            _fields_ = (("base", c_void_p), ("len", c_size_t))

        class Msghdr(Structure):
            _fields_ = (
                ("name", c_void_p),
                ("namelen", c_uint),
                ("iov", c_void_p),
                ("iovlen", c_size_t),
                ("control", c_void_p),
                ("controllen", c_size_t),
                ("flags", c_int),
            )

        class Mmsghdr(Structure):
            _fields_ = (("hdr", Msghdr), ("len", c_uint))

        class Pollfd(Structure):
            _fields_ = (("fd", c_int), ("events", c_short), ("revents", c_short))

        class Segment(Structure):
            _fields_ = (
                ("len", c_size_t),
                ("level", c_int),
                ("type", c_int),
                ("size", c_uint16),
            )

        self._errno = ctypes.get_errno
        lib = ctypes.CDLL(None, use_errno=True)
        self._recvmmsg = lib.recvmmsg
        self._recvmmsg.argtypes = (c_int, c_void_p, c_uint, c_int, c_void_p)
        self._sendmsg = lib.sendmsg
        self._sendmsg.argtypes = (c_int, c_void_p, c_int)
        self._sendmsg.restype = c_ssize_t

        self._ppoll = lib.ppoll
        self._ppoll.argtypes = (c_void_p, c_size_t, c_void_p, c_void_p)
        self._pollfd = Pollfd(-1, _POLLIN, 0)
        self._timespec = (c_long * 2)()
        self._pollfd_at = ctypes.addressof(self._pollfd)
        self._timespec_at = ctypes.addressof(self._timespec)

        self._view = memoryview(buffer)
        first = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        self._in = (Iovec * MOST)(*[Iovec(first + n * _STRIDE, _SIZE) for n in range(MOST)])
        self._out = (Iovec * MOST)(*[Iovec(first + n * _STRIDE, 0) for n in range(MOST)])
        self._headers = (Mmsghdr * MOST)()
        size = ctypes.sizeof(Iovec)
        for number, header in enumerate(self._headers):
            header.hdr.iov = ctypes.addressof(self._in) + number * size
            header.hdr.iovlen = 1
        self._segment = Segment(Segment.size.offset + 2, _SOL_UDP, _UDP_SEGMENT, 0)
        self._whole = Msghdr(
            control=ctypes.addressof(self._segment), controllen=ctypes.sizeof(self._segment)
        )
        self._headers_at = ctypes.addressof(self._headers)
        self._whole_at = ctypes.addressof(self._whole)
        self._out_at = ctypes.addressof(self._out)
        self._iovec_size = size
        words = memoryview(self._headers).cast("B").cast("I")
        self._received = words[Mmsghdr.len.offset // 4 :: ctypes.sizeof(Mmsghdr) // 4]
        self._lengths = memoryview(self._out).cast("B").cast("L")[1::2]

    def receive(self, sock: _socket.socket) -> list[int]:
        """The sizes of the datagrams that are there, MOST at most. Raises OSError."""
        count = self._recvmmsg(sock.fileno(), self._headers_at, MOST, _MSG_DONTWAIT, None)
        if count < 0:
            raise OSError(self._errno(), "recvmmsg")
        sizes: list[int] = self._received[:count].tolist()
        return sizes

    def wait(self, fd: int, nanoseconds: int) -> None:
        """Until the descriptor can be read, or so long, less than a second. What Python has waits
        for whole milliseconds, or for descriptors of small numbers only."""
        self._pollfd.fd = fd
        self._timespec[1] = nanoseconds
        self._ppoll(self._pollfd_at, 1, self._timespec_at, None)

    def send(self, sock: _socket.socket, sizes: list[int], *, together: bool) -> bool:
        """Send what was received, to whom the socket is connected; what is not taken is lost.
        together: those of one size at once; False is returned when that cannot be."""
        number, count = 0, len(sizes)
        while number < count:
            size = sizes[number]
            end = number + 1
            if together and size:
                most = min(count, number + _MOST_BYTES // size)
                while end < most and sizes[end] == size:
                    end += 1
            if end - number > 1:
                code = self._send_whole(sock, number, end, size)
                if code in _CANNOT:
                    together = False
                    continue
            else:
                start = number * _STRIDE
                try:
                    sock.send(self._view[start : start + size])
                except OSError:
                    pass  # refused before, or there is no room: lost
            number = end
        return together

    def _send_whole(self, sock: _socket.socket, start: int, end: int, size: int) -> int:
        count = end - start
        self._lengths[start:end] = array.array("L", (size,)) * count
        self._segment.size = size
        self._whole.iov = self._out_at + start * self._iovec_size
        self._whole.iovlen = count
        for _ in range(2):
            if self._sendmsg(sock.fileno(), self._whole_at, _MSG_DONTWAIT) >= 0:
                return 0
            code: int = self._errno()
            if code != errno.ECONNREFUSED:
                return code
        return 0  # an earlier one was refused, and this one too
