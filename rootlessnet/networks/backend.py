"""Which of podman's two network backends counts: the same one that podman 4.3 chooses.

1. [network] network_backend in containers.conf. The file below is then neither read nor written.
2. <graphroot>/defaultNetworkBackend: `netavark` or `cni`, without a newline; anything else is an
   error, because a guess could part containers from their networks.
3. cni, if netavark is in none of podman's helper directories, or if there are containers, images
   that are not read-only, or networks in CNI's directory beside the default one: then an older
   podman was here. Else netavark.

What step 3 found is written to that file, so that it stays the same from then on.
"""

from __future__ import annotations

import os

from rootlessnet.config import containers
from rootlessnet.config import network as config
from rootlessnet.errors import Error, reason, warn
from rootlessnet.kernel import files as kernel_files
from rootlessnet.networks import cni, files, gojson, netavark, storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

MODULES: dict[str, ModuleType] = {netavark.NAME: netavark, cni.NAME: cni}

_SENTINEL = "defaultNetworkBackend"
_DEFAULT = "failed to get default network backend"


class Choice:
    """A backend, why it is that one, and the file that says so or, with is_new, will say so."""

    __slots__ = ("is_new", "name", "reason", "source")

    def __init__(self, name: str, reason: str, source: str, *, is_new: bool = False) -> None:
        self.name = name
        self.reason = reason
        self.source = source
        self.is_new = is_new

    @property
    def module(self) -> ModuleType:
        """The backend: rootlessnet.networks.netavark or .cni, which have the same functions."""
        return MODULES[self.name]

    def record(self) -> None:
        """Write a new choice down for podman and for us; that it fails is no more than a warning,
        as it is for podman."""
        if not self.is_new:
            return
        try:
            files.make_directory(os.path.dirname(self.source))
            files.replace(self.source, self.name.encode())
        except OSError as error:
            warn(f"could not write network backend to file: {reason(error)}")

    def document(self) -> dict[str, Any]:
        """For `network backend --json`."""
        return {
            "backend": self.name,
            "reason": self.reason,
            "source": self.source,
            "network_dir": self.module.directory(),
            "program": config.find_helper(netavark.NAME) if self.name == netavark.NAME else "",
        }


def choose() -> Choice:
    """The backend. Nothing is written. Raises Error where podman would end."""
    name, source = config.backend()
    if name and name not in MODULES:
        raise Error(
            f"unsupported network backend {gojson.quote(name)}, "
            "check network_backend in containers.conf"
        )
    choice = Choice(name, f"network_backend in {source}", source) if name else _remembered()
    choice.module.check_usable()
    return choice


def _remembered() -> Choice:
    graphroot = containers.graphroot()[0]
    path = f"{graphroot}/{_SENTINEL}"
    try:
        name = kernel_files.read(path, 4096, follow=True).decode(errors="replace")
    except FileNotFoundError:
        try:
            name, why = _default(graphroot)
        except Error as error:
            raise Error(_DEFAULT) from error
        return Choice(name, why, path, is_new=True)
    except OSError as error:
        raise Error(f"{_DEFAULT}: could not read network backend value") from error
    if name not in MODULES:
        raise Error(
            f"{_DEFAULT}: unknown network backend value {gojson.quote(name)} in "
            f"{gojson.quote(path)}",
            hint=f"it has to be netavark or cni, without a newline: printf netavark > {path}",
        )
    return Choice(name, f"recorded in {path}", path)


def _default(graphroot: str) -> tuple[str, str]:
    """The backend of a storage in which none is recorded, and why."""
    if not config.find_helper(netavark.NAME):
        return cni.NAME, f"netavark is not in {' '.join(config.helper_dirs())}"
    for kind, is_sign in (("containers", _is_container), ("images", _is_own_image)):
        for path in storage.files(graphroot, kind):
            if any(map(is_sign, storage.records(path))):
                return cni.NAME, f"there are {kind} from before: {path}"
    networks = cni.load(cni.directory())
    networks.setdefault(config.default_network(), cni.default())
    if len(networks) > 1:
        return cni.NAME, f"there are CNI networks from before: {cni.directory()}"
    return netavark.NAME, "netavark is there, and nothing from before it"


def _is_container(_: Any) -> bool:
    return True


def _is_own_image(image: Any) -> bool:
    return not (isinstance(image, dict) and image.get("readonly") is True)
