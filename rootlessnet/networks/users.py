"""Who uses a network: the containers of every instance of this user, and podman's.

<state directory of an instance>/containers/        rootlessnet.instance.containers

The networks belong to podman's storage, the instances to a static dir each, so any instance may
have containers on a network. A record that cannot be read counts as a user of every network: it is
safer to keep a network than to remove one in use.

podman knows its own containers, in a database that is its own; so podman is asked, where its
storage lists any.
"""

from __future__ import annotations

import os

from rootlessnet.config import containers
from rootlessnet.errors import Error
from rootlessnet.instance import containers as records
from rootlessnet.instance import paths
from rootlessnet.kernel import files
from rootlessnet.networks import storage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.networks.network import Network

_PATIENCE = 30.0


def users_of(network: Network) -> list[str]:
    """The ids of the containers on a network."""
    base = paths.base_directory()
    found = []
    for name in sorted(os.listdir(base)):
        if name.startswith(paths.NAME_PREFIX) and not name.endswith(".lock"):
            found += _users_in(paths.Instance(base, "", name), network)
    return found


def _users_in(instance: paths.Instance, network: Network) -> list[str]:
    import json

    found = []
    for id in records.names(instance):
        try:
            record = json.loads(files.read(records.path(instance, id), 1 << 20))
            is_user = network.name in record["networks"]
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError):
            is_user = True
        if is_user:
            found.append(id)
    return found


def podman_users() -> dict[str, list[str]]:
    """The ids of podman's containers, by the network they are on.

    Not to be called with a lock of the networks held. Raises Error when podman has containers and
    does not answer.
    """
    graphroot = containers.graphroot()[0]
    if not any(map(storage.records, storage.files(graphroot, "containers"))):
        return {}
    from rootlessnet.kernel import spawn

    program = spawn.find("podman")
    if program is None:
        raise Error("podman's storage has containers, and there is no podman to ask about them")
    command = [program, "--log-level=error", "ps", "--all", "--no-trunc"]
    status, text = spawn.run([*command, "--format", "{{.ID}}={{.Networks}}"], _PATIENCE)
    if status:
        raise Error(f"ask podman about its containers: {text.strip()}")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        container, _, names = line.partition("=")
        for name in names.split(","):
            found.setdefault(name.strip(), []).append(container[:12])
    return found
