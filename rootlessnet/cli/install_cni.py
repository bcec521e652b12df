"""rootlessnet install-cni: make the CNI plugin known to runtimes, under the reference's name."""

from __future__ import annotations

import os
import sys

from rootlessnet.cli import arguments
from rootlessnet.errors import Error

OPTIONS = (
    *arguments.COMMON,
    arguments.Option("force", "replace a host-device that is somebody else's"),
)

WHAT = "Link the CNI plugin into DIR, one of the directories of CNI_PATH."

PLUGIN = "rootlessnet-host-device"
LINK = "host-device"


def main(argv: list[str]) -> int:
    """`rootlessnet install-cni`."""
    given = arguments.read(argv, "install-cni DIR [--force]", WHAT, OPTIONS, least=1, most=1)
    if given is None:
        return 0
    values, (directory,) = given
    install(directory, force="force" in values)
    return 0


def install(directory: str, *, force: bool = False) -> None:
    """Link the plugin into the directory under both its names; done already is done.

    Raises Error.
    """
    target = _find_plugin()
    for name in (PLUGIN, LINK):
        link = os.path.join(directory, name)
        try:
            if os.path.realpath(link) != os.path.realpath(target):
                _link(target, link, force)
        except OSError as e:
            # Without the file names: symlink(2) and rename(2) have two, and the error tells the
            # first, which is the plugin's.
            raise Error(f"install {link}") from OSError(e.errno, e.strerror)


def _link(target: str, link: str, force: bool) -> None:
    try:
        os.symlink(target, link)
    except FileExistsError:
        if not force:
            raise Error(
                f"install {link}: another plugin has that name",
                hint="--force replaces it; in a directory of its own both can be kept",
            ) from None
        # By a rename, so that a runtime finds the one or the other.
        temporary = f"{link}.{os.getpid()}"
        os.symlink(target, temporary)
        try:
            os.rename(temporary, link)
        except OSError:
            os.unlink(temporary)
            raise


def _find_plugin() -> str:
    """The executable that was installed with this program; raises Error."""
    from rootlessnet.kernel import spawn

    beside = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), PLUGIN)
    in_environment = os.path.join(sys.prefix, "bin", PLUGIN)
    for candidate in (beside, in_environment):
        if os.access(candidate, os.X_OK):
            return candidate
    found = spawn.find(PLUGIN)
    if found is None:
        raise Error(f"find {PLUGIN}: it is not installed beside this program or on PATH")
    return os.path.abspath(found)
