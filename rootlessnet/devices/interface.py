"""The container's interface: addresses and routes applied, and looked for again by CHECK."""

from __future__ import annotations

import time

from rootlessnet.devices.cni_plugin import INTERNAL, CniError, go_text, quote
from rootlessnet.devices.cni_result import AF_INET, AF_INET6, Result, Route
from rootlessnet.devices.links import IFA_F_DADFAILED, IFA_F_TENTATIVE, Links
from rootlessnet.devices.place import Place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.devices.links import Link

_SETTLE_SECONDS = 5.0
_SETTLE_STEP = 0.01


def configure(place: Place, ifname: str, result: Result) -> None:
    """Give the interface, which is up, the result's addresses and routes; raises CniError."""
    link = place.links.get(ifname)
    if link is None:
        raise CniError(INTERNAL, f"failed to lookup {quote(ifname)}: Link not found")
    if any(address.prefix.family == AF_INET6 for address in result.addresses):
        _enable_ipv6(place, ifname)
    gateways: dict[int, str] = {}
    for address in result.addresses:
        prefix = address.prefix
        try:
            place.links.add_address(
                link.index, prefix.family, prefix.address, prefix.length, prefix.broadcast()
            )
        except OSError as e:
            what = f"failed to add IP addr {prefix} to {quote(ifname)}"
            raise CniError(INTERNAL, f"{what}: {go_text(e)}") from e
        if address.gateway:
            family = AF_INET6 if ":" in address.gateway else AF_INET
            gateways.setdefault(family, address.gateway)
    if AF_INET6 in gateways:
        # A route through a gateway has to find the address that leads there in use.
        _settle(place.links, link.index)
    for route in result.routes:
        _add_route(place.links, link, route, route.gateway or gateways.get(route.prefix.family, ""))


def _enable_ipv6(place: Place, ifname: str) -> None:
    for name in ("lo", ifname):
        try:
            place.sysctl(f"ipv6/conf/{name}/disable_ipv6", "0")
        except FileNotFoundError:
            # A kernel without IPv6: adding the address will say so.
            continue
        except OSError as e:
            message = f"failed to enable IPv6 for interface {quote(name)}: {go_text(e)}"
            raise CniError(INTERNAL, message) from e
    try:
        place.sysctl(f"ipv6/conf/{ifname}/keep_addr_on_down", "1")
    except OSError:
        # Good to have, no more: /proc/sys may be read-only, and old kernels do not know it.
        pass


def _settle(links: Links, index: int) -> None:
    """Wait until duplicate address detection is through with all addresses, at most 5 s."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while time.monotonic() < deadline:
        flags = [address.flags for address in links.addresses(index)]
        if not any(each & IFA_F_TENTATIVE and not each & IFA_F_DADFAILED for each in flags):
            return
        time.sleep(_SETTLE_STEP)


def _add_route(links: Links, link: Link, route: Route, gateway: str) -> None:
    metrics = {
        name.upper(): route.extras[name] for name in ("mtu", "advmss") if name in route.extras
    }
    try:
        links.add_route(
            link.index,
            route.prefix.family,
            route.prefix.address,
            route.prefix.length,
            gateway=gateway,
            scope=route.extras.get("scope", 0),
            table=route.extras.get("table", 254),
            priority=route.extras.get("priority", 0),
            metrics=metrics,
        )
    except OSError as e:
        where = f"via {gateway or '<nil>'} dev {link.name}"
        raise CniError(
            INTERNAL, f"failed to add route '{route.prefix} {where}': {go_text(e)}"
        ) from e


def check(place: Place, ifname: str, mac: str, result: Result) -> None:
    """Whether the interface has what an earlier result promised; raises CniError."""
    link = place.links.get(ifname)
    if link is None:
        message = f"Container Interface name in prevResult: {ifname} not found"
        raise CniError(INTERNAL, message)
    if mac and mac != link.mac:
        message = f"Interface {ifname} Mac {mac} doesn't match container Mac: {link.mac}"
        raise CniError(INTERNAL, message)
    present = {str(address) for address in place.links.addresses(link.index)}
    for address in result.addresses:
        prefix = address.prefix
        if str(prefix) not in present:
            message = f"Failed to match addr {prefix} on interface {ifname}"
            raise CniError(INTERNAL, message)
        # A single address has no prefix to be routed.
        is_single = prefix.length == (32 if prefix.family == AF_INET else 128)
        if not is_single and not place.links.has_route(
            prefix.family, prefix.network(), prefix.length
        ):
            gateway = address.gateway or "<nil>"
            message = f"Failed to find Gateway {gateway} for interface {ifname}"
            raise CniError(INTERNAL, message)
    for route in result.routes:
        prefix = route.prefix
        if not place.links.has_route(
            prefix.family, prefix.network(), prefix.length, route.extras.get("table", 254)
        ):
            raise CniError(INTERNAL, f"Expected Route {_shown(route)} not found in routing table")


def _shown(route: Route) -> str:
    """A route as the reference prints it."""
    prefix = route.prefix
    bits = 128 if prefix.family == AF_INET6 else 32
    mask = ((1 << prefix.length) - 1) << (bits - prefix.length)
    shown = f"{mask:0{bits // 4}x}"
    return f"{{Dst:{{IP:{prefix.address} Mask:{shown}}} GW:{route.gateway or '<nil>'}}}"
