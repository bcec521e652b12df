"""Give a network device to another network namespace, whole or not at all.

The device keeps its MTU and MAC (the kernel sees to that) and every permanent global address,
IPv4 and IPv6. Link-local, host-scope and dynamic ones stay behind: they say something about the
old surroundings. It is up afterwards. When any step fails, the device is back under its name, up
if it was up, with all its addresses, routes and its master.

Everything is checked first. Then, in this order:

1. note what the move will lose,
2. move and rename in one request,
3. add the addresses,
4. bring it up.
"""

from __future__ import annotations

import errno

from rootlessnet.devices import names
from rootlessnet.devices.netlink import LinkError
from rootlessnet.devices.place import NOT_OURS, CameBack, Place, Snapshot, carry
from rootlessnet.errors import Error, warn
from rootlessnet.kernel import netns
from rootlessnet.kernel.trace import trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.devices.links import Link

_IFF_LOOPBACK = 0x8


def open_target(path: str) -> Place:
    """The network namespace with this path, or this name under /run/netns; raises Error."""
    if "/" not in path:
        path = f"/run/netns/{path}"
    try:
        return Place(netns.open_path(path))
    except PermissionError as e:
        raise Error(f"open the network namespace {path}") from _why(e)
    except OSError as e:
        raise Error("open the network namespace") from e


class Move:
    """One device on its way: checked when made, moved by `run`, brought back by `undo`.

    Making it raises Error when the move cannot succeed; nothing has changed then.
    """

    def __init__(self, source: Place, target: Place, name: str, new_name: str = "") -> None:
        self._source = source
        self._target = target
        self._wanted = new_name or name
        self._snapshot: Snapshot | None = None
        self._moved: Link | None = None
        self.attempt = f"move {name}"
        for each, bad in (
            (name, names.problem(name)),
            (new_name, names.pattern_problem(new_name) if new_name else ""),
        ):
            if bad:
                raise Error(f"{self.attempt}: the name {each!r} is not valid: {bad}")
        link = source.links.get(name)
        if link is None:
            raise Error(f"{self.attempt}: there is no such device")
        if netns.is_same(source.fd, target.fd):
            raise Error(f"{self.attempt}: it is in that network namespace already")
        if link.flags & _IFF_LOOPBACK or link.kind == "bridge":
            raise Error(f"{self.attempt}: {_immovable(link)}")
        if not names.is_pattern(self._wanted) and target.links.get(self._wanted) is not None:
            raise Error(f"{self.attempt}: the name {self._wanted} is taken there")
        self._link = link

    def run(self) -> str:
        """Move the device; returns its name there. Raises Error, with everything undone."""
        self._snapshot = Snapshot(self._source.links, self._link)
        try:
            self._moved = self._carry()
            trace("device:moved")
            self._set_up(self._moved)
        except (LinkError, OSError, Error) as e:
            reason = self._explain(e)
            self.undo()
            raise Error(self.attempt) from reason
        except BaseException:
            self.undo()
            raise
        return self._moved.name

    def undo(self) -> None:
        """Bring the device back as it was; does nothing when it has not moved."""
        moved, self._moved = self._moved, None
        if moved is None or self._snapshot is None:
            return
        before = self._snapshot.link
        try:
            there = self._target.links.get(moved.name)
            if there is None:
                return
            carry(there, self._target, self._source, before.name)
        except OSError as e:
            warn(f"{before.name} could not be brought back: {e.strerror}")
            return
        self._restore()

    def _restore(self) -> None:
        assert self._snapshot is not None
        before = self._snapshot.link
        back = self._source.links.get(before.name)
        if back is None:
            return
        self._link = back
        for error in self._snapshot.restore(self._source.links, back.index, before.alias):
            warn(f"{before.name} is not as it was before the move: {error.strerror}")

    def _carry(self) -> Link:
        if not names.is_pattern(self._wanted):
            try:
                return carry(self._link, self._source, self._target, self._wanted)
            except CameBack:
                self._restore()
                raise
        # The number is found here, not by the kernel, which would not tell it.
        taken = {n for link in self._target.links.all() for n in (link.name, *link.altnames)}
        while True:
            name = names.resolve(self._wanted, taken)
            if not name:
                raise Error(f"no name like {self._wanted} is free there")
            try:
                return carry(self._link, self._source, self._target, name)
            except LinkError as e:
                if e.errno != errno.EEXIST:
                    raise
                # Somebody took it in between.
                taken.add(name)
                if isinstance(e, CameBack):
                    self._restore()

    def _set_up(self, link: Link) -> None:
        assert self._snapshot is not None
        same_name = link.name == self._snapshot.link.name
        links = self._target.links
        for address in self._snapshot.addresses:
            if not address.is_permanent or address.scope != 0:
                continue
            try:
                links.add_again(link.index, address, label=same_name, lifetime=False)
            except LinkError as e:
                if e.errno != errno.EACCES:
                    raise
                # IPv6 is switched off for new devices there; this one comes with an address.
                self._target.sysctl(f"ipv6/conf/{link.name}/disable_ipv6", "0")
                links.add_again(link.index, address, label=same_name, lifetime=False)
        trace("device:addressed")
        links.set_up(link.index)
        trace("device:up")

    def _explain(self, error: Exception) -> Exception:
        if not isinstance(error, LinkError):
            return error
        if error.errno == errno.EINVAL and self._moved is None:
            return Error(_immovable(self._link))
        if error.errno == errno.EEXIST and self._moved is None:
            return Error(f"the name {self._wanted} is taken there")
        return _why(error)


def move(name: str, path: str, new_name: str = "") -> str:
    """Move a device of our own network namespace to that of path; returns its name there.

    new_name may hold a %d for the first free number. Raises Error.
    """
    with Place.own() as source, open_target(path) as target:
        return Move(source, target, name, new_name).run()


def _immovable(link: Link) -> str:
    if link.flags & _IFF_LOOPBACK:
        return "a loopback device cannot leave its network namespace"
    kind = f"a {link.kind} device" if link.kind else "this device"
    return f"{kind} cannot leave its network namespace"


def _why(error: OSError) -> Exception:
    """The error, or what the kernel meant by 'not permitted'."""
    if error.errno not in (errno.EPERM, errno.EACCES):
        return error
    explained = Error(
        NOT_OURS, hint="`rootlessnet enter` and `podman unshare` are where both can be ours"
    )
    explained.__cause__ = error
    return explained
