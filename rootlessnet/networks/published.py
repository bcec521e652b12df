"""The published ports of a container, at each of its changes.

    reserve     a setup begins: the ports are taken, or that is its failure; they lead nowhere yet
    follow      they lead to the addresses that it has now; those that were lost are taken again
    withdraw    before it is taken down

These run inside, with the containers' lock held, and have nothing to do for a container without
ports. The forwarder is asked by `answer`, in the process outside (rootlessnet.networks.inside).

Ports lead straight to the container: netavark and the CNI plugins are told nothing of them, so
there is no second address translation, and inside the instance a container is not reached by its
ports of the host. When the record of a container is gone its ports go too, whoever removed it: the
forwarder watches the records. So a withdrawal that cannot be told to it is not lost.
"""

from __future__ import annotations

from rootlessnet.drivers.slirp4netns import TAP
from rootlessnet.errors import Error, debug, reason
from rootlessnet.instance import containers
from rootlessnet.kernel import routes
from rootlessnet.networks import inside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.instance.paths import Instance


def reserve(record: dict[str, Any]) -> None:
    """Take the ports; the record gets those that were chosen. Raises Error, and has none then."""
    if record["publish"]:
        record["publish"] = inside.outside(_request("reserve", record))


def follow(record: dict[str, Any]) -> None:
    """Let them lead to the container as it is now, or nowhere. Raises Error."""
    if record["publish"]:
        inside.outside(_request("follow", record))


def check_reached(record: dict[str, Any]) -> None:
    """Raise Error when they lead nowhere."""
    if record["publish"] and not any(destination(record)[:2]):
        raise Error(
            "publish ports: the instance reaches no address of the container",
            hint="it reaches a bridge network that is not internal, or has names",
        )


def withdraw(record: dict[str, Any]) -> None:
    """Give them back."""
    if record["publish"]:
        try:
            inside.outside(_request("withdraw", record))
        except Error as error:
            debug(reason(error))  # they go with the record


def _request(what: str, record: dict[str, Any]) -> dict[str, Any]:
    v4, v6, keep = destination(record)
    return {
        "do": what,
        "id": record["id"],
        "rules": record["publish"],
        "v4": v4,
        "v6": v6,
        "keep": keep,
        "netns": record["netns"]["path"],
        "inode": record["netns"]["inode"],
    }


def destination(record: dict[str, Any]) -> tuple[str, str, bool]:
    """The IPv4 and the IPv6 address by which the instance reaches a container, "" where there is
    none, and whether the container has a way back to any client.

    Those of its first network; bridges come before others, and internal networks last.
    """
    found = {4: "", 6: ""}
    keep = True
    for item in sorted(record["networks"].values(), key=_rank):
        if item["phase"] == containers.TEARDOWN:
            continue
        for text in containers.addresses(item):
            address = text.partition("/")[0]
            version = 6 if ":" in address else 4
            if not found[version] and _is_reached(address):
                found[version] = address
                keep = keep and not item["network"].get("internal")
    return found[4], found[6], keep


def _rank(item: dict[str, Any]) -> tuple[bool, bool]:
    network = item["network"]
    return network.get("driver") != "bridge", bool(network.get("internal"))


def _is_reached(address: str) -> bool:
    """Whether the way to an address stays inside: where the instance has no address on a bridge, it
    is the default route, and somebody outside would be asked."""
    try:
        return routes.interface_to(address) != TAP
    except OSError:
        return False


def answer(instance: Instance, request: dict[str, Any]) -> Any:
    """Do it; outside. Raises Error."""
    from rootlessnet.ports import api, files, rules

    owner = api.container(request["id"])
    if request["do"] == "withdraw":
        return api.remove(instance, owner)
    wanted = [rules.from_list(fields) for fields in request["rules"]]
    target = api.behind_bridge(
        request["id"], request["v4"], request["v6"], request["netns"], request["inode"]
    )
    target.keep4 = target.keep6 = request["keep"]
    if request["do"] == "reserve":
        api.remove(instance, owner)
        return [rule.as_list() for rule in api.add(instance, owner, wanted, target)]
    if not (target.v4 or target.v6):
        debug(f"ports of container {request['id']}: it has no address to lead to")
    there = [each["rule"] for each in files.read(instance) if each["owner"] == owner]
    api.retarget(instance, owner, target)
    api.add(instance, owner, [rule for rule in wanted if rule not in there], target)
    return None
