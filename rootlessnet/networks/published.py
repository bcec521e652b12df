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

from rootlessnet.errors import Error, debug, reason
from rootlessnet.instance import containers
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
    """Let them lead to the container as it is now. Raises Error."""
    if record["publish"]:
        inside.outside(_request("follow", record))


def withdraw(record: dict[str, Any]) -> None:
    """Give them back."""
    if record["publish"]:
        try:
            inside.outside(_request("withdraw", record))
        except Error as error:
            debug(reason(error))  # they go with the record


def _request(what: str, record: dict[str, Any]) -> dict[str, Any]:
    v4, v6 = destination(record)
    return {
        "do": what,
        "id": record["id"],
        "rules": record["publish"],
        "v4": v4,
        "v6": v6,
        "netns": record["netns"]["path"],
    }


def destination(record: dict[str, Any]) -> tuple[str, str]:
    """The IPv4 and the IPv6 address by which the instance reaches a container, "" where there is
    none: those of its first network, bridges before others and internal networks last."""
    found = {4: "", 6: ""}
    for item in sorted(record["networks"].values(), key=_rank):
        if item["phase"] == containers.TEARDOWN:
            continue
        for text in containers.addresses(item):
            address = text.partition("/")[0]
            version = 6 if ":" in address else 4
            found[version] = found[version] or address
    return found[4], found[6]


def _rank(item: dict[str, Any]) -> tuple[bool, bool]:
    network = item["network"]
    return network.get("driver") != "bridge", bool(network.get("internal"))


def answer(instance: Instance, request: dict[str, Any]) -> Any:
    """Do it; outside. Raises Error."""
    from rootlessnet.ports import api, files, rules

    owner = api.container(request["id"])
    if request["do"] == "withdraw":
        return api.remove(instance, owner)
    wanted = [rules.from_list(fields) for fields in request["rules"]]
    target = api.behind_bridge(request["id"], request["v4"], request["v6"], request["netns"])
    if request["do"] == "reserve":
        api.remove(instance, owner)
        return [rule.as_list() for rule in api.add(instance, owner, wanted, target)]
    if not (target.v4 or target.v6):
        debug(f"ports of container {request['id']}: it has no address to lead to")
    there = [each["rule"] for each in files.read(instance) if each["owner"] == owner]
    api.retarget(instance, owner, target)
    api.add(instance, owner, [rule for rule in wanted if rule not in there], target)
    return None
