"""A container and its attachments to networks: what the two runtimes set up and take down.

`netavark_run` and `cni_run` have the same functions, so that a caller chooses once:

    setup(container, work)      attach it to all its networks, and return their Status by name;
                                when it raises, nothing is left attached
    teardown(container, work)   detach it from all, as far as there is still something to detach;
                                every step is taken, and Failures tells which were in vain
    reload(container, work)     as netavark_run and cni_run say: firewall rules and ports again

They run inside the instance (its user, mount and network namespace), as podman's code does under
its rootless netns' Do. `work` is a directory of the instance for their own files.
"""

from __future__ import annotations

from rootlessnet.instance.paths import sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.networks.network import Network


class Attachment:
    """One interface of a container on one network.

    static_ips are addresses without prefix length, at most one a subnet; addresses are those that
    were given to it, one for each subnet in the order of network.subnets, before netavark is run.
    """

    def __init__(
        self,
        network: Network,
        interface: str,
        *,
        static_ips: list[str] | None = None,
        static_mac: str = "",
        aliases: list[str] | None = None,
    ) -> None:
        self.network = network
        self.interface = interface
        self.static_ips = list(static_ips or ())
        self.static_mac = static_mac
        self.aliases = list(aliases or ())
        self.addresses: list[str] = []


class Container:
    """A container: its id, the path of its network namespace ("" when gone), its attachments.

    port_mappings have the keys of podman's PortMapping: container_port, host_ip, host_port,
    protocol, range.
    """

    def __init__(
        self,
        id: str,
        netns: str,
        attachments: list[Attachment],
        *,
        name: str = "",
        hostname: str = "",
        dns_servers: list[str] | None = None,
        port_mappings: list[dict[str, Any]] | None = None,
    ) -> None:
        self.id = id
        self.name = name or id
        self.hostname = hostname
        self.netns = netns
        self.attachments = attachments
        self.dns_servers = list(dns_servers or ())
        self.port_mappings = list(port_mappings or ())


Status = dict[str, "Any"]
"""podman's StatusBlock: {"interfaces": {NAME: {"mac_address": …, "subnets": [{"ipnet": "A/N",
"gateway": …}]}}, "dns_server_ips": […], "dns_search_domains": […]}."""


def hashed(id: str) -> str:
    """64 hexadecimal digits that are no part of another container's."""
    return sha256(id)
