"""The log: a file of bounded size that supervisor and driver append to, mirrored to the journal.

The driver writes to the file itself, so that its last words are there when it dies and it never
waits for anybody. The supervisor hears of new lines by inotify, passes them on, and cuts the file
when it has grown.
"""

from __future__ import annotations

import os
import time

from rootlessnet.kernel import files, inotify
from rootlessnet.systemd import journal

MAX_BYTES = 256 * 1024
_KEEP_BYTES = 64 * 1024
_SUPERVISOR = " supervisor: "


def say(text: str) -> None:
    """A line of the supervisor, whose stderr is the log."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    try:
        os.write(2, f"{stamp}{_SUPERVISOR}{text}\n".encode(errors="surrogateescape"))
    except OSError:
        pass


class Mirror:
    """Passes new lines on to the journal and bounds the file; `fd` is to be polled."""

    def __init__(self, path: str, instance: str) -> None:
        self.path = path
        self._watcher = inotify.Watcher()
        self._watcher.add(path, inotify.IN_MODIFY)
        self._journal = journal.Journal(instance) if journal.available() else None
        self._offset = 0
        self._rest = b""

    @property
    def fd(self) -> int:
        return self._watcher.fd

    def skip(self) -> None:
        """Pass over what is in the file by now: a predecessor has passed it on."""
        self._offset = os.stat(self.path).st_size

    def changed(self) -> None:
        """Pass on what is new, and cut the file when it is too long."""
        self._watcher.read()
        try:
            fd = files.open_regular(self.path, os.O_RDWR)
        except OSError:
            # Somebody has removed it, or put something else in its place: no more lines will come.
            self._watcher.close()
            return
        try:
            data = os.pread(fd, MAX_BYTES, self._offset)
            self._offset += len(data)
            *lines, rest = (self._rest + data).split(b"\n")
            self._rest = rest[-MAX_BYTES:]
            if self._journal:
                for line in lines:
                    # The journal has a time of its own.
                    text = line.decode(errors="replace")
                    if text.strip():
                        self._journal.send(text.partition(_SUPERVISOR)[2] or text)
            if self._offset > MAX_BYTES:
                tail = os.pread(fd, _KEEP_BYTES, self._offset - _KEEP_BYTES)
                os.ftruncate(fd, 0)
                os.pwrite(fd, tail.partition(b"\n")[2], 0)
                self._offset = os.fstat(fd).st_size
                self._watcher.read()
        finally:
            os.close(fd)
