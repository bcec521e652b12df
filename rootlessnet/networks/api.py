"""Named networks, for programs as for the commands: create, list_all, inspect, remove, prune.

    from rootlessnet.networks import api
    from rootlessnet.networks.network import Network, Subnet

    made = api.create(Network("lab", labels={"for": "tests"}))
    print(made.subnets[0].subnet, [network.name for network in api.list_all()])
    api.remove("lab")

They are podman's networks: same files, same lock, same backend, for the storage that podman's
configuration names (HOME, XDG_*, CONTAINERS_CONF and CONTAINERS_STORAGE_CONF count). Everything is
checked before the first change. All of them raise rootlessnet.errors.Error with podman's words; a
damaged file is skipped with a warning on stderr.
"""

from __future__ import annotations

import os

from rootlessnet.errors import Error, reason, warn
from rootlessnet.networks import backend, definition, files, users
from rootlessnet.networks.files import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
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

        module.complete(deepcopy(new), _load(choice))
    choice.record()
    try:
        files.make_directory(directory)
        with Lock(lock, to_change=True):
            module.complete(new, _load(choice))
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


def remove(name: str) -> Network:
    """Remove a network that nobody uses and return what it was."""
    choice = backend.choose()
    others = users.podman_users()
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
    return network


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


def _remove_file(choice: backend.Choice, network: Network) -> None:
    directory = choice.module.directory()
    try:
        os.unlink(f"{directory}/{choice.module.file_of(network, directory)}")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise Error("remove the network's file") from error
