"""rootlessnet status: what runs, how it is connected, and who uses it."""

from __future__ import annotations

from rootlessnet.cli import arguments, published, tree
from rootlessnet.cli.text import printable
from rootlessnet.instance import paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OPTIONS = (
    *arguments.COMMON,
    arguments.JSON,
    arguments.Option("all", "every instance of this user"),
)
WHAT = "Show the instance: state, network, driver, namespace, leases."


def main(argv: list[str]) -> int:
    given = arguments.read(argv, "status [OPTIONS]", WHAT, OPTIONS)
    if given is None:
        return 0
    values, _ = given
    from rootlessnet.instance.view import all_instances
    from rootlessnet.ports import view

    if "all" in values:
        documents = [view.status(instance) for instance in all_instances()]
    else:
        documents = [view.status(paths.find(arguments.last(values, "static-dir")))]
    if "json" in values:
        import json

        print(json.dumps(documents if "all" in values else documents[0], indent=2))
    elif not documents:
        print("no instance")
    else:
        for number, document in enumerate(documents):
            if number:
                print()
            print(describe(document))
            if document["driver"] is not None:
                tree.show(grow(document))
    return 0


def describe(document: dict[str, Any]) -> str:
    """The document for people."""
    lines = [f"{document['name']}: {document['state']}", f"  static dir  {document['static_dir']}"]
    driver = document["driver"]
    if driver is None:
        return "\n".join(lines)
    lines += [
        f"  network     {driver['address']} in {driver['cidr']}, gateway {driver['gateway']}, "
        f"DNS {driver['dns']}",
        f"  driver      {driver['name']} {driver['version']}, "
        + (f"pid {driver['pid']}" if driver["pid"] else "not running")
        + f", mtu {driver['mtu']}, IPv6 {'on' if driver['ipv6'] else 'off'}"
        + (f", restarts {driver['restarts']}" if driver["restarts"] else ""),
        f"  netns       {document['netns']['path']} (inode {document['netns']['inode']})",
        f"  supervisor  {document['supervisor']['pid'] or 'not running'}",
    ]
    if document["ports"]:
        lines.append(f"  ports       {len(document['ports'])}: rootlessnet port ls")
    lines.append(f"  leases      {len(document['leases']) or 'none'}")
    lines += [
        f"    {lease['id']:<9} {printable(lease['command']) or lease['kind']}"
        for lease in document["leases"]
    ]
    return "\n".join(lines)


def grow(document: dict[str, Any]) -> tree.Node:
    """How it is connected: host, driver, tap0, bridges, containers, published ports."""
    import socket

    driver = document["driver"]
    root = tree.Node(f"host {socket.gethostname()}")
    tap = root.add(driver["name"]).add(f"tap0 {driver['address']}")
    bridges: dict[str, tree.Node] = {}
    for container in document["containers"]:
        shown = f"{container['id']}" + _unless_ready(container["state"])
        if not container["networks"]:
            tap.add(f"{shown} on no network")
        for name, item in container["networks"].items():
            bridge = f"{item['bridge'] or '-'} {name}"
            if bridge not in bridges:
                bridges[bridge] = tap.add(bridge)
            node = bridges[bridge].add(" ".join([shown, item["interface"], *item["addresses"]]))
            if name == next(iter(container["networks"])):
                _add_ports(node, document, container["id"])
    _add_ports(tap, document, driver["address"])
    return root


def _unless_ready(state: str) -> str:
    return "" if state == "ready" else f" ({state})"


def _add_ports(node: tree.Node, document: dict[str, Any], target: str) -> None:
    here = [port for port in document["ports"] if port["target"] == target]
    for line in published.lines(here, " -> "):
        node.add(line)
