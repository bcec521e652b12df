"""A network namespace to work in, and carrying a link from one to another."""

from __future__ import annotations

import errno
import os

from rootlessnet.devices.links import Links
from rootlessnet.devices.netlink import LinkError
from rootlessnet.kernel import netns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.devices.links import Link


NOT_OURS = "a device moves only between network namespaces that our user namespace owns"
"""What EPERM means here."""


class Place:
    """A network namespace: its descriptor, which it owns from now on, and its links."""

    def __init__(self, fd: int, *, is_own: bool = False) -> None:
        self.fd = fd
        try:
            self.links = Links(None if is_own else fd)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def own(cls) -> Place:
        """The network namespace of the calling thread."""
        return cls(netns.open_own(), is_own=True)

    def close(self) -> None:
        """Close socket and descriptor."""
        self.links.close()
        os.close(self.fd)

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def sysctl(self, name: str, value: str) -> None:
        """Set net/`name` of this namespace; raises OSError."""

        def write() -> None:
            # /proc/sys/net shows the namespace of the thread that looks it up.
            path = f"/proc/sys/net/{name}"
            with open(path, "rb", buffering=0) as file:
                if file.read(256).strip() == value.encode():
                    return
            with open(path, "wb", buffering=0) as file:
                file.write(value.encode())

        netns.inside(self.fd, write)


class Snapshot:
    """What a move takes away from a link, to give it back.

    Taken before the link goes down: an interface that is down has no global IPv6 addresses.
    """

    def __init__(self, links: Links, link: Link) -> None:
        self.link = link
        self.addresses = links.addresses(link.index)
        self.routes: list[Any] = links.routes(link.index)

    def restore(self, links: Links, index: int, alias: str) -> list[OSError]:
        """Give the link its state back as far as possible; returns what failed.

        Addresses come before the link is up, so that none is made up twice; routes need it up.
        """
        failed: list[OSError] = []

        def step(function: Any, *arguments: Any, **options: Any) -> None:
            try:
                function(*arguments, **options)
            except OSError as e:
                failed.append(e)

        if self.link.master:
            step(links.set_master, index, self.link.master)
        for address in self.addresses:
            if address.is_temporary:
                continue
            step(links.add_again, index, address, label=True, lifetime=True)
        if self.link.is_up:
            step(links.set_up, index)
            for route in self.routes:
                step(links.add_route_again, index, route)
        # Last: as long as it stands, the device is known as one on its way.
        step(links.set_alias, index, alias)
        return failed


class CameBack(LinkError):
    """The link was away for a moment: its name is the old one, its state is lost."""


def carry(link: Link, source: Place, target: Place, name: str) -> Link:
    """Move a link and rename it; returns it as it is there: down and without addresses.

    When this raises LinkError, the link is in its source still; after CameBack it is there again.
    """
    try:
        source.links.move(link.index, target.fd, name)
    except LinkError as e:
        if e.errno == errno.EEXIST and source.links.get_index(link.index) is None:
            # The old name was free in the target and the new one was not: see Links.move.
            stray = target.links.get(link.name)
            if stray is not None:
                target.links.move(stray.index, source.fd, link.name)
            raise CameBack(errno.EEXIST) from e
        raise
    moved = target.links.get(name)
    if moved is None:
        raise LinkError(errno.ENODEV)
    return moved
