"""A device on its way between the host and a container, safe against being killed at any point.

A process that dies must not take the device with it, nor leave it where nobody looks. So there is
no temporary namespace: one that has lost its last process destroys the virtual devices in it, and
sends the others to the machine's first namespace, which need not be ours. Nor is there a journal
on disk to disagree with the kernel. The device itself says that it is on its way, in its alias,
and it is always in one of two namespaces, the host's and the container's:

    rootlessnet:moving:<up|down>:<name on the host>:<interface>:<container>

In:  1. the mark is set, on the host
     2. the device moves into the container and gets its new name, in one request
     3. it is brought up; then IPAM, addresses and routes, and the result is printed
     4. the alias becomes the name on the host: the record that DEL goes by, the reference's too

Out: 1. the mark is set, in the container; then IPAM releases the addresses
     2. the device goes down and gets its old name, still in the container, so that the host (udev,
        NetworkManager) sees it come back under its own name at once; where that name is taken in
        the container, the kernel renames it on arrival
     3. it moves to the host
     4. it is brought up, if the mark says so (an ADD was interrupted); the mark is removed

One request to the kernel is done whole or not at all for a process that is killed meanwhile. So a
device killed on its way is found by its mark, in the host or in the container, under any name:

* DEL takes a marked device out of the container like one without a mark, and clears a mark that
  is left on the host.
* ADD looks into the container when the device is not on the host. A marked one is taken out first,
  and what IPAM gave it is released; then ADD begins from the start.

A mark is ours when container and interface are, or when the device is the one the configuration
means. What a killed ADD cannot give back are the addresses that the device had on the host.
"""

from __future__ import annotations

import errno
import os

from rootlessnet.devices import names
from rootlessnet.devices.cni_plugin import INTERNAL, CniError, Request, go_text, quote
from rootlessnet.devices.place import NOT_OURS, Place, Snapshot, carry
from rootlessnet.kernel import netns
from rootlessnet.kernel.trace import trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.devices.links import Link
    from rootlessnet.devices.selector import Selector

_PREFIX = "rootlessnet:moving:"
# An alias holds 255 bytes; of a longer container id the beginning has to do.
_CONTAINER_BYTES = 160


class Mark:
    """What the alias of a device on its way says."""

    __slots__ = ("container", "ifname", "is_up", "name")

    def __init__(self, is_up: bool, name: str, ifname: str, container: str) -> None:
        self.is_up = is_up
        self.name = name
        self.ifname = ifname
        self.container = container[:_CONTAINER_BYTES]

    def __str__(self) -> str:
        state = "up" if self.is_up else "down"
        return f"{_PREFIX}{state}:{self.name}:{self.ifname}:{self.container}"

    @classmethod
    def of(cls, link: Link) -> Mark | None:
        """The mark of a link, if it is on its way."""
        # No part can have a colon in it: neither names of devices nor ids of containers may.
        parts = link.alias.removeprefix(_PREFIX).split(":")
        if not link.alias.startswith(_PREFIX) or len(parts) != 4 or not names.is_plain(parts[1]):
            return None
        return cls(parts[0] == "up", parts[1], parts[2], parts[3])

    def belongs_to(self, request: Request) -> bool:
        """Whether this attachment set the mark."""
        ours = request.container[:_CONTAINER_BYTES], request.ifname
        return (self.container, self.ifname) == ours


def find_marked(place: Place, request: Request, selector: Selector) -> tuple[Link, Mark] | None:
    """The device of the request, if it is in this namespace and on its way."""
    for link in place.links.all():
        mark = Mark.of(link)
        if mark and (mark.belongs_to(request) or selector.means(link, mark.name)):
            return link, mark
    return None


class Entry:
    """The way of a device into a container, and back again when something fails."""

    def __init__(self, host: Place, container: Place, link: Link, request: Request) -> None:
        self._host = host
        self._container = container
        self._request = request
        try:
            self._snapshot = Snapshot(host.links, link)
        except OSError as e:
            raise CniError(INTERNAL, f"failed to find host device: {go_text(e)}") from e
        self._mark = Mark(link.is_up, link.name, request.ifname, request.container)
        # A mark on a device that is on the host is from an ADD that was killed: not to be kept.
        self._alias = "" if Mark.of(link) else link.alias
        self._moved: Link | None = None

    def go(self) -> Link:
        """Move the device in and bring it up; raises CniError, with all undone."""
        link = self._snapshot.link
        where = f"{quote(self._request.ifname)} (host: {quote(link.name)})"
        attempt = f"failed to move {where} to container NS"
        try:
            self._host.links.set_alias(link.index, str(self._mark))
            trace("add.marked")
            moved = carry(link, self._host, self._container, self._request.ifname)
            self._moved = moved
            trace("add.moved")
            attempt = f"failed to set {quote(self._request.ifname)} up"
            self._container.links.set_up(moved.index)
            trace("add.up")
        except OSError as e:
            self.undo()
            raise CniError(INTERNAL, f"failed to move link {attempt}: {_why(e)}") from e
        except BaseException:
            self.undo()
            raise
        return moved

    def finish(self) -> None:
        """The device has arrived: leave the record for DEL. Raises OSError."""
        assert self._moved is not None
        self._container.links.set_alias(self._moved.index, self._snapshot.link.name)

    def undo(self) -> None:
        """Bring the device back to the host and into the state that it had there.

        What fails is told on stderr, since the reason for all this is what the runtime gets; the
        mark stays then, and DEL tries again.
        """
        name = self._snapshot.link.name
        try:
            here = self._find(self._host) if self._moved is None else None
            if here is None:
                # By its index rather than by the mark, which another ADD for the same device may
                # have overwritten before it lost the race.
                if self._moved is not None:
                    there = self._container.links.get_index(self._moved.index)
                else:
                    there = self._find(self._container)
                if there is None:
                    return
                here = _bring_home(there, self._container, self._host, name)
                trace("undo.moved")
            failed = self._snapshot.restore(self._host.links, here.index, self._alias)
        except OSError as e:
            failed = [e]
        for error in failed:
            os.write(2, f"{name} is not as it was before ADD: {error.strerror}\n".encode())

    def _find(self, place: Place) -> Link | None:
        for link in place.links.all():
            if link.alias == str(self._mark):
                return link
        return None


class Exit:
    """The way of a device out of its container; name is the one that it had on the host."""

    def __init__(
        self, link: Link, name: str, mark: Mark | None, container: Place, host: Place
    ) -> None:
        self._link = link
        self._name = name
        self._mark = mark
        self._container = container
        self._host = host
        self._attempt = f"failed to move {quote(name)} to hostNS"
        try:
            self._snapshot = Snapshot(container.links, link)
        except OSError as e:
            raise CniError(INTERNAL, f"{self._attempt}: {_why(e)}") from e

    def announce(self, request: Request) -> None:
        """Mark the device, unless it is already; from here on a killed DEL can be told.

        Raises CniError, with nothing changed, when the device could not come back to the host.
        """
        is_rename = netns.is_same(self._host.fd, self._container.fd) and self._link.is_named(
            self._name
        )
        if self._host.links.get(self._name) is not None and not is_rename:
            raise CniError(INTERNAL, f"{self._attempt}: file exists")
        if self._mark is None:
            self._mark = Mark(False, self._name, request.ifname, request.container)
            try:
                self._container.links.set_alias(self._link.index, str(self._mark))
            except OSError as e:
                raise CniError(INTERNAL, f"{self._attempt}: {_why(e)}") from e
        trace("del.marked")

    def go(self) -> None:
        """Move the device out.

        When this raises CniError, the device is in the container, as it was.
        """
        assert self._mark is not None
        try:
            back = _bring_home(self._link, self._container, self._host, self._name)
            trace("del.moved")
        except OSError as e:
            _put_back(self._snapshot, self._container)
            raise CniError(INTERNAL, f"{self._attempt}: {_why(e)}") from e
        except BaseException:
            _put_back(self._snapshot, self._container)
            raise
        settle(back, self._host, self._mark)


def settle(link: Link, host: Place, mark: Mark) -> None:
    """End the way of a device that is on the host again; raises CniError."""
    try:
        if mark.is_up:
            host.links.set_up(link.index)
            trace("del.up")
        host.links.set_alias(link.index, "")
    except OSError as e:
        what = f"failed to unset alias of {quote(link.name)}"
        raise CniError(INTERNAL, f"{what}: {_why(e)}") from e
    trace("del.cleared")


def _bring_home(link: Link, container: Place, host: Place, name: str) -> Link:
    """Move a link to the host under this name. Raises OSError, with the link in the container."""
    if link.name != name and container.links.get(name) is None:
        container.links.set_down(link.index)
        trace("del.down")
        container.links.rename(link.index, name)
        trace("del.renamed")
        renamed = container.links.get_index(link.index)
        if renamed is not None:
            link = renamed
    return carry(link, container, host, name)


def _put_back(snapshot: Snapshot, container: Place) -> None:
    """Undo what `_bring_home` did to a link that has not left the container."""
    before = snapshot.link
    links = container.links
    try:
        link = links.get_index(before.index)
        if link is None:
            return
        if link.name != before.name:
            links.set_down(link.index)
            links.rename(link.index, before.name)
        failed = snapshot.restore(links, link.index, before.alias)
    except OSError as e:
        failed = [e]
    for error in failed:
        os.write(2, f"{before.name} is not as it was before DEL: {error.strerror}\n".encode())


def _why(error: OSError) -> str:
    text = go_text(error)
    return f"{text}: {NOT_OURS}" if error.errno in (errno.EPERM, errno.EACCES) else text
