"""Containers on CNI networks, as podman's CNI backend sets them up.

    setup(container, work)      lo up, then each network in turn
    teardown(container, work)   with the configuration of setup, else with the network's file
    reload(container, work)     teardown and setup with the same addresses and MAC: what restores
                                firewall rules and forwarded ports
    check, collect, is_ready    the commands CHECK, GC and STATUS
    remove_bridge(network)      what is left of a network in the instance when its file is gone

All of them run inside the instance (rootlessnet.networks.attachment), whose own /var/lib/cni has
the results. A container's names are told to the plugins as podman does it: `K8S_POD_NAME` and the
capability `aliases`, for the plugin dnsname.
"""

from __future__ import annotations

import os

from rootlessnet.config import containers
from rootlessnet.config import network as config
from rootlessnet.errors import Error, Failures, reason, warn
from rootlessnet.networks import bridge, cni, cni_args, cni_convert, cni_list, conflist
from rootlessnet.networks.cni_runtime import CACHE_DIRECTORY, Runtime

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from rootlessnet.networks.attachment import Attachment, Container, Status
    from rootlessnet.networks.cni_list import NetworkList
    from rootlessnet.networks.network import Network

# Plugins that make the interface themselves, and so fail where there is one of that name: later,
# and after which a DEL would take away what is not ours.
_MAKERS = ("bridge", "macvlan", "ipvlan", "ptp", "vlan", "host-device")

_ROOTLESS_UID = "_CONTAINERS_ROOTLESS_UID"
_ROOTLESS_GID = "_CONTAINERS_ROOTLESS_GID"
_SBIN = "/usr/sbin"

_HOST_LOCAL = f"{CACHE_DIRECTORY}/networks"


def setup(container: Container, work: str) -> Status:
    """Attach a container to all its networks; their status by name. See attachment."""
    ports = cni_args.port_mappings(container.port_mappings)
    lists = _validate(container)
    runtime = _runtime()
    for network in lists:
        runtime.check_present(network)
    _prepare_namespace(runtime, container, lists)
    status: Status = {}
    done: list[Attachment] = []
    try:
        for attachment, network in zip(container.attachments, lists, strict=True):
            first = network.plugins[0]
            capabilities = first.get("capabilities") or {}
            if attachment.static_ips and not capabilities.get("ips"):
                network.inject(0, {"capabilities": {**capabilities, "ips": True}})
            mtu = bridge.chosen_mtu(attachment.network)
            if mtu and first.get("type") == "bridge" and not first.get("mtu"):
                network.inject(0, {"mtu": mtu})
            args, capability_args = cni_args.arguments(container, attachment, ports)
            result = runtime.add(
                network,
                container.id,
                container.netns,
                attachment.interface,
                args=args,
                capability_args=capability_args,
            )
            done.append(attachment)
            status[attachment.network.name] = cni_convert.status_of(result)
            attachment.addresses = cni_convert.addresses_of(result)
    except BaseException:
        for attachment in reversed(done):
            try:
                _detach(runtime, container, attachment)
            except Error as error:
                warn(f"undo a failed setup: {reason(error)}")
        raise
    return status


def teardown(container: Container, work: str) -> None:
    """Detach a container from all its networks. See attachment.

    One without attachments, as when nobody remembers them, is detached from all that the results
    tell of. What a plugin has failed to delete does not keep the instance.
    """
    runtime = _runtime()
    failed: list[BaseException] = []
    for attachment in container.attachments:
        try:
            _detach(runtime, container, attachment)
        except (Error, OSError) as error:
            failed.append(error)
    if not container.attachments:
        for entry in runtime.attached(container.id):
            known = entry.attachment
            try:
                runtime.delete(
                    None,
                    known.container,
                    container.netns,
                    known.interface,
                    name=known.network,
                    give_up=True,
                )
            except (Error, OSError) as error:
                failed.append(error)
    if failed:
        raise Failures(f"tear down the network of {container.id}", failed)


def reload(container: Container, work: str) -> Status:
    """Set a container up again with the addresses and the MAC that it has; the new status.

    When it raises, the container is detached from all its networks.
    """
    runtime = _runtime()
    again = []
    for attachment in container.attachments:
        entry = runtime.cached(attachment.network.name, container.id, attachment.interface)
        if entry is not None and entry.result:
            status = cni_convert.status_of(entry.result)
            again.append((attachment, status["interfaces"].get(attachment.interface)))
    cni_args.port_mappings(container.port_mappings)
    _validate(container)
    try:
        teardown(container, work)
    except Error as error:
        warn(reason(error))
    given = [(a, a.static_ips, a.static_mac) for a in container.attachments]
    for attachment, interface in again:
        if interface is not None and attachment.network.subnets:
            attachment.static_ips = [s["ipnet"].partition("/")[0] for s in interface["subnets"]]
        if interface is not None and interface["mac_address"]:
            attachment.static_mac = interface["mac_address"]
    try:
        return setup(container, work)
    finally:
        for attachment, ips, mac in given:
            attachment.static_ips, attachment.static_mac = ips, mac


def check(container: Container, work: str) -> None:
    """Raise Failures unless every attachment is as it was made (CHECK)."""
    runtime = _runtime()
    failed: list[BaseException] = []
    for attachment in container.attachments:
        try:
            name = attachment.network.name
            entry = runtime.cached(name, container.id, attachment.interface)
            known = entry.config if entry else None
            network = cni_list.parse(known) if known else load(attachment.network)
            runtime.check(network, container.id, container.netns, attachment.interface)
        except Error as error:
            failed.append(error)
    if failed:
        raise Failures(f"check the network of {container.id}", failed)


def collect(network: Network, valid: Iterable[tuple[str, str]]) -> None:
    """Free what is held on a network by others than valid, pairs of container and interface (GC).

    Raises Failures.
    """
    _runtime().gc(load(network), valid)


def is_ready(network: Network) -> None:
    """Raise Error unless the plugins of a network say that they are ready (STATUS)."""
    _runtime().status(load(network))


def remove_bridge(network: Network) -> None:
    """Take the bridge of a network away, and the record of the address it gave away last.

    For a network that nobody uses any more and that is being removed; podman's CNI backend leaves
    the bridge when the last container goes. A bridge that has ports, or a link of that name that
    is none, stays. Raises Error.
    """
    from rootlessnet.networks import bridge

    if network.driver == "bridge" and network.interface:
        try:
            bridge.remove_unused(network.interface)
        except OSError as error:
            raise Error(f"remove the bridge {network.interface}") from error
    _forget_addresses(network.name)


def load(network: Network) -> NetworkList:
    """The plugins of a network: from its file, or as it is written where it has none. Raises
    Error."""
    _know_the_user()
    directory = cni.directory()
    path = f"{directory}/{cni.file_of(network, directory)}"
    try:
        found = cni_list.load_file(path)
    except Error as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        if network.name != config.default_network():
            raise Error(f"network {network.name}: network not found") from None
        found = cni_list.parse(conflist.encode(network).encode())
    return found


def _know_the_user() -> None:
    """Say in the environment whose root we are, as `enter` does.

    A program outside sends a child inside, whose environment is the one outside: by that, root
    would be the machine's, whose networks are others.
    """
    if os.geteuid() != 0 or _ROOTLESS_UID in os.environ:
        return
    for path, name in (("uid_map", _ROOTLESS_UID), ("gid_map", _ROOTLESS_GID)):
        with open(f"/proc/self/{path}", encoding="ascii") as file:
            for line in file:
                inner, outer, _ = line.split()
                if inner == "0" and outer != "0":
                    os.environ[name] = outer


def _runtime() -> Runtime:
    _know_the_user()
    environment = dict(os.environ)
    path = environment.get("PATH") or os.defpath
    if _SBIN not in path.split(":"):
        # iptables is there, and not on the path of every user.
        environment["PATH"] = f"{path}:{_SBIN}"
    if not containers.is_rootless():
        # dnsname keeps its files there, and the process that cleans up may not have it (podman).
        environment["XDG_RUNTIME_DIR"] = ""
    return Runtime(config.cni_plugin_dirs(), environment=environment)


def _validate(container: Container) -> list[NetworkList]:
    """Check what a container asks for; the plugins of its networks. Raises Error."""
    from rootlessnet.networks import subnets

    if not container.netns:
        raise Error("namespacePath is empty")
    if not container.id:
        raise Error("ContainerID is empty")
    if not container.attachments:
        raise Error("must specify at least one network")
    names = [attachment.interface for attachment in container.attachments]
    lists = []
    for attachment in container.attachments:
        network = attachment.network
        if not attachment.interface:
            raise Error(f"interface name on network {network.name} is empty")
        if names.count(attachment.interface) > 1:
            raise Error(f"interface {attachment.interface} is asked for on more than one network")
        for text in attachment.static_ips:
            try:
                address = subnets.parse_address(text)
            except ValueError:
                raise Error(f"static ip {text} on network {network.name}: no address") from None
            if not any(address in subnet.subnet for subnet in network.subnets):
                raise Error(
                    f"requested static ip {text} not in any subnet on network {network.name}"
                )
        lists.append(load(network))
    return lists


def _prepare_namespace(runtime: Runtime, container: Container, lists: list[NetworkList]) -> None:
    """Bring lo of a container up. Raises Error for a namespace that is the instance's own, or has
    one of the interfaces that are to be made."""
    from rootlessnet.kernel import netdevice, netns

    wanted = []
    for attachment, network in zip(container.attachments, lists, strict=True):
        name = attachment.interface
        if (
            network.plugins[0]["type"] in _MAKERS
            and runtime.cached(network.name, container.id, name) is None
        ):
            wanted.append(name)

    def prepare() -> None:
        for name in wanted:
            if netdevice.exists(name):
                raise Error(f"set up {container.id}: it has an interface {name} already")
        netdevice.set_up("lo")

    try:
        fd = netns.open_path(container.netns)
    except OSError as error:
        raise Error("open the network namespace") from error
    own = netns.open_own()
    try:
        if netns.is_same(fd, own):
            raise Error(
                f"set up {container.id}: {container.netns} is the network namespace that the "
                "networks are in",
                hint="a container needs a network namespace of its own",
            )
        netns.inside(fd, prepare)
    except OSError as error:
        raise Error(
            f"look into {container.netns}",
            hint="a container has to belong to the user namespace of the instance: start it there",
        ) from error
    finally:
        os.close(own)
        os.close(fd)


def _detach(runtime: Runtime, container: Container, attachment: Attachment) -> None:
    name = attachment.network.name
    entry = runtime.cached(name, container.id, attachment.interface)
    network = None
    if entry is None or entry.config is None:
        warn(
            f"Failed to load cached network config: network {name} not found in CNI cache, "
            f"falling back to loading network {name} from disk"
        )
        network = load(attachment.network)
    args, capability_args = cni_args.arguments(
        container, attachment, cni_args.port_mappings(container.port_mappings)
    )
    runtime.delete(
        network,
        container.id,
        container.netns,
        attachment.interface,
        name=name,
        args=args,
        capability_args=capability_args,
        give_up=True,
    )


def _forget_addresses(name: str) -> None:
    """Remove what host-local remembers of a network, unless an address is given away."""
    from rootlessnet.networks.network import is_name

    directory = f"{_HOST_LOCAL}/{name}"
    if not is_name(name) or not os.path.isdir(directory):
        return
    try:
        names = os.listdir(directory)
        if all(each == "lock" or each.startswith("last_reserved_ip.") for each in names):
            for each in names:
                os.unlink(f"{directory}/{each}")
            os.rmdir(directory)
    except OSError as error:
        raise Error(f"remove {directory}") from error
