"""Give a network namespace the devices that an OCI bundle asks for: `linux.netDevices`.

    "netDevices": {"ens4": {}, "ens5": {"name": "eth%d"}}

The key is the name here, `name` the one there (the same if it is missing). The whole list is
checked before the first device moves, and when one cannot move, those before it come back.
"""

from __future__ import annotations

from rootlessnet.devices import loopback, names
from rootlessnet.devices.move import Move, open_target
from rootlessnet.devices.place import Place
from rootlessnet.errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class NetDevices:
    """What a bundle's config.json says about network devices, checked."""

    def __init__(self, devices: dict[str, str], is_private: bool) -> None:
        self.devices = devices
        """The name here and the name wanted there (the same, if none was given)."""
        self.is_private = is_private
        """Whether the container has a network namespace of its own, made for it."""


def read(bundle: str) -> NetDevices:
    """What the bundle's config.json asks for; raises Error when it is against the rules."""
    import json

    attempt = f"read {bundle}/config.json"
    try:
        with open(f"{bundle}/config.json", encoding="utf-8") as file:
            config = json.load(file, object_pairs_hook=_unique)
    except OSError as e:
        raise Error(f"read the bundle {bundle}") from e
    except Error as e:
        raise Error(attempt) from e
    except ValueError as e:
        raise Error(f"{attempt}: {e}") from e
    try:
        return _validate(config)
    except Error as e:
        raise Error(attempt) from e


def apply(bundle: str, path: str, then: Callable[[], None] | None = None) -> list[tuple[str, str]]:
    """Move the bundle's devices into the namespace of path; their names here and there.

    A namespace that is the container's own, not one it joins, also gets lo up. When all are there,
    `then` is called, and if it raises they come back. Raises Error with nothing changed.
    """
    wanted = read(bundle)
    done: list[Move] = []
    moved: list[tuple[str, str]] = []
    with Place.own() as source, open_target(path) as target:
        moves = [Move(source, target, name, new) for name, new in wanted.devices.items()]
        try:
            for name, each in zip(wanted.devices, moves, strict=True):
                moved.append((name, each.run()))
                done.append(each)
            if wanted.is_private:
                loopback.strategy("loopback").initialize(target)
            if then:
                then()
        except BaseException:
            for each in reversed(done):
                each.undo()
            raise
    return moved


def is_applied(bundle: str, path: str) -> bool:
    """Whether somebody has moved the bundle's devices before us: none is here, and all whose names
    are known are there. Raises Error."""
    wanted = read(bundle)
    with Place.own() as source, open_target(path) as target:
        there = [new for new in wanted.devices.values() if not names.is_pattern(new)]
        return not any(map(source.links.get, wanted.devices)) and all(map(target.links.get, there))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise Error(f"{key!r} is there twice")
        found[key] = value
    return found


def _validate(config: Any) -> NetDevices:
    linux = _object(config, "the configuration").get("linux")
    linux = _object({} if linux is None else linux, "linux")
    devices = linux.get("netDevices")
    devices = _object({} if devices is None else devices, "linux.netDevices")
    namespaces = linux.get("namespaces") or []
    if not isinstance(namespaces, list):
        raise Error("linux.namespaces is not a list")
    network = [n for n in namespaces if isinstance(n, dict) and n.get("type") == "network"]
    if devices and not network:
        raise Error("unable to move network devices without a NET namespace")
    wanted: dict[str, str] = {}
    for name, device in devices.items():
        bad = names.problem(name)
        if bad:
            raise Error(f"invalid network device name {name!r}: {bad}")
        device = _object({} if device is None else device, f"linux.netDevices.{name}")
        new = device.get("name")
        new = "" if new is None else new
        if not isinstance(new, str):
            raise Error(f"linux.netDevices.{name}.name is not a string")
        bad = names.pattern_problem(new) if new else ""
        if bad:
            raise Error(f"invalid network device name {new!r}: {bad}")
        new = new or name
        if new in wanted.values() and not names.is_pattern(new):
            raise Error(f"two network devices are to be named {new!r}")
        wanted[name] = new
    return NetDevices(wanted, bool(network) and not network[0].get("path"))


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Error(f"{what} is not an object")
    return value
