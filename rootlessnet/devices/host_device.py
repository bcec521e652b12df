"""The commands of the CNI plugin host-device: a device of the host becomes a container's.

What happens to the device when a command fails or is killed: see transit. docs/host-device.md
lists where this differs from the reference plugin, and why.

pyroute2 is imported when a link is touched: not for STATUS, a wrong configuration or DPDK.
"""

from __future__ import annotations

import os

from rootlessnet.devices import cni_result, ipam
from rootlessnet.devices.cni_plugin import (
    INTERNAL,
    INVALID_NETNS,
    CniError,
    Request,
    go_text,
    print_json,
    quote,
)
from rootlessnet.devices.cni_result import Result
from rootlessnet.devices.selector import Selector
from rootlessnet.kernel import netns
from rootlessnet.kernel.trace import trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.devices.links import Link
    from rootlessnet.devices.place import Place
    from rootlessnet.devices.transit import Mark


def add(request: Request) -> None:
    """Give the container the device; prints the result. Raises CniError, with all undone."""
    selector = Selector(request.config)
    plugin = ipam.kind(request.config)
    dns = cni_result.dns_of(request.config)
    fd = _open_netns(request)
    if selector.is_for_user_space:
        os.close(fd)
        _add_for_user_space(request, plugin, dns)
        return
    from rootlessnet.devices.place import Place
    from rootlessnet.devices.transit import Entry

    with _enter(fd, request.netns) as container, Place.own() as host:
        link, was_interrupted = _find_for_add(request, selector, host, container)
        cni_result.check_printable(request.version, bool(plugin))
        if container.links.get(request.ifname) is not None and not _is_rename(request, link):
            where = f"{quote(request.ifname)} (host: {quote(link.name)})"
            message = f"failed to move link failed to move {where} to container NS: file exists"
            raise CniError(INTERNAL, message)
        if plugin:
            ipam.find(request, plugin)
        entry = Entry(host, container, link, request)
        moved = entry.go()
        result = Result()
        try:
            if plugin:
                if was_interrupted:
                    # It may have been given an address: some plugins give no second one.
                    _release(request, plugin)
                result = _ask_ipam(request, plugin)
                trace("add.ipam")
            result.interfaces = [_interface(request, moved.mac)]
            result.dns = dns
            document = cni_result.render(result, request.version)
            if plugin:
                _configure(container, request, result)
                trace("add.configured")
            print_json(document)
        except BaseException:
            if plugin:
                _release(request, plugin)
                trace("undo.ipam")
            entry.undo()
            raise
        trace("add.printed")
        try:
            entry.finish()
        except OSError as e:
            # The result is out, so this is no failure of ADD any more; DEL knows the mark too.
            os.write(2, f"{request.ifname} stays marked as moving: {e.strerror}\n".encode())


def delete(request: Request) -> None:
    """Take the device back and release its addresses; can be repeated. Raises CniError.

    Every step is done; the first failure is reported.
    """
    selector = Selector(request.config, lenient=True)
    plugin = ipam.kind(request.config)
    fd = _open_netns_for_del(request)
    failures: list[CniError] = []
    if selector.is_for_user_space:
        if fd is not None:
            os.close(fd)
        _ask_to_release(request, plugin, failures)
    elif fd is None:
        _ask_to_release(request, plugin, failures)
        _clear_marks(request, failures)
    else:
        try:
            container = _enter(fd, request.netns)
        except CniError as e:
            failures.append(e)
            _ask_to_release(request, plugin, failures)
        else:
            with container:
                _delete_link(request, selector, plugin, container, failures)
            _clear_marks(request, failures)
    if failures:
        raise failures[0]


def check(request: Request) -> None:
    """Whether the container has what ADD gave it; raises CniError."""
    selector = Selector(request.config)
    plugin = ipam.kind(request.config)
    fd = _open(request.netns)
    try:
        if plugin:
            ipam.delegate(request, plugin, "CHECK")
        previous = request.config.get("prevResult")
        if previous is None:
            raise CniError(INTERNAL, "Required prevResult missing")
        result = cni_result.parse(previous, request.version)
        if selector.is_for_user_space:
            return
        ours: dict[str, Any] = {}
        for interface in result.interfaces:
            if interface.get("name") == request.ifname:
                if interface.get("sandbox") == request.netns:
                    ours = interface
        if not ours:
            where = f"doesn't match configured netns: {request.netns}"
            raise CniError(INTERNAL, f"Sandbox in prevResult  {where}")
        from rootlessnet.devices import interface as container_interface

        owned, fd = fd, -1
        with _enter(owned, request.netns) as container:
            container_interface.check(container, request.ifname, ours.get("mac") or "", result)
    finally:
        if fd >= 0:
            os.close(fd)


def collect(request: Request) -> None:
    """GC: nothing of ours outlives its attachment, but IPAM may have something to collect."""
    plugin = ipam.kind(request.config)
    if not plugin:
        return
    try:
        ipam.delegate(request, plugin, "GC")
    except CniError as e:
        # A plugin that does not know the command or the version has given nothing to collect.
        if e.code not in (1, 4):
            raise


def status(request: Request) -> None:
    """Whether ADD could work: as far as IPAM can tell. Raises CniError."""
    plugin = ipam.kind(request.config)
    if plugin:
        ipam.delegate(request, plugin, "STATUS")


# --- the network namespace ---


def _open(path: str) -> int:
    attempt = f"failed to open netns {quote(path)}"
    try:
        return netns.open_path(path)
    except netns.NotANamespace as e:
        from rootlessnet.kernel.statfs import filesystem_type

        kind = f"{filesystem_type(path):x}"
        raise CniError(INTERNAL, f"{attempt}: unknown FS magic on {quote(path)}: {kind}") from e
    except OSError as e:
        message = f"{attempt}: failed to Statfs {quote(path)}: {go_text(e)}"
        raise CniError(INTERNAL, message) from e


def _open_netns(request: Request) -> int:
    """The container's namespace, which must not be ours; the caller owns it."""
    fd = _open(request.netns)
    if request.takes_own_netns:
        return fd
    own = netns.open_own()
    try:
        if not netns.is_same(fd, own):
            return fd
    finally:
        os.close(own)
    os.close(fd)
    raise CniError(INVALID_NETNS, "plugin's netns and netns from CNI_NETNS should not be the same")


def _open_netns_for_del(request: Request) -> int | None:
    """As `_open_netns`; None when the namespace is gone."""
    if not request.netns:
        return None
    try:
        return _open_netns(request)
    except CniError as e:
        # A file that is no namespace is what is left when the bind mount on it is gone.
        gone = (FileNotFoundError, NotADirectoryError, netns.NotANamespace)
        if isinstance(e.__cause__, gone):
            return None
        raise


def _enter(fd: int, path: str) -> Place:
    """The namespace to work in; it owns the descriptor. Raises CniError."""
    from rootlessnet.devices.place import NOT_OURS, Place

    try:
        return Place(fd)
    except PermissionError as e:
        message = f"failed to open netns {quote(path)}: {go_text(e)}: {NOT_OURS}"
        raise CniError(INTERNAL, message) from e


# --- ADD ---


def _find_for_add(
    request: Request, selector: Selector, host: Place, container: Place
) -> tuple[Link, bool]:
    """The device on the host, and whether an ADD of this attachment was killed before.

    A device that such an ADD or a DEL left in the container is brought back first.
    """
    from rootlessnet.devices import transit

    try:
        link = selector.find(host.links)
    except CniError as not_found:
        marked = transit.find_marked(container, request, selector)
        if marked is None:
            raise
        stray, mark = marked
        way_out = transit.Exit(stray, mark.name, mark, container, host)
        way_out.announce(request)
        way_out.go()
        trace("add.mended")
        back = host.links.get(mark.name)
        if back is None:
            raise not_found
        return back, True
    left = transit.Mark.of(link)
    return link, left is not None and left.belongs_to(request)


def _is_rename(request: Request, link: Link) -> bool:
    """Whether host and container are one namespace and the device has the wanted name already."""
    return request.takes_own_netns and link.is_named(request.ifname)


def _add_for_user_space(request: Request, plugin: str, dns: dict[str, Any]) -> None:
    """DPDK: no network device, but perhaps addresses for the program to use."""
    cni_result.check_printable(request.version, bool(plugin))
    result = Result()
    try:
        if plugin:
            result = _ask_ipam(request, plugin)
            trace("add.ipam")
        result.interfaces = [_interface(request, "")]
        result.dns = dns
        print_json(cni_result.render(result, request.version))
    except BaseException:
        if plugin:
            _release(request, plugin)
        raise


def _interface(request: Request, mac: str) -> dict[str, Any]:
    return {
        "name": request.ifname,
        **({"mac": mac} if mac else {}),
        "sandbox": request.netns,
    }


def _ask_ipam(request: Request, plugin: str) -> Result:
    answer = ipam.delegate(request, plugin, "ADD")
    result = cni_result.parse({} if answer is None else answer, request.version)
    if not result.addresses:
        raise CniError(INTERNAL, "IPAM plugin returned missing IP config")
    for address in result.addresses:
        # All of them are for the one interface that there is.
        address.interface = 0
    return result


def _configure(container: Place, request: Request, result: Result) -> None:
    from rootlessnet.devices import interface

    interface.configure(container, request.ifname, result)


def _release(request: Request, plugin: str) -> None:
    """Give back what IPAM may have given; the failure to report is another one."""
    try:
        ipam.delegate(request, plugin, "DEL")
    except CniError as e:
        os.write(2, f"release the addresses by {plugin}: {e.message}\n".encode())


# --- DEL ---


def _ask_to_release(request: Request, plugin: str, failures: list[CniError]) -> None:
    if not plugin:
        return
    try:
        ipam.delegate(request, plugin, "DEL")
    except CniError as e:
        failures.append(e)
    trace("del.ipam")


def _delete_link(
    request: Request, selector: Selector, plugin: str, container: Place, failures: list[CniError]
) -> None:
    from rootlessnet.devices.place import Place
    from rootlessnet.devices.transit import Exit

    with Place.own() as host:
        way_out: Exit | None = None
        try:
            found = _find_for_del(request, selector, host, container)
            if found is not None:
                announced = Exit(*found, container, host)
                announced.announce(request)
                way_out = announced
        except CniError as e:
            failures.append(e)
        # While the device is still there: DHCP says good-bye through it.
        _ask_to_release(request, plugin, failures)
        if way_out is not None:
            try:
                way_out.go()
            except CniError as e:
                failures.append(e)


def _clear_marks(request: Request, failures: list[CniError]) -> None:
    """End the way of a device that is on the host already, where the plugin was killed."""
    from rootlessnet.devices import transit
    from rootlessnet.devices.place import Place

    with Place.own() as host:
        for link in host.links.all():
            mark = transit.Mark.of(link)
            if mark is not None and mark.belongs_to(request):
                try:
                    transit.settle(link, host, mark)
                except CniError as e:
                    failures.append(e)


def _find_for_del(
    request: Request, selector: Selector, host: Place, container: Place
) -> tuple[Link, str, Mark | None] | None:
    """The device in the container, its name on the host, and its mark if it is on its way.

    By, in this order: its mark; its alias, under whichever name it is now; its place, when the
    device is nowhere else. None when there is nothing to take out. Raises CniError.
    """
    from rootlessnet.devices import names, transit

    marked = transit.find_marked(container, request, selector)
    if marked is not None:
        link, mark = marked
        return link, mark.name, mark
    links = container.links.all()
    # The one under the name of the request first, if several claim to be it.
    links.sort(key=lambda link: link.name != request.ifname)
    for link in links:
        if names.is_plain(link.alias) and selector.means(link, link.alias):
            return link, link.alias, None
    try:
        selector.find(host.links)
    except CniError:
        pass
    else:
        # It is where it belongs: whatever bears the name of the request is somebody else's.
        return None
    link_there = container.links.get(request.ifname)
    if link_there is None:
        return None
    # The configuration outranks the alias, which the container may have written.
    name = selector.device or link_there.alias
    if not link_there.alias and not _was_given(request, link_there):
        shown = quote(request.ifname)
        message = f"failed to find original ifname for {shown} (alias is not set)"
        raise CniError(INTERNAL, message)
    if not names.is_plain(name):
        message = f"failed to find original ifname for {quote(request.ifname)}"
        raise CniError(INTERNAL, f"{message} (alias is {quote(link_there.alias)})")
    return link_there, name, None


def _was_given(request: Request, link: Link) -> bool:
    """Whether the result of ADD, which the runtime keeps, has this very interface."""
    previous = request.config.get("prevResult")
    interfaces = previous.get("interfaces") if isinstance(previous, dict) else None
    for each in interfaces if isinstance(interfaces, list) else ():
        if isinstance(each, dict) and each.get("name") == request.ifname:
            return bool(link.mac) and each.get("mac") == link.mac
    return False
