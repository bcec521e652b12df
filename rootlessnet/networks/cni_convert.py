"""Results in the version of the specification that is wanted, and podman's view of them."""

from __future__ import annotations

from rootlessnet.devices import cni_result
from rootlessnet.devices.cni_plugin import CniError
from rootlessnet.errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.networks.attachment import Status


def convert(document: Any, version: str = "1.0.0") -> dict[str, Any]:
    """A result in a version of the specification. Raises Error."""
    try:
        if isinstance(document, dict) and not document.get("cniVersion"):
            # It is said to be in the version that it was asked in.
            document = {**document, "cniVersion": version}
        result = cni_result.parse(document, version)
        result.dns = cni_result.dns_of(document)
        if document["cniVersion"] == version:
            return dict(document)
        return cni_result.render(result, version)
    except CniError as error:
        raise Error(f"the result cannot be understood: {error.message}") from None


def status_of(result: dict[str, Any]) -> Status:
    """podman's StatusBlock of a result. Raises Error for what is none."""
    result = convert(result)
    interfaces = {}
    addresses = result.get("ips") or []
    for number, interface in enumerate(result.get("interfaces") or []):
        if not interface.get("sandbox"):
            continue  # one of the instance's side
        subnets = []
        for address in addresses:
            if address.get("interface") != number:
                continue
            subnet = {"ipnet": address["address"]}
            if address.get("gateway"):
                subnet["gateway"] = address["gateway"]
            subnets.append(subnet)
        interfaces[str(interface.get("name", ""))] = {
            "mac_address": interface.get("mac", ""),
            "subnets": subnets,
        }
    dns = result.get("dns") or {}
    return {
        "interfaces": interfaces,
        "dns_server_ips": list(dns.get("nameservers") or ()),
        "dns_search_domains": list(dns.get("search") or ()),
    }


def addresses_of(result: dict[str, Any]) -> list[str]:
    """The addresses of a result, without the lengths of their prefixes. Raises Error."""
    result = convert(result)
    return [each["address"].partition("/")[0] for each in result.get("ips") or []]
