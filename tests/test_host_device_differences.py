"""Every case with Debian's host-device and with ours: what differs is in the table, or it fails.

The table is in docs/host-device.md, for users to read: case, what differs, both behaviours, and
the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from device_support import DEVICE, IFNAME, MAC, PLUGIN, REFERENCE, Answer, World

DOCUMENT = Path(__file__).resolve().parent.parent / "docs/host-device.md"
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0")

# A step does something to the world, and returns an answer if it called the plugin.
Step = Callable[[World, str], Answer | None]
CASES: dict[str, list[Step]] = {}

DEVICE_CONFIG = {"device": DEVICE}
STATIC = {
    "type": "static",
    "addresses": [
        {"address": "10.9.0.2/24", "gateway": "10.9.0.1"},
        {"address": "2001:db8:9::2/64", "gateway": "2001:db8:9::1"},
    ],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.77.0.0/16", "gw": "10.9.0.9"}, {"dst": "::/0"}],
    "dns": {"nameservers": ["192.0.2.1"]},
}


def case(name: str, *steps: Step) -> None:
    """Add a case."""
    assert name not in CASES
    CASES[name] = list(steps)


def call(command: str, config: dict[str, Any] | str | None = None, **environment: Any) -> Step:
    """Call the plugin; callables among the values get the world."""

    def step(world: World, plugin: str) -> Answer:
        filled = {key: v(world) if callable(v) else v for key, v in environment.items()}
        given = config
        if isinstance(given, dict):
            given = {key: v(world) if callable(v) else v for key, v in given.items()}
        return world.call(command, given, plugin=plugin, **filled)

    return step


def add(config: dict[str, Any] | None = None, **environment: Any) -> Step:
    return call("ADD", DEVICE_CONFIG if config is None else config, **environment)


def delete(config: dict[str, Any] | None = None, **environment: Any) -> Step:
    return call("DEL", DEVICE_CONFIG if config is None else config, **environment)


def host(*lines: str) -> Step:
    return lambda world, _: world.host.ip(*lines)


def container(*lines: str) -> Step:
    return lambda world, _: world.container.ip(*lines)


def script(text: str) -> Step:
    return lambda world, _: world.script(text)


def plugin(name: str, text: str) -> Step:
    def step(world: World, _: str) -> None:
        world.add_plugin(name, text)

    return step


def raw(**fields: Any) -> str:
    """A configuration that is exactly this."""
    return json.dumps(fields)


HOST_LOCAL: Callable[[World], Any] = World.host_local
PREFIXED = {"cniVersion": "1.0.0", "name": "test"}

# --- protocol ---
case("version", call("VERSION", "", CNI_CONTAINERID=None, CNI_NETNS=None, CNI_IFNAME=None))
case("no-command", call("", ""))
case("unknown-command", call("FOO", DEVICE_CONFIG))
case("env-add", add(CNI_CONTAINERID=None, CNI_NETNS=None, CNI_IFNAME=None, CNI_PATH=None))
case("env-del", delete(CNI_CONTAINERID=None, CNI_NETNS=None, CNI_IFNAME=None, CNI_PATH=None))
case("env-check", call("CHECK", {}, CNI_NETNS="", CNI_IFNAME=""))
case("containerid", add(CNI_CONTAINERID="@"))
case("ifname-long", add(CNI_IFNAME="a234567890123456"))
case("ifname-dots", add(CNI_IFNAME=".."))
case("ifname-slash", add(CNI_IFNAME="a/b"))
case("ifname-colon", add(CNI_IFNAME="a:b"))
case("ifname-space", add(CNI_IFNAME="a b"))
case("env-before-config", call("ADD", "", CNI_IFNAME=".."))
case("config-empty", call("ADD", ""))
case("config-truncated", call("ADD", '{"cniVersion"'))
case("config-garbage", call("ADD", "{x}"))
case("config-array", call("ADD", "[]"))
case("name-missing", call("ADD", raw(cniVersion="1.0.0")))
case("name-invalid", call("ADD", raw(cniVersion="1.0.0", name="-n")))
case("name-number", call("ADD", raw(cniVersion="1.0.0", name=1)))
case("version-unknown", add({"cniVersion": "9.0.0"}))
case("version-number", add({"cniVersion": 1}))
case("version-unset", call("ADD", raw(name="test", device=DEVICE, ipam=STATIC)))
case("version-word-check", call("CHECK", {"cniVersion": "x"}))

# --- which device ---
case("selector-none", add({}))
case("device-number", add({"device": 3}))
case("device-unknown", add({"device": "rnnone"}))
case("device-lo", add({"device": "lo"}))
case("runtime-config-list", add({"runtimeConfig": []}))
case("hwaddr-invalid", add({"hwaddr": "zz"}))
case("hwaddr-unknown", add({"hwaddr": "02:00:00:00:00:99"}))
case("kernelpath-relative", add({"kernelpath": "foo"}))
case("kernelpath-outside", add({"kernelpath": "/foo"}))
case("kernelpath-missing", add({"kernelpath": "/sys/devices/none"}))
case("pci-unknown", add({"pciBusID": "0000:00:1f.9"}))
case("device-id-unknown", add({"runtimeConfig": {"deviceID": "0000:00:1f.9"}}))

PCI = "0000:00:1f.6"
BUS = f"""
mount -t tmpfs bus /sys/bus
mkdir -p /sys/bus/pci/devices/{PCI} /sys/bus/pci/drivers/e1000e /sys/bus/pci/drivers/vfio-pci
"""
DRIVER = f"ln -s ../../drivers/e1000e /sys/bus/pci/devices/{PCI}/driver"
VFIO = f"ln -s ../../drivers/vfio-pci /sys/bus/pci/devices/{PCI}/driver"
NET = f"mkdir -p /sys/bus/pci/devices/{PCI}/net/{DEVICE}"
VIRTIO = f"mkdir -p /sys/bus/pci/devices/{PCI}/virtio0/net/{DEVICE}"
AUXILIARY = f"mkdir -p /sys/bus/auxiliary/devices/mlx5_core.sf.2/net/{DEVICE}"
KERNEL = f"mount -t tmpfs devices /sys/devices; mkdir -p /sys/devices/pci0/net/{DEVICE}"


def on_bus(name: str, config: dict[str, Any], *lines: str) -> None:
    case(name, script(BUS + "\n".join(lines)), add(config), delete(config))


on_bus("hwaddr", {"hwaddr": MAC})
on_bus("hwaddr-dashes", {"hwaddr": MAC.replace(":", "-").upper()})
on_bus("kernelpath", {"kernelpath": "/sys/devices/pci0"}, KERNEL)
on_bus("kernelpath-empty", {"kernelpath": "/sys/devices/pci0"}, KERNEL, "rmdir /sys/devices/*/*/*")
on_bus("pci", {"pciBusID": PCI}, DRIVER, NET)
on_bus("pci-virtio", {"pciBusID": PCI}, DRIVER, VIRTIO)
on_bus("pci-no-net", {"pciBusID": PCI}, DRIVER)
on_bus("pci-no-driver", {"pciBusID": PCI}, NET)
on_bus("device-id", {"runtimeConfig": {"deviceID": PCI}}, DRIVER, NET)
on_bus("device-id-auxiliary", {"runtimeConfig": {"deviceID": "mlx5_core.sf.2"}}, AUXILIARY)
on_bus("device-and-pci", {"device": DEVICE, "pciBusID": PCI}, DRIVER)
on_bus("dpdk", {"pciBusID": PCI}, VFIO)
on_bus("dpdk-device", {"device": DEVICE, "pciBusID": PCI}, VFIO)
on_bus("dpdk-ipam", {"pciBusID": PCI, "ipam": HOST_LOCAL}, VFIO)
on_bus("dpdk-0.1.0", {"cniVersion": "0.1.0", "pciBusID": PCI}, VFIO)

# --- the network namespace ---
case("netns-missing", add(CNI_NETNS="/run/netns/rn-none"))
case("netns-file", add(CNI_NETNS="/etc/passwd"))
case("netns-own-add", add(CNI_NETNS="/proc/self/ns/net", CNI_IFNAME="rnother"))
case("netns-own-del", delete(CNI_NETNS="/proc/self/ns/net", CNI_IFNAME="rnother"))
case(
    "netns-own-override",
    add(CNI_NETNS="/proc/self/ns/net", CNI_NETNS_OVERRIDE="1", CNI_IFNAME="rnother"),
    delete(CNI_NETNS="/proc/self/ns/net", CNI_NETNS_OVERRIDE="TRUE", CNI_IFNAME="rnother"),
)

# --- ADD and DEL ---
for version in VERSIONS:
    case(f"add-{version}", add({"cniVersion": version, "device": DEVICE}))
    config = {
        "cniVersion": version,
        "device": DEVICE,
        "ipam": STATIC,
        "dns": {"nameservers": ["192.0.2.53"], "search": ["example.com"]},
    }
    case(f"ipam-{version}", add(config), delete({**config, "ipam": {"type": "static"}}))
case("cycle", add(), delete(), add(), delete())
case("same-name", add(CNI_IFNAME=DEVICE), delete(CNI_IFNAME=DEVICE))
case("add-up", host(f"link set {DEVICE} up"), add(), delete())
case("add-twice", add(), add())
LEASE = {"device": DEVICE, "ipam": HOST_LOCAL}
case("lease", add(LEASE), delete(LEASE))
UP = host(f"link set {DEVICE} up", f"addr add 192.0.2.7/24 dev {DEVICE}")
case(
    "add-conflict",
    UP,
    container(f"link add {IFNAME} address 02:00:00:00:00:03 type ifb"),
    add(),
    delete(),
)
case("ipam-missing", UP, add({"device": DEVICE, "ipam": {"type": "rn-none"}}))
case("ipam-slash", UP, add({"device": DEVICE, "ipam": {"type": "a/b"}}))
case("ipam-type-number", UP, add({"device": DEVICE, "ipam": {"type": 1}}))
FAILING = {"device": DEVICE, "ipam": {"type": "failing"}}
case(
    "ipam-fails",
    UP,
    plugin("failing", """echo '{"code": 11, "msg": "later", "details": "x"}'; exit 1"""),
    add(FAILING),
)
case("ipam-fails-silently", UP, plugin("failing", "exit 3"), add(FAILING))
case("ipam-fails-stderr", UP, plugin("failing", "echo oh >&2; exit 3"), add(FAILING))
case("ipam-fails-garbage", UP, plugin("failing", "echo oh; exit 3"), add(FAILING))
case("ipam-garbage", UP, plugin("failing", "echo oh"), add(FAILING))
case("ipam-empty", UP, plugin("failing", """echo '{"cniVersion": "1.0.0"}'"""), add(FAILING))
case("ipam-nothing", UP, plugin("failing", "true"), add(FAILING))
NO_WAY = {
    "type": "static",
    "addresses": [{"address": "10.9.0.2/24"}],
    "routes": [{"dst": "10.77.0.0/16", "gw": "198.51.100.1"}],
}
case("route-fails", UP, add({"device": DEVICE, "ipam": NO_WAY}))
SECOND = {"type": "static", "addresses": [{"address": "10.9.0.2/24"}, {"address": "10.9.0.2/24"}]}
case("address-fails", UP, add({"device": DEVICE, "ipam": SECOND}))
case("dns-number", add({"device": DEVICE, "dns": 3}))
case(
    "ipv6-off",
    lambda world, _: (
        world.container.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
        and None
    ),
    add({"device": DEVICE, "ipam": STATIC}),
)
case("del-repeated", add(), delete(), delete())
case("del-repeated-lease", add(LEASE), delete(LEASE), delete(LEASE))
case("del-netns-unset", add(LEASE), delete(LEASE, CNI_NETNS=None))
case("del-netns-missing", add(LEASE), delete(LEASE, CNI_NETNS="/run/netns/rn-none"))
case("del-netns-file", add(LEASE), delete(LEASE, CNI_NETNS="/etc/passwd"))
case("del-link-gone", add(LEASE), container(f"link del {IFNAME}"), delete(LEASE))
case(
    "del-renamed",
    add(LEASE),
    container(f"link set {IFNAME} down", f"link set {IFNAME} name renamed0"),
    delete(LEASE),
)
case("del-alias-empty", add(LEASE), container(f'link set {IFNAME} alias ""'), delete(LEASE))
case("del-alias-changed", add(LEASE), container(f"link set {IFNAME} alias rnevil"), delete(LEASE))
case(
    "del-alias-changed-hwaddr",
    add({"hwaddr": MAC}),
    container(f"link set {IFNAME} alias rnevil"),
    delete({"hwaddr": MAC}),
)
TAKEN = host(f"link add {DEVICE} address 02:00:00:00:00:02 type ifb")
case("del-host-name-taken", add(LEASE), TAKEN, delete(LEASE))
case("del-ipam-missing", add(), delete({"device": DEVICE, "ipam": {"type": "rn-none"}}))
case("del-ipam-fails", plugin("failing", "echo oh >&2; exit 1"), add(), delete(FAILING))
case("del-never-added", delete())
case(
    "del-someone-elses",
    container(f"link add {IFNAME} address 02:00:00:00:00:03 type ifb"),
    delete(),
)

# --- CHECK, GC, STATUS ---
RESULT = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": IFNAME, "mac": MAC, "sandbox": "NETNS"}],
    "ips": [{"address": "10.9.0.2/24", "gateway": "10.9.0.1", "interface": 0}],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.77.0.0/16", "gw": "10.9.0.9"}],
}


def checked(name: str, config: dict[str, Any] | None = None, **changes: Any) -> None:
    """ADD, then CHECK with a result that was changed somewhere."""

    def check(world: World, plugin: str) -> Answer:
        text = json.dumps({**RESULT, **changes}).replace("NETNS", world.container.path)
        given = {"device": DEVICE, "prevResult": json.loads(text), **(config or {})}
        return world.call("CHECK", given, plugin=plugin)

    case(name, add({"device": DEVICE, "ipam": STATIC}), check)


checked("check")
checked("check-0.3.1", {"cniVersion": "0.3.1"})
checked("check-no-result", {"prevResult": None})
checked("check-address", ips=[{"address": "10.9.0.3/24"}])
checked("check-route", routes=[{"dst": "10.78.0.0/16", "gw": "10.9.0.9"}])
checked("check-route6", routes=[{"dst": "2001:db8:77::/48"}])
checked("check-mac", interfaces=[{"name": IFNAME, "mac": "x", "sandbox": "NETNS"}])
checked("check-sandbox", interfaces=[{"name": IFNAME, "sandbox": "/elsewhere"}])
checked("check-interface", interfaces=[{"name": "other", "sandbox": "NETNS"}])
checked("check-ipam", {"ipam": {"type": "rn-none"}})
ONE = {"type": "static", "addresses": [{"address": "10.9.0.2/32"}]}
ONE_RESULT = {
    "interfaces": [{"name": IFNAME, "sandbox": "NETNS"}],
    "ips": [{"address": "10.9.0.2/32"}],
}


def check_one(world: World, plugin: str) -> Answer:
    text = json.dumps({"cniVersion": "1.0.0", **ONE_RESULT}).replace("NETNS", world.container.path)
    given = {"device": DEVICE, "prevResult": json.loads(text)}
    return world.call("CHECK", given, plugin=plugin)


case("check-single-address", add({"device": DEVICE, "ipam": ONE}), check_one)
case("check-gone", call("CHECK", {"device": DEVICE, "prevResult": RESULT}, CNI_NETNS="/nowhere"))
case("gc-1.0.0", call("GC", DEVICE_CONFIG))
case("status-1.0.0", call("STATUS", DEVICE_CONFIG))


def observe(world: World, plugin: str, steps: list[Step]) -> list[dict[str, Any]]:
    """What there is to see after each call."""
    seen = []
    for step in steps:
        answer = step(world, plugin)
        if answer is None:
            continue
        text = json.dumps(answer.document).replace(world.container.path, "NETNS")
        document = json.loads(re.sub(r"/proc/\d+/ns/net", "NETNS", text))
        failed = answer.status != 0
        seen.append(
            {
                "status": answer.status,
                "code": document.get("code") if failed else None,
                "message": (document.get("msg"), document.get("details")) if failed else None,
                "result": None if failed else document,
                "stderr": answer.stderr,
                "host": world.host.links(),
                "container": (world.container.links(), world.container.routes()),
                "leases": world.leases(),
            }
        )
    assert seen
    return seen


def table() -> dict[str, set[str]]:
    """The cases that the document lists, and what differs in each."""
    rows = {}
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if line.startswith("| `") and len(cells) == 5:
            for name in re.findall(r"`([^`]+)`", cells[0]):
                assert name not in rows, f"{name} is listed twice"
                rows[name] = set(cells[1].split(", "))
    return rows


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["user", pytest.param("root", marks=pytest.mark.root)])
def test_differences_are_listed(name: str, kind: str, tmp_path: Path) -> None:
    seen = {}
    for who, path in (("reference", REFERENCE), ("ours", PLUGIN)):
        directory = tmp_path / who
        directory.mkdir()
        world = World(directory, as_root=kind == "root")
        try:
            world.add_device()
            seen[who] = observe(world, path, CASES[name])
        finally:
            world.end()
    text = json.dumps(seen["reference"]).replace(str(tmp_path / "reference"), "DIRECTORY")
    reference = json.loads(text)
    ours = json.loads(json.dumps(seen["ours"]).replace(str(tmp_path / "ours"), "DIRECTORY"))
    differing = {
        key
        for one, other in zip(reference, ours, strict=True)
        for key in one
        if one[key] != other[key]
    }
    assert differing == table().get(name, set()), json.dumps([reference, ours], indent=1)


def test_every_row_has_a_case() -> None:
    assert set(table()) <= set(CASES)
