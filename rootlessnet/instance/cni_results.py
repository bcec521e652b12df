"""CNI results keep the instance: podman 3's rule for its rootless namespace.

Every attachment to a CNI network has a file in the instance's /var/lib/cni/results, whichever
program made it, and whether or not that program has a lease. The last one gone, the instance may
go. A file of a container that ended without DEL stays until somebody tears it down, or until
`rootlessnet down --force`.
"""

from __future__ import annotations

import os

from rootlessnet.instance import state
from rootlessnet.kernel import inotify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.instance.paths import Instance

_MASK = inotify.IN_DELETE | inotify.IN_MOVED_FROM | inotify.IN_DELETE_SELF | inotify.IN_MOVE_SELF


def directory(instance: Instance) -> str:
    """Where they are, seen from the host."""
    return f"{instance.path(state.ROOT)}/var/lib/cni/results"


def names(instance: Instance) -> list[str]:
    """The files that keep the instance; one with a dot, of an ADD that has not ended, does not."""
    try:
        return [name for name in os.listdir(directory(instance)) if not name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def watch(instance: Instance) -> list[int]:
    """While results keep the instance, a descriptor that is readable when one goes; the caller owns
    it."""
    if not names(instance):
        return []
    watcher = inotify.Watcher()
    watcher.add(directory(instance), _MASK)
    if watcher.fd < 0:
        # No more watches for this user: the next command that ends will make us look again.
        return [os.eventfd(0, os.EFD_CLOEXEC)]
    if names(instance):
        return [watcher.fd]
    # The last one went before we watched.
    watcher.close()
    return []


def clear(instance: Instance) -> None:
    """Forget all of them."""
    for name in names(instance):
        try:
            os.unlink(f"{directory(instance)}/{name}")
        except OSError:
            continue  # what cannot be removed goes with the directory
