"""rootlessnet path: where the network namespace is, for nsenter and its like."""

from __future__ import annotations

from rootlessnet.cli import arguments
from rootlessnet.errors import Error
from rootlessnet.instance import paths, start, state

WHAT = "Print the path of the network namespace."


def main(argv: list[str]) -> int:
    given = arguments.read(argv, "path [OPTIONS]", WHAT)
    if given is None:
        return 0
    values, _ = given
    instance = paths.find(arguments.last(values, "static-dir"))
    start.heal(instance)
    holder = state.read_holder(instance)
    if holder is None and state.living_holder(instance):
        raise state.damaged(instance, state.HOLDER)
    if holder is None or not state.is_alive(holder.pid, holder.started):
        raise Error(
            f"find the network namespace: {instance.name} is not running",
            hint="rootlessnet enter starts it",
        )
    print(f"/proc/{holder.pid}/ns/net")
    return 0
