"""Publish ports of an instance: what commands and the container code call.

    taken = start.use(instance, requested)            the instance runs, and keeps running meanwhile
    api.add(instance, "container:ID", rules, target)  all of the rules, or an Error and none
    api.retarget(instance, "container:ID", target)    its addresses are others now
    api.remove(instance, "container:ID")              no more

The owner says when rules go: "user" when they are removed, "container:ID" and "named:NAME" with the
record of that container or named lease, and those of `hold` with the last process that has its
descriptor. Without a target a rule leads to the instance's own address. The listing needs no
forwarder, but for the numbers of open connections.
"""

from __future__ import annotations

import os
import time

from rootlessnet.errors import Error, warn
from rootlessnet.instance import portkeeper, start, state
from rootlessnet.ports import control, files, rules
from rootlessnet.ports.target import PRESERVE, SNAT, Target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from rootlessnet.instance.paths import Instance
    from rootlessnet.ports.rules import Rule

USER = files.USER
_START_SECONDS = 10.0
_SECONDS = 60.0
_LISTING_SECONDS = 0.2
_PAUSE = 0.003


def container(identity: str) -> str:
    """The owner of a container's ports."""
    return f"{files.CONTAINER}:{identity}"


def named(name: str) -> str:
    """The owner of the ports of a named lease."""
    return f"{files.NAMED}:{name}"


def behind_bridge(identity: str, v4: str, v6: str, netns: str = "", inode: int = 0) -> Target:
    """Where a container's rules lead: its addresses ("" where it has none) and, if they are known,
    path (inside the instance) and inode number of its network namespace. Without addresses they
    lead nowhere: TCP is refused."""
    return Target(v4, v6, local=False, name=identity, netns=netns, inode=inode)


def add(
    instance: Instance,
    owner: str,
    wanted: Sequence[Rule],
    target: Target | None = None,
    *,
    source_ip: str = "",
) -> list[Rule]:
    """Publish rules of an owner; the rules with the ports that were chosen. Raises Error, and then
    none of them is published. The caller has a lease, so that the instance stays."""
    if not wanted:
        return []
    if target is None:
        _check(instance, wanted, source_ip)
    answer = _ask(
        instance,
        {
            "do": "add",
            "owner": owner,
            "rules": [rule.as_list() for rule in wanted],
            "target": target.as_dict() if target else None,
            "source_ip": source_ip,
        },
    )
    for text in answer.get("warnings", []):
        warn(text)
    return [rules.from_list(one) for one in answer["rules"]]


def remove(instance: Instance, owner: str, which: Sequence[Rule] | None = None) -> int:
    """Withdraw an owner's rules, all or those; how many there were. Raises Error."""
    if not _mine(instance, owner):
        return 0
    chosen = None if which is None else [rule.as_list() for rule in which]
    return int(_ask(instance, {"do": "remove", "owner": owner, "rules": chosen})["removed"])


def retarget(instance: Instance, owner: str, target: Target) -> int:
    """Let an owner's rules lead elsewhere; how many. Open connections go on. Raises Error."""
    if not _mine(instance, owner):
        return 0
    request = {"do": "retarget", "owner": owner, "target": target.as_dict()}
    answer = _ask(instance, request)
    for text in answer.get("warnings", []):
        warn(text)
    return int(answer["retargeted"])


def listing(instance: Instance, some: Sequence[Rule] | None = None) -> list[dict[str, Any]]:
    """One object for each published port, or each of some rules, as `status --json` has them.
    `connections` and `source_ip_lost` are there where the forwarder tells them at once."""
    found = _found(instance)
    if some is not None:
        found = [each for each in found if each[0]["rule"] in some]
    counts, lost = _told(instance) if found else ({}, {})
    entries = []
    for record, name, how in found:
        rule = record["rule"]
        key = tuple(rule.as_list())
        mine = rule.entries(name)
        for entry in mine:
            entry["source_ip"] = how
            if key in lost:
                entry["source_ip_lost"] = lost[key]
        for entry, count in zip(mine, counts.get(key, ()), strict=False):
            entry["connections"] = count
        entries += mine
    return entries


def _told(
    instance: Instance,
) -> tuple[dict[tuple[Any, ...], list[int]], dict[tuple[Any, ...], dict[str, str]]]:
    """By rule, what the forwarder knows: the open connections of each port, and for which clients
    the address is not kept, and why. Nothing when it is not there."""
    import json

    try:
        with control.connect(files.path(instance, files.SOCKET), _LISTING_SECONDS) as connection:
            connection.sendall(b'{"do": "connections"}\n')
            reply = b""
            while not reply.endswith(b"\n"):
                chunk = connection.recv(1 << 16)
                if not chunk:
                    return {}, {}
                reply += chunk
        answer = json.loads(reply)
        return (
            {tuple(rule): counts for rule, counts in answer["connections"]},
            {tuple(rule): lost for rule, lost in answer["lost"]},
        )
    except (OSError, ValueError, KeyError):
        return {}, {}


def records(instance: Instance) -> list[tuple[str, Rule, str]]:
    """(owner, rule, name of the target) of every rule, as they are recorded."""
    return [(record["owner"], record["rule"], name) for record, name, _ in _found(instance)]


def _found(instance: Instance) -> list[tuple[dict[str, Any], str, str]]:
    """(record, name of the target, source_ip) of every rule."""
    recorded = files.read(instance)
    running = state.read(instance) if recorded else None
    own, by_slirp, default = "", False, PRESERVE
    if running:
        own, by_slirp = str(running["driver"]["address"]), _by_slirp(running)
        default = str(running["driver"]["options"].get("source_ip", PRESERVE))
    found = []
    for record in recorded:
        if record["target"] is None:
            name, how = own, PRESERVE if by_slirp else ""
        else:
            name, how = str(record["target"].get("name", "")), ""
        found.append((record, name, how or str(record.get("source_ip") or default)))
    return found


def hold(instance: Instance, wanted: Sequence[Rule], *, source_ip: str = "") -> int:
    """Publish rules that go with this process and a descriptor, which the caller owns: when both
    the process and the last one that has the descriptor have ended, in whatever way, they are
    withdrawn. Raises Error."""
    owner = files.lease_of_us()
    path = files.fifo(instance, owner)
    fd = -1
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        os.mkfifo(path, 0o600)
        # Both ways: it need not wait for the reader, and outlives one.
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        add(instance, owner, wanted, source_ip=source_ip)
    except BaseException as error:
        if fd >= 0:
            os.close(fd)
        try:
            os.unlink(path)
        except OSError:
            pass
        if isinstance(error, OSError):
            raise Error("publish ports") from error
        raise
    return fd


def _mine(instance: Instance, owner: str) -> bool:
    return any(record["owner"] == owner for record in files.read(instance))


def _by_slirp(running: dict[str, Any]) -> bool:
    """Whether slirp4netns forwards what leads to a running instance itself, by its record."""
    return bool(running["driver"]["options"].get("port_handler") == "slirp4netns")


def _check(instance: Instance, wanted: Sequence[Rule], source_ip: str) -> None:
    """What can be said of ports of the instance itself without the forwarder."""
    running = state.read(instance)
    if running and _by_slirp(running):
        from rootlessnet.ports import slirp

        if source_ip == SNAT:
            raise Error(
                f"publish {wanted[0]}: port_handler=slirp4netns cannot hide the client's address",
                hint="leave port_handler away",
            )
        for rule in wanted:
            slirp.check(rule)


def _ask(instance: Instance, request: dict[str, Any]) -> dict[str, Any]:
    import json

    data = json.dumps(request).encode() + b"\n"
    if len(data) > control.MAX_LINE:
        raise Error("publish ports: these are too many rules at once", hint="use a range")
    with _connect(instance) as connection:
        try:
            connection.sendall(data)
            reply = b""
            while not reply.endswith(b"\n"):
                chunk = connection.recv(1 << 16)
                if not chunk:
                    raise ConnectionResetError(104, "the forwarder has gone away")
                reply += chunk
        except OSError as error:
            raise Error(
                f"ask the port forwarder: {error.strerror or error}",
                hint="run it again; rootlessnet logs shows what has happened",
            ) from None
    answer: dict[str, Any] = json.loads(reply)
    if "error" in answer:
        raise Error(answer["error"], hint=answer.get("hint", ""))
    return answer


def _connect(instance: Instance) -> Any:
    """A connection to the forwarder, which is started if need be."""
    path = files.path(instance, files.SOCKET)
    deadline = time.monotonic() + _START_SECONDS
    wanted = 0.0
    while True:
        try:
            return control.connect(path, _SECONDS)
        except OSError as error:
            if time.monotonic() > deadline:
                raise Error(
                    "start the port forwarder: no answer",
                    hint="see why: rootlessnet logs",
                ) from error
        if time.monotonic() > wanted:
            # Asked for again now and then: the one that was there may have been about to end.
            wanted = time.monotonic() + 1.0
            start.heal(instance)
            try:
                portkeeper.want(instance)
            except OSError as error:
                raise Error("ask for the port forwarder") from error
        time.sleep(_PAUSE)
