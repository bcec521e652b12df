"""statfs(2), for the one field that os.statvfs leaves out."""

from __future__ import annotations

import os


def filesystem_type(path: str) -> int:
    """The magic number of the file system that the file is on; raises OSError."""
    from ctypes import CDLL, c_char_p, c_long, c_void_p, get_errno

    function = CDLL(None, use_errno=True).statfs
    function.argtypes = (c_char_p, c_void_p)
    # struct statfs is 120 bytes and begins with f_type, a long on every architecture but s390.
    buffer = (c_long * 64)()
    if function(os.fsencode(path), buffer) < 0:
        number = get_errno()
        raise OSError(number, os.strerror(number), path)
    return int(buffer[0])
