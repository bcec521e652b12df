"""A CNI runtime: runs the plugins of a network for a container, and remembers what it did.

    from rootlessnet.networks import cni_list
    from rootlessnet.networks.cni_runtime import Runtime

    runtime = Runtime(["/usr/lib/cni"], "/var/lib/cni")
    network = cni_list.load_network("/etc/cni/net.d", "lab")
    result = runtime.add(network, "c1", "/run/netns/c1", "eth0",
                         args=[("IgnoreUnknown", "1")],
                         capability_args={"portMappings": [...]})
    runtime.check(network, "c1", "/run/netns/c1", "eth0")
    runtime.delete(network, "c1", "/run/netns/c1", "eth0")
    runtime.gc(network, valid=[("c2", "eth0")])

It runs where its caller runs: under `rootlessnet enter`, say. What it does beyond libcni, of which
it reads and writes the cache (cni_cache):

    a failed ADD      is followed by DEL for the whole chain; the first error is the one raised
    DEL               runs every plugin though one has failed, and keeps the cache then; it uses
                      the configuration and arguments of ADD; a namespace that is gone or that is
                      not the one of ADD any more is the empty path
    a killed runtime  leaves the mark of an ADD, whose remains the next ADD, DEL or GC takes away
    a hanging plugin  is killed after `seconds`, with all that it has started
    at the same time  one runtime works on an attachment, and none during GC (cni_lock)
"""

from __future__ import annotations

import os

from rootlessnet.devices.cni_main import VERSIONS
from rootlessnet.errors import Error, Failures, reason, warn
from rootlessnet.kernel.trace import trace
from rootlessnet.networks import cni_convert, cni_list, cni_netns, gojson
from rootlessnet.networks.cni_cache import Cache, Damaged, Endpoint, Entry, Foreign
from rootlessnet.networks.cni_lock import Lock
from rootlessnet.networks.cni_plugins import Plugins

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from rootlessnet.networks.cni_list import NetworkList

CACHE_DIRECTORY = "/var/lib/cni"
PATIENCE = 120.0
"""Seconds for one call of a plugin; a DHCP server may need its time."""

_Pairs = list[tuple[str, str]]


class Runtime:
    """The plugins of some directories, and a directory to remember results in.

    Every method raises Error for what a user can do something about.
    """

    def __init__(
        self,
        plugin_dirs: Sequence[str],
        cache_dir: str = CACHE_DIRECTORY,
        *,
        environment: Mapping[str, str] | None = None,
        seconds: float = PATIENCE,
    ) -> None:
        """environment is what plugins get beside the CNI_ variables: ours, if it is not given."""
        self._plugins = Plugins(
            plugin_dirs, os.environ if environment is None else environment, seconds
        )
        self._directory = cache_dir
        self._cache = Cache(cache_dir)

    # -- the commands ------------------------------------------------------------------------------

    def add(
        self,
        network: NetworkList,
        container: str,
        netns: str,
        interface: str,
        *,
        args: _Pairs | None = None,
        capability_args: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Attach a container and return the result, in the network's version.

        When it raises nothing is attached, and what was attached before still is.
        """
        endpoint = _endpoint(network.name, container, netns, interface, args, capability_args)
        version = _version(network)
        inode = cni_netns.inode(netns)
        self.check_present(network)
        with Lock(self._directory, endpoint.key()) as fd:
            self._clear_remains(endpoint, inode, network, fd)
            entry = Entry(endpoint, network.data, None)
            entry.inode, entry.incomplete = inode, True
            self._write(entry)
            trace("cni:begun")
            try:
                entry.result = self._add_chain(network, endpoint, version, fd)
                entry.incomplete = False
                self._write(entry)
            except BaseException:
                self._undo(network, entry, fd)
                raise
            trace("cni:added")
        return entry.result

    def delete(
        self,
        network: NetworkList | None,
        container: str,
        netns: str,
        interface: str,
        *,
        name: str = "",
        args: _Pairs | None = None,
        capability_args: dict[str, Any] | None = None,
        give_up: bool = False,
    ) -> None:
        """Detach a container; it may be repeated, and netns may be gone or empty.

        What was remembered counts; network, args and capability_args are for an attachment that
        nothing is remembered of. Without a network, its name is enough to find what is. When a
        plugin has failed it is remembered for another try. A caller that will not try again gives
        up: what is left does not keep the instance then, and is tried by GC and the next ADD.
        """
        known = network.name if network else name
        endpoint = _endpoint(known, container, netns, interface, args, capability_args)
        with Lock(self._directory, endpoint.key()) as fd:
            try:
                self._delete(network, endpoint, fd)
            except Error:
                if give_up:
                    self._demote(endpoint)
                raise

    def check(
        self,
        network: NetworkList,
        container: str,
        netns: str,
        interface: str,
        *,
        args: _Pairs | None = None,
        capability_args: dict[str, Any] | None = None,
    ) -> None:
        """Raise Error unless the attachment is as it was made."""
        if not network.speaks("0.4.0"):
            raise Error(
                f"configuration version {gojson.quote(network.version)} "
                "does not support the CHECK command"
            )
        if network.disable_check:
            return
        endpoint = _endpoint(network.name, container, netns, interface, args, capability_args)
        version = _version(network)
        with Lock(self._directory, endpoint.key()) as fd:
            entry = self._entry(endpoint)
            previous = self._previous(entry, network, version)
            if entry is not None and not args and not capability_args:
                endpoint.args = entry.attachment.args
                endpoint.capability_args = entry.attachment.capability_args
            for plugin in network.plugins:
                try:
                    self._call("CHECK", network, plugin, endpoint, previous, fd)
                except Error as error:
                    raise _failed(plugin, "check") from error

    def gc(self, network: NetworkList, valid: Iterable[tuple[str, str]]) -> None:
        """Delete what is attached to a network, but for valid: pairs of container and interface.

        Raises Failures when something could not be deleted; everything was tried then.
        """
        if network.disable_gc:
            return
        keep = list(dict.fromkeys(valid))
        failed: list[BaseException] = []
        with Lock(self._directory, None) as fd:
            for entry in self._cache.entries():
                found = entry.attachment
                if found.network != network.name or (found.container, found.interface) in keep:
                    continue
                try:
                    self._delete(network, found, fd)
                    trace("cni:collected")
                except (Error, OSError) as error:
                    failed.append(_stale(found, error))
            if network.speaks("1.1.0"):
                attachments = [{"containerID": c, "ifname": i} for c, i in keep]
                # The text of the specification had the shorter name at first.
                keys = ("cni.dev/valid-attachments", "cni.dev/attachments")
                for plugin in network.plugins:
                    config = {**plugin, **dict.fromkeys(keys, attachments)}
                    try:
                        self._call("GC", network, config, None, None, fd)
                    except Error as error:
                        failed.append(_caused(f"failed to GC plugin {plugin['type']}", error))
        if failed:
            raise Failures(f"collect what is stale on {network.name}", failed)

    def status(self, network: NetworkList) -> None:
        """Raise Error unless every plugin of a network is ready for ADD."""
        if network.speaks("1.1.0"):
            for plugin in network.plugins:
                self._call("STATUS", network, plugin, None, None)

    def versions(self, kind: str) -> list[str]:
        """The versions of the specification that a plugin speaks."""
        return self._plugins.versions(kind)

    def check_present(self, network: NetworkList) -> None:
        """Raise Error unless every plugin of a network is there, which is all that is asked."""
        for plugin in network.plugins:
            try:
                self._plugins.find(plugin["type"])
            except Error as error:
                raise _failed(plugin, "add") from error

    def validate(self, network: NetworkList) -> None:
        """Raise Failures when a plugin of a network is not there or does not speak its version."""
        failed: list[BaseException] = []
        wanted = network.version or VERSIONS[0]
        for kind in dict.fromkeys(plugin["type"] for plugin in network.plugins):
            try:
                if wanted not in self._plugins.versions(kind):
                    version = gojson.quote(wanted)
                    raise Error(f"plugin {kind} does not support config version {version}")
            except Error as error:
                failed.append(error)
        if failed:
            raise Failures(f"use network {network.name}", failed)

    # -- what is remembered ------------------------------------------------------------------------

    def cached(self, network: str, container: str, interface: str) -> Entry | None:
        """What is remembered of an attachment; None when it is nothing or damaged."""
        return self._entry(Endpoint(network, container, interface))

    def attached(self, container: str = "") -> list[Entry]:
        """What is remembered of a container, or of all."""
        entries = self._cache.entries()
        return [e for e in entries if not container or e.attachment.container == container]

    def _entry(self, endpoint: Endpoint) -> Entry | None:
        try:
            return self._cache.read(endpoint)
        except (Damaged, Foreign):
            return None

    def _write(self, entry: Entry) -> None:
        try:
            self._cache.write(entry)
        except OSError as error:
            raise Error("write the CNI result") from error

    def _previous(
        self, entry: Entry | None, network: NetworkList, version: str
    ) -> dict[str, Any] | None:
        """The cached result as prevResult; None where there is none that can be used."""
        if entry is None or not entry.result or not network.speaks("0.4.0"):
            return None
        try:
            return cni_convert.convert(entry.result, version)
        except Error:
            return None

    def _clear_remains(self, endpoint: Endpoint, inode: int, network: NetworkList, fd: int) -> None:
        """Delete what a killed ADD, or a container of this name before, has left. Raises Error
        when it is attached now."""
        try:
            entry = self._cache.read(endpoint)
        except Damaged:
            return
        except Foreign as error:
            raise Error(
                f"attach {endpoint.container} to {endpoint.network}: "
                f"{error} is the result of another container or network",
                hint="give the container a name without dashes",
            ) from None
        if entry is None:
            return
        if not entry.incomplete and cni_netns.may_be_in(entry, inode):
            raise Error(
                f"{endpoint.container} is attached to {endpoint.network} "
                f"as {endpoint.interface} already"
            )
        try:
            self._delete(network, entry.attachment, fd)
        except (Error, OSError) as error:
            warn(f"clear what is left of {endpoint.container}: {reason(error)}")

    # -- chains of plugins -------------------------------------------------------------------------

    def _add_chain(
        self, network: NetworkList, endpoint: Endpoint, version: str, fd: int
    ) -> dict[str, Any]:
        previous = None
        for plugin in network.plugins:
            try:
                result = self._call("ADD", network, plugin, endpoint, previous, fd)
                if result is None:
                    raise Error(f"cni plugin {plugin['type']} failed: it gave no result")
                previous = cni_convert.convert(result, version)
            except Error as error:
                raise _failed(plugin, "add") from error
            trace(f"cni:add:{plugin['type']}")
        assert previous is not None
        return previous

    def _delete(self, network: NetworkList | None, endpoint: Endpoint, fd: int) -> None:
        """DEL for the chain, with the lock held. Raises Failures when a plugin has failed."""
        try:
            entry = self._cache.read(endpoint)
        except Damaged:
            entry = None
        except Foreign:
            return  # so this one was never attached
        told = Endpoint(
            endpoint.network,
            endpoint.container,
            endpoint.interface,
            args=endpoint.args,
            capability_args=endpoint.capability_args,
        )
        if entry is not None and entry.config is not None:
            told.args = entry.attachment.args
            told.capability_args = entry.attachment.capability_args
            try:
                network = cni_list.parse(entry.config)
            except Error:
                pass  # what the caller knows, if anything
        told.netns = cni_netns.of(endpoint, entry)
        if network is None:
            if entry is not None:
                raise Error(f"detach {endpoint.container}: network {endpoint.network} is not known")
            self._forget(endpoint)
            return
        version = _version(network)
        previous = self._previous(entry, network, version)
        failed: list[BaseException] = []
        for plugin in reversed(network.plugins):
            try:
                self._call("DEL", network, plugin, told, previous, fd)
            except Error as error:
                if not _is_flushed(error):
                    failed.append(_caused(str(_failed(plugin, "delete")), error))
            trace(f"cni:del:{plugin['type']}")
        if failed:
            raise Failures(f"detach {endpoint.container} from {endpoint.network}", failed)
        self._forget(endpoint)
        trace("cni:deleted")

    def _forget(self, endpoint: Endpoint) -> None:
        try:
            self._cache.remove(endpoint)
        except OSError as error:
            raise Error("remove the CNI result") from error

    def _demote(self, endpoint: Endpoint) -> None:
        try:
            if self._entry(endpoint) is not None:
                self._cache.demote(endpoint)
            else:
                self._cache.remove(endpoint)
        except OSError as error:
            raise Error("mark the CNI result") from error

    def _undo(self, network: NetworkList, entry: Entry, fd: int) -> None:
        """DEL after a failed ADD, whose error is the one that counts."""
        entry.incomplete = True
        endpoint = entry.attachment
        try:
            self._delete(network, endpoint, fd)
        except (Error, OSError) as error:
            warn(f"undo a failed attachment: {reason(error)}")

    def _call(
        self,
        command: str,
        network: NetworkList,
        plugin: Mapping[str, Any],
        endpoint: Endpoint | None,
        previous: dict[str, Any] | None,
        fd: int = -1,
    ) -> Any:
        config = {**plugin, "name": network.name, "cniVersion": network.version}
        if previous is not None:
            config["prevResult"] = previous
        if endpoint is not None:
            enabled = plugin.get("capabilities") or {}
            given = endpoint.capability_args
            wanted = {key: given[key] for key, on in enabled.items() if on is True and key in given}
            if wanted:
                config["runtimeConfig"] = wanted
        return self._plugins.call(command, config, endpoint, fd)


def _endpoint(
    network: str,
    container: str,
    netns: str,
    interface: str,
    args: _Pairs | None,
    capability_args: dict[str, Any] | None,
) -> Endpoint:
    """What a command is about, with its names checked. Raises Error."""
    found = Endpoint(
        network, container, interface, netns=netns, args=args, capability_args=capability_args
    )
    found.check()
    return found


def _version(network: NetworkList) -> str:
    version = network.version or VERSIONS[0]
    if version not in VERSIONS:
        raise Error(
            f"use network {network.name}: there is no version {gojson.quote(version)} of CNI",
            hint=f"a configuration may name one of {', '.join(VERSIONS)}",
        )
    return version


def _is_flushed(error: Error) -> bool:
    """Whether a DEL found no rules to delete any more, which is the last thing it does.

    bridge and ptp fail then, and would at every repetition; podman looks for the same two texts,
    those of the two kinds of iptables.
    """
    import re

    return bool(
        re.search(
            r"Couldn't load target `CNI-[a-f0-9]{24}':No such file or directory|"
            r"Chain 'CNI-[a-f0-9]{24}' does not exist",
            reason(error),
        )
    )


def _failed(plugin: Mapping[str, Any], what: str) -> Error:
    """As libcni says it."""
    name = plugin.get("name")
    named = f" name={gojson.quote(name)}" if isinstance(name, str) and name else ""
    return Error(f"plugin type={gojson.quote(plugin['type'])}{named} failed ({what})")


def _caused(text: str, cause: BaseException) -> Error:
    error = Error(text)
    error.__cause__ = cause
    return error


def _stale(endpoint: Endpoint, cause: BaseException) -> Error:
    return _caused(
        f"failed to delete stale attachment {endpoint.container} {endpoint.interface}", cause
    )
