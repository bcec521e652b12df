"""The drivers that there are: modules with the same functions, so that callers choose once."""

from __future__ import annotations

from rootlessnet.drivers import pasta, slirp4netns
from rootlessnet.errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from rootlessnet.drivers.options import Options
    from rootlessnet.drivers.target import Features, Target

    class Asking(Protocol):
        """A Probe: asks a program for its features."""

        def cancel(self) -> None: ...
        def finish(self, seconds: float) -> Features: ...

    class Driver(Protocol):
        """What every driver offers; slirp4netns.py explains each."""

        NAME: str
        INSTALL: str
        ESSENTIAL: tuple[str, ...]
        HINTS: tuple[tuple[str, str], ...]
        NOISE: tuple[str, ...]
        FOLLOWS_RESOLV_CONF: bool
        CONGESTION_CONTROL: str

        def Probe(self, path: str) -> Asking: ...
        def find(self, configured: str = "") -> str: ...
        def start(
            self,
            options: Options,
            features: Features,
            target: Target,
            exit_pipe: int,
            log: int,
        ) -> tuple[int, int]: ...
        def is_for(self, words: list[str], target: Target) -> bool: ...


DEFAULT = slirp4netns.NAME
NAMES = (slirp4netns.NAME, pasta.NAME)

TAP = slirp4netns.TAP
"""The interface that every driver makes inside."""


def get(name: str) -> Driver:
    """The driver with this name. Raises KeyError."""
    drivers: dict[str, Driver] = {slirp4netns.NAME: slirp4netns, pasta.NAME: pasta}
    return drivers[name]


def choose(requested: str, configured: str, source: str) -> str:
    """The name of the driver: as requested with --driver, else as configured in the file source by
    containers.conf's default_rootless_network_cmd, else the default. Raises Error."""
    if requested and requested not in NAMES:
        raise Error(f"--driver {requested}: unknown driver", hint=f"drivers are {', '.join(NAMES)}")
    if not requested and configured and configured not in NAMES:
        raise Error(
            f'read {source}: invalid rootless network command "{configured}"',
            hint=f"default_rootless_network_cmd may be one of {', '.join(NAMES)}",
        )
    return requested or configured or DEFAULT
