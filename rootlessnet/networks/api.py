"""Named networks and the containers on them, for programs as for the commands.

    from rootlessnet.networks import api
    from rootlessnet.networks.connection import Connection
    from rootlessnet.networks.network import Network

    lab = api.create(Network("lab", labels={"for": "tests"}))
    print(lab.subnets[0].subnet, [network.name for network in api.list_all()])
    api.setup("web", [Connection("lab", aliases=["www"])], new=True)
    print(api.inspect_container("web")["Networks"]["lab"]["IPAddress"])
    api.teardown("web")
    api.remove("lab")

Networks: create, list_all, inspect, remove, prune. They are podman's: same files, same lock, same
backend, for the storage that podman's configuration names (HOME, XDG_*, CONTAINERS_CONF and
CONTAINERS_STORAGE_CONF count). A damaged file is skipped with a warning on stderr.

Containers: setup, teardown, reload, connect, disconnect, list_containers, inspect_container,
inspect_namespace, stats. They belong to an instance (`instance`, by default the one that the
commands use), which setup starts if need be. The calling process stays where it is: a child of it
goes inside.

Everything is checked before the first change. All raise rootlessnet.errors.Error, with podman's
words where podman has any.
"""

from __future__ import annotations

import os

from rootlessnet.errors import Error, Failures, reason, warn
from rootlessnet.instance import containers as records
from rootlessnet.instance import paths, start
from rootlessnet.networks import backend, definition, files, users
from rootlessnet.networks.files import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from rootlessnet.instance.paths import Instance
    from rootlessnet.instance.request import Requested
    from rootlessnet.networks.attachment import Attachment
    from rootlessnet.networks.connection import Connection
    from rootlessnet.networks.network import Network


def create(new: Network) -> Network:
    """Make a network and return it with all that it did not say filled in."""
    definition.check_reserved(new.name)
    choice = backend.choose()
    module, directory = choice.module, choice.module.directory()
    lock = f"{directory}/{module.LOCK}"
    if not os.path.exists(lock):
        # The lock file would be a trace of a command that was refused.
        from copy import deepcopy

        module.complete(deepcopy(new), _in_the_way(choice))
    choice.record()
    try:
        files.make_directory(directory)
        with Lock(lock, to_change=True):
            module.complete(new, _in_the_way(choice))
            path = f"{directory}/{new.name}{module.SUFFIX}"
            files.replace(path, module.encode(new).encode())
    except OSError as error:
        raise Error("write the network") from error
    return new


def list_all() -> list[Network]:
    """Every network, by name; the default one is always among them."""
    return [network for _, network in sorted(_read().items())]


def inspect(name: str) -> Network:
    """The network of this name, or whose id begins so."""
    return definition.find(_read(), name)


def remove(name: str, *, force: bool = False) -> Network:
    """Remove a network that nobody uses and return what it was.

    With force our containers are disconnected from it first; podman's own are podman's to remove.
    """
    choice = backend.choose()
    others = users.podman_users()
    if force:
        _disconnect_all(inspect(name), others)
    with _lock(choice):
        network = definition.find(_load(choice), name)
        if network.name == _default_name():
            raise Error(f"default network {network.name} cannot be removed")
        using = users.users_of(network) + others.get(network.name, [])
        if using:
            raise Error(
                f'"{network.name}" has associated containers with it: {", ".join(using)}: '
                "network is being used"
            )
        choice.record()
        _remove_file(choice, network)
    _remove_bridge(choice, network)
    return network


def _disconnect_all(network: Network, others: dict[str, list[str]]) -> None:
    if network.name == _default_name():
        return  # it stays in any case, as `remove` will say
    if network.name in others:
        raise Error(
            f'"{network.name}" has containers of podman: {", ".join(others[network.name])}',
            hint=f"podman network rm --force {network.name} removes them with it",
        )
    failed: list[BaseException] = []
    for instance in _instances():
        for record in records.records(instance):
            if network.name in record["networks"]:
                try:
                    disconnect(record["id"], network.name, instance=instance)
                except Error as error:
                    failed.append(error)
    if failed:
        raise Failures(f"disconnect containers from {network.name}", failed)


def _instances() -> list[Instance]:
    from rootlessnet.instance import view

    return view.all_instances()


def _remove_bridge_here(choice: backend.Choice, network: Network) -> None:
    from rootlessnet.networks import bridge, cni

    if choice.name == cni.NAME:
        from rootlessnet.networks import cni_run

        cni_run.remove_bridge(network)
    else:
        bridge.remove_unused(network.interface)


def _remove_bridge(choice: backend.Choice, network: Network) -> None:
    """Remove its bridge, which CNI's plugin leaves, from instances in which nothing is on it."""
    if network.driver != "bridge" or not network.interface:
        return
    from rootlessnet.networks import bridge, inside

    for instance in _instances():
        try:
            if bridge.is_in(instance, network.interface):
                inside.run(instance, lambda: _remove_bridge_here(choice, network))
        except (Error, OSError) as error:
            # The instance may have ended just now, and the bridge with it.
            if bridge.is_in(instance, network.interface):
                warn(f"remove bridge {network.interface}: {reason(error)}")


def prune() -> list[Network]:
    """Remove every network that no container uses, but for the default one."""
    choice = backend.choose()
    choice.record()
    others = users.podman_users()
    removed = []
    with _lock(choice):
        for name, network in sorted(_load(choice).items()):
            if name == _default_name() or name in others or users.users_of(network):
                continue
            try:
                _remove_file(choice, network)
            except Error as error:
                warn(f"remove network {name}: {reason(error)}")
                continue
            removed.append(network)
    for network in removed:
        _remove_bridge(choice, network)
    return removed


def _default_name() -> str:
    from rootlessnet.config import network as config

    return config.default_network()


def _lock(choice: backend.Choice) -> Lock:
    """The lock to change something; where there is no directory there is nothing to change."""
    directory = choice.module.directory()
    return Lock(f"{directory}/{choice.module.LOCK}", to_change=os.path.isdir(directory))


def _read() -> dict[str, Network]:
    choice = backend.choose()
    choice.record()
    with Lock(f"{choice.module.directory()}/{choice.module.LOCK}", to_change=False):
        return _load(choice)


def _load(choice: backend.Choice) -> dict[str, Network]:
    networks: dict[str, Network] = choice.module.load(choice.module.directory())
    default = choice.module.default()
    networks.setdefault(default.name, default)
    return networks


def _in_the_way(choice: backend.Choice) -> dict[str, Network]:
    """Every network whose bridge and subnets a new one cannot have."""
    networks = _load(choice)
    return {**networks, **users.without_a_file(networks)}


def _remove_file(choice: backend.Choice, network: Network) -> None:
    directory = choice.module.directory()
    try:
        os.unlink(f"{directory}/{choice.module.file_of(network, directory)}")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise Error("remove the network's file") from error


# -- containers ------------------------------------------------------------------------------------


def setup(
    id: str,
    networks: Iterable[Connection] = (),
    *,
    new: bool = False,
    pid: int = 0,
    netns: str = "",
    hostname: str = "",
    publish: Iterable[str] = (),
    instance: Instance | None = None,
    requested: Requested | None = None,
) -> dict[str, Any]:
    """Attach a container to networks, by default to the default one; its record
    (rootlessnet.instance.containers).

    Which network namespace: a new one, that of a process, or that of a path; one of the three.
    publish has rules as `-p` takes them. The instance is started if need be, with what is requested
    of it.
    """
    from rootlessnet.instance.request import Requested
    from rootlessnet.networks import connection, container_netns, containers, inside

    records.check(id)
    if (new, bool(pid), bool(netns)).count(True) != 1:
        raise Error("one of a new network namespace, a process and a path has to be given")
    kind = records.NEW if new else records.PID if pid else records.PATH
    wanted = container_netns.Wanted(kind, path=os.path.abspath(netns) if netns else "", pid=pid)
    if hostname:
        connection.check_alias(hostname)
    chosen = list(networks) or [connection.Connection(_default_name())]
    publications = _publications(publish)
    choice, attachments = _attachments(chosen)  # which may write the choice of a backend down
    where = instance or paths.find()
    result: dict[str, Any] = inside.run(
        where,
        lambda: containers.setup(
            where,
            id,
            wanted,
            attachments,
            backend=choice.name,
            hostname=hostname,
            publications=publications,
        ),
        undo=lambda: containers.teardown(where, id),
        requested=requested or Requested(),
    )
    _settle(where, result)
    return result


def _publications(texts: Iterable[str]) -> list[list[Any]]:
    """Rules as a container's record has them, as far as they can be checked by themselves."""
    wanted = list(texts)
    if not wanted:
        return []
    from rootlessnet.ports import rules

    return [rule.as_list() for rule in rules.parse_all(wanted)]


def teardown(id: str, *, instance: Instance | None = None) -> None:
    """Detach a container from everything and forget it; one that is not there is no error.

    Its namespace, and even the instance, may be gone. Raises Failures after all steps.
    """
    from rootlessnet.networks import containers, inside

    records.check(id)
    where = instance or paths.find()
    start.heal(where)  # of an instance that was killed as a whole nothing is left to tear down
    if not _is_known(where, id):
        return
    try:
        inside.run(where, lambda: containers.teardown(where, id))
    except Error:
        # The instance may have ended meanwhile, with everything in it.
        if os.path.lexists(where.directory):
            raise


def teardown_gone(*, instance: Instance | None = None) -> list[str]:
    """Tear down the containers whose network namespace is gone; their ids."""
    from rootlessnet.networks import containers, inside

    where = instance or paths.find()
    start.heal(where)
    if not records.names(where):
        return []
    return list(inside.run(where, lambda: containers.teardown_gone(where)))


def check(id: str, *, instance: Instance | None = None) -> list[str]:
    """What is not as it was set up about the networks of a container, in words."""
    from rootlessnet.networks import containers, inside

    where = instance or paths.find()
    _known(where, id)
    return list(inside.run(where, lambda: containers.check(where, id)))


def reload(id: str, *, instance: Instance | None = None) -> None:
    """Restore firewall rules, interfaces and ports of a container; IP and MAC stay."""
    from rootlessnet.networks import containers, inside

    where = instance or paths.find()
    record = _known(where, id)
    inside.run(where, lambda: containers.reload(where, id))
    _settle(where, record)


def connect(id: str, network: Connection, *, instance: Instance | None = None) -> dict[str, Any]:
    """Attach a container to one more network; its record."""
    from rootlessnet.networks import containers, inside

    where = instance or paths.find()
    choice, (attachment,) = _attachments([network])
    _known(where, id)
    result: dict[str, Any] = inside.run(
        where, lambda: containers.connect(where, id, attachment, choice.name)
    )
    _settle(where, result)
    return result


def disconnect(id: str, network: str, *, instance: Instance | None = None) -> None:
    """Detach a container from a network, which may have been removed meanwhile."""
    from rootlessnet.networks import containers, inside

    where = instance or paths.find()
    record = _known(where, id)
    name = network
    if name not in record["networks"]:
        name = inspect(network).name
    inside.run(where, lambda: containers.disconnect(where, id, name))


def list_containers(*, instance: Instance | None = None) -> list[dict[str, Any]]:
    """All containers of the instance, as `container ls --json` shows them."""
    where = instance or paths.find()
    start.heal(where)
    return [records.summary(record) for record in records.records(where)]


def inspect_container(id: str, *, instance: Instance | None = None) -> dict[str, Any]:
    """podman's NetworkSettings of a container."""
    from rootlessnet.networks import describe

    return describe.settings(_known(instance or paths.find(), id))


def inspect_namespace(
    *, pid: int = 0, netns: str = "", instance: Instance | None = None
) -> dict[str, Any]:
    """The same of a network namespace in the instance that somebody else has set up."""
    from rootlessnet.networks import container_netns, describe, inside

    kind = records.PID if pid else records.PATH
    wanted = container_netns.Wanted(kind, path=os.path.abspath(netns) if netns else "", pid=pid)

    def look() -> dict[str, Any]:
        fd = container_netns.open_wanted(wanted)
        try:
            return describe.joined(fd, wanted.path)
        finally:
            os.close(fd)

    result: dict[str, Any] = inside.run(instance or paths.find(), look)
    return result


def stats(id: str, *, instance: Instance | None = None) -> dict[str, Any]:
    """What went through the interfaces of a container: each one's counters and their sum."""
    from rootlessnet.networks import container_netns, describe, inside

    where = instance or paths.find()
    record = _known(where, id)

    def look() -> dict[str, Any]:
        fd = container_netns.open_again(record)
        if fd is None:
            raise Error(f"the network namespace of container {id} is gone")
        try:
            return describe.counters(id, fd)
        finally:
            os.close(fd)

    result: dict[str, Any] = inside.run(where, look)
    return result


def _attachments(wanted: Iterable[Connection]) -> tuple[backend.Choice, list[Attachment]]:
    """The backend that counts, and what is wanted of it, checked."""
    from rootlessnet.networks import connection

    choice = backend.choose()
    with Lock(f"{choice.module.directory()}/{choice.module.LOCK}", to_change=False):
        networks = _load(choice)
    attachments = connection.resolve(wanted, networks)
    connection.backend_limits(attachments, choice.name)
    choice.record()
    return choice, attachments


def _settle(instance: Instance, record: dict[str, Any]) -> None:
    if any(item["network"].get("dns_enabled") for item in record["networks"].values()):
        from rootlessnet.networks import aardvark

        aardvark.move(instance)


def _is_known(instance: Instance, id: str) -> bool:
    return os.path.lexists(records.path(instance, id))


def _known(instance: Instance, id: str) -> dict[str, Any]:
    records.check(id)
    record = records.read(instance, id)
    if record is None:
        raise Error(f"no container with ID {id} found: no such container")
    return record
