"""The network namespace of an attachment: the one it was made in, recognised by its inode number.

A path may come to stand for another namespace: process numbers are used again, names of bind mounts
too. What is deleted there would be a stranger's.
"""

from __future__ import annotations

import os

from rootlessnet.errors import Error
from rootlessnet.kernel import netns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.networks.cni_cache import Endpoint, Entry


def inode(path: str) -> int:
    """The inode number of a network namespace; the only one there, on nsfs. Raises Error."""
    try:
        fd = netns.open_path(path)
    except OSError as error:
        raise Error("open the network namespace") from error
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


def may_be_in(entry: Entry, wanted: int) -> bool:
    """Whether an attachment may be one of this network namespace: libcni does not always say."""
    if entry.inode:
        return entry.inode == wanted
    try:
        return not entry.attachment.netns or inode(entry.attachment.netns) == wanted
    except Error:
        return False


def of(endpoint: Endpoint, entry: Entry | None) -> str:
    """The path of the namespace for DEL: the caller's, else the one of ADD; empty when it is gone,
    or has come to be that of somebody else, whose interface of that name is not ours."""
    known = entry.inode if entry else 0
    for path in (endpoint.netns, entry.attachment.netns if entry and known else ""):
        if not path:
            continue
        try:
            fd = netns.open_path(path)
        except (FileNotFoundError, NotADirectoryError, netns.NotANamespace):
            continue
        except OSError:
            return path  # the plugin will say why
        try:
            if not known or os.fstat(fd).st_ino == known:
                return path
        finally:
            os.close(fd)
    return ""
