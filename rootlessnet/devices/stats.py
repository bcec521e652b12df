"""Counters of a network device, from the container's point of view.

What the host's end of a veth pair received, the container sent: so rx and tx are swapped.
"""

from __future__ import annotations

from rootlessnet.errors import Error

_COUNTERS = ("bytes", "packets", "errors", "dropped")

KEYS = tuple(f"{way}_{counter}" for way in ("rx", "tx") for counter in _COUNTERS)
"""The counters of a result, in order."""


def stats(name: str) -> dict[str, str | int]:
    """The counters of a container whose device's host end has this name.

    An empty name gives a result with an empty name and zeros: a container without a network has
    none to count. Raises Error when there is no such device.
    """
    result: dict[str, str | int] = {"name": name, **dict.fromkeys(KEYS, 0)}
    if not name:
        return result
    from rootlessnet.devices.links import Links

    with Links() as links:
        link = links.get(name, stats=True)
    if link is None:
        raise Error(f"read the counters of {name}: there is no such device")
    for counter in _COUNTERS:
        result[f"rx_{counter}"] = link.stats[f"tx_{counter}"]
        result[f"tx_{counter}"] = link.stats[f"rx_{counter}"]
    return result
