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
from rootlessnet.networks.network import from_document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from rootlessnet.networks.network import Network

_PATIENCE = 30.0
_NO_SUCH_CONTAINER = 1


def users_of(network: Network) -> list[str]:
    """The ids of the containers on a network."""
    base = paths.base_directory()
    found = []
    for name in sorted(os.listdir(base)):
        if name.startswith(paths.NAME_PREFIX) and not name.endswith(".lock"):
            found += _users_in(paths.Instance(base, "", name), network)
    return found


def without_a_file(networks: Mapping[str, Network]) -> dict[str, Network]:
    """Networks on which containers of our instance are still, but whose files others have removed
    or replaced, as podman does that knows nothing of our containers. The keys are no names.

    Other instances may be of another storage, with networks of its own.
    """
    found = {}
    for record in records.records(paths.find()):
        for item in record["networks"].values():
            try:
                network = from_document(item["network"])
            except ValueError:
                continue
            present = networks.get(network.name)
            if present is None or present.interface != network.interface:
                network.id = ""
                found[f"{network.name} of {record['id']}"] = network
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
    stored = [
        record
        for path in storage.files(graphroot, "containers")
        for record in storage.records(path)
    ]
    if not stored:
        return {}
    from rootlessnet.kernel import spawn

    program = spawn.find("podman")
    if program is None:
        raise Error("podman's storage has containers, and there is no podman to ask about them")
    command = [program, "--log-level=fatal", "ps", "--all", "--no-trunc"]
    status, text = spawn.run([*command, "--format", "{{.ID}}={{.Networks}}"], _PATIENCE)
    if status:
        text = _one_by_one(program, stored, text)
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        container, _, names = line.partition("=")
        for name in names.split(","):
            found.setdefault(name.strip(), []).append(container[:12])
    return found


def _one_by_one(program: str, stored: list[Any], problem: str) -> str:
    """What `podman ps` would have said, from `podman inspect` of each container.

    `ps` gives up at a container that was started on the other side of `rootlessnet enter`, whose
    network namespace it cannot join; `inspect` passes over that.
    """
    from rootlessnet.kernel import spawn

    text = ""
    template = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}},{{end}}"
    for record in stored:
        id = record.get("id") if isinstance(record, dict) else None
        if not isinstance(id, str) or not id:
            raise Error(f"ask podman about its containers: {problem.strip()}")
        common = [program, "--log-level=fatal", "container"]
        status, networks = spawn.run([*common, "inspect", "--format", template, id], _PATIENCE)
        if not status:
            text += f"{id}={networks.strip()}\n"
        elif spawn.run([*common, "exists", id], _PATIENCE)[0] != _NO_SUCH_CONTAINER:
            raise Error(f"ask podman about its containers: {problem.strip()}")
        # Else it is buildah's, which has no networks, or was removed just now.
    return text
