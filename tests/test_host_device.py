"""What our host-device promises beyond the reference: see rootlessnet-device(1)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from device_support import CONTAINER, DEVICE, IFNAME, MAC, PLUGIN, World

CONFIG: dict[str, Any] = {"device": DEVICE}
NOT_OURS = "a device moves only between network namespaces that our user namespace owns"


def prepare(world: World) -> dict[str, Any]:
    """Give the device all that a failed ADD has to give back; returns how the host looks."""
    world.host.ip(
        f"link set {DEVICE} mtu 1400",
        f"link set {DEVICE} alias uplink",
        f"link set {DEVICE} up",
        f"addr add 192.0.2.7/24 dev {DEVICE}",
        f"addr add 2001:db8:1::7/64 dev {DEVICE}",
        f"addr add 192.0.2.8/24 dev {DEVICE} valid_lft 3600 preferred_lft 1800",
        f"route add 198.51.100.0/24 via 192.0.2.1 dev {DEVICE} metric 77",
        f"route add 2001:db8:2::/48 via 2001:db8:1::1 dev {DEVICE}",
    )
    return look(world)


def look(world: World) -> dict[str, Any]:
    """The host's links and their routes."""
    routes = [route for route in world.host.routes() if DEVICE in route]
    return {"links": world.host.links(), "routes": routes}


# --- results ---


def test_add_1_1_0(world: World) -> None:
    ipam = {"type": "routes"}
    world.add_plugin(
        "routes",
        """cat <<E
{"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.2/24"}],
 "routes": [{"dst": "10.77.0.0/16", "mtu": 1300, "advmss": 1200, "priority": 7, "table": 100,
             "scope": 253}],
 "dns": {"nameservers": ["192.0.2.1"]}}
E""",
    )
    answer = world.call("ADD", {"cniVersion": "1.1.0", **CONFIG, "ipam": ipam})
    assert answer.document == {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": IFNAME, "mac": MAC, "sandbox": world.container.path}],
        "ips": [{"interface": 0, "address": "10.9.0.2/24"}],
        "routes": [
            {
                "dst": "10.77.0.0/16",
                "mtu": 1300,
                "advmss": 1200,
                "priority": 7,
                "table": 100,
                "scope": 253,
            }
        ],
        "dns": {},
    }, answer.text
    shown = world.container.run("ip", "route", "show", "table", "100").stdout
    assert " ".join(shown.split()) == (
        f"10.77.0.0/16 dev {IFNAME} scope link metric 7 mtu 1300 advmss 1200"
    )


def test_default_gateway_is_used_for_routes_without_one(world: World) -> None:
    world.call("ADD", {**CONFIG, "ipam": world.host_local()})
    assert "default via 10.99.0.1 dev eth0" in world.container.routes()


def test_message_layout(world: World) -> None:
    answer = world.call("ADD", {"device": "rnnone"})
    assert answer.text == (
        '{\n    "code": 999,\n    "msg": "failed to find host device: Link not found"\n}'
    )


def test_alternative_name(world: World) -> None:
    world.host.ip(f"link property add dev {DEVICE} altname rnalternative0123456789")
    config = {"device": "rnalternative0123456789"}
    assert world.call("ADD", config).status == 0
    assert world.container.links()[IFNAME]["alias"] == DEVICE
    assert world.call("DEL", config).status == 0
    assert list(world.host.links()) == [DEVICE]


# --- a failed ADD ---


IPAM_FAILURES = {
    "fails": """echo '{"code": 11, "msg": "later"}'; exit 1""",
    "empty": """echo '{"cniVersion": "1.0.0", "ips": []}'""",
    "garbage": "echo oh",
    "address": """echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.9.0.2"}]}'""",
}


@pytest.mark.parametrize("how", IPAM_FAILURES)
def test_failed_ipam_leaves_the_host_as_it_was(world: World, how: str) -> None:
    before = prepare(world)
    log = world.add_plugin("failing", f"[ $CNI_COMMAND = DEL ] && exit\n{IPAM_FAILURES[how]}")
    answer = world.call("ADD", {**CONFIG, "ipam": {"type": "failing"}})
    assert answer.status == 1
    assert answer.stderr == ""
    assert look(world) == before
    assert world.container.links() == {}
    assert log.read_text().split() == ["ADD", "DEL"]


def test_missing_ipam_touches_nothing(world: World) -> None:
    before = prepare(world)
    config = {**CONFIG, "ipam": {"type": "rn-none"}}
    answer = world.call("ADD", config, ROOTLESSNET_CRASH_AT="add.marked")
    message = f'failed to find plugin "rn-none" in path [{world.directory} /usr/lib/cni]'
    assert answer.error == (999, message)
    assert look(world) == before


def test_failed_configuration_releases_the_lease(world: World) -> None:
    before = prepare(world)
    ipam = {**world.host_local(), "routes": [{"dst": "10.77.0.0/16", "gw": "198.51.100.1"}]}
    answer = world.call("ADD", {**CONFIG, "ipam": ipam})
    route = "10.77.0.0/16 via 198.51.100.1 dev eth0"
    assert answer.error == (999, f"failed to add route '{route}': network is unreachable")
    assert look(world) == before
    assert world.leases() == []


def test_closed_stdout_is_a_failed_add(world: World) -> None:
    before = prepare(world)
    config = json.dumps(
        {"cniVersion": "1.0.0", "name": "test", **CONFIG, "ipam": world.host_local()}
    )
    environment = {
        **os.environ,
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": CONTAINER,
        "CNI_NETNS": world.container.path,
        "CNI_IFNAME": IFNAME,
        "CNI_PATH": "/usr/lib/cni",
    }
    done = world.host.run("sh", "-c", f"{PLUGIN} >&-", input=config, env=environment, check=False)
    assert done.returncode == 1
    assert look(world) == before
    assert world.leases() == []


def test_name_conflict_touches_nothing(world: World) -> None:
    before = prepare(world)
    world.container.ip(f"link add {IFNAME} type ifb")
    answer = world.call("ADD", CONFIG, ROOTLESSNET_CRASH_AT="add.marked")
    message = f'failed to move link failed to move "{IFNAME}" (host: "{DEVICE}") to container NS'
    assert answer.error == (999, f"{message}: file exists")
    assert look(world) == before


def test_lost_race_for_the_name(world: World) -> None:
    """The name is free when it is looked at, and taken when the device arrives."""
    before = prepare(world)
    world.container.ip(f"link add {IFNAME} type ifb")
    answer = call_patched(
        world,
        "ADD",
        """
        from rootlessnet.devices import links
        get, calls = links.Links.get, []
        def blind(self, name, **options):
            if name == "eth0" and not calls:
                calls.append(name)
                return None
            return get(self, name, **options)
        links.Links.get = blind
        """,
    )
    message = f'failed to move link failed to move "{IFNAME}" (host: "{DEVICE}") to container NS'
    assert json.loads(answer.stdout)["msg"] == f"{message}: file exists"
    assert look(world) == before
    assert list(world.container.links()) == [IFNAME]


def call_patched(
    world: World, command: str, patch: str, config: dict[str, Any] = CONFIG
) -> subprocess.CompletedProcess[str]:
    """Call the plugin with something in it replaced."""
    import textwrap

    code = textwrap.dedent(patch) + (
        "\nimport sys\nfrom rootlessnet.devices.cni_main import main\nsys.exit(main())\n"
    )
    environment = {
        **os.environ,
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": CONTAINER,
        "CNI_NETNS": world.container.path,
        "CNI_IFNAME": IFNAME,
        "CNI_PATH": f"{world.directory}:/usr/lib/cni",
    }
    text = json.dumps({"cniVersion": "1.0.0", "name": "test", **config})
    return world.host.run(sys.executable, "-c", code, input=text, env=environment, check=False)


def test_failed_del_leaves_the_container_as_it_was(world: World) -> None:
    world.call("ADD", {**CONFIG, "ipam": world.host_local()})
    links, routes = world.container.links(), world.container.routes()
    world.host.ip(f"link add {DEVICE} type ifb")
    answer = call_patched(
        world,
        "DEL",
        """
        from rootlessnet.devices import links
        get, calls = links.Links.get, []
        def blind(self, name, **options):
            # The second is that of the host, before the mark is set.
            if name == "rndev0" and not calls:
                calls.append(name)
                return None
            return get(self, name, **options)
        links.Links.get = blind
        """,
    )
    message = f'failed to move "{DEVICE}" to hostNS: file exists'
    assert json.loads(answer.stdout) == {"code": 999, "msg": message}
    assert world.container.links() == links
    assert world.container.routes() == routes


def test_bridge_port_is_one_again(world: World) -> None:
    world.host.ip(
        "link add rnbr0 type bridge",
        f"link set {DEVICE} master rnbr0",
        f"link set {DEVICE} up",
    )
    before = look(world)
    assert before["links"][DEVICE]["master"] == "rnbr0"
    world.add_plugin("failing", "exit 1")
    assert world.call("ADD", {**CONFIG, "ipam": {"type": "failing"}}).status == 1
    assert look(world) == before


def test_version_that_cannot_say_the_result_touches_nothing(world: World) -> None:
    before = prepare(world)
    config = {**CONFIG, "cniVersion": "0.2.0"}
    answer = world.call("ADD", config, ROOTLESSNET_CRASH_AT="add.marked")
    assert answer.error == (999, "cannot convert: no valid IP addresses")
    assert look(world) == before


# --- killed in between ---

ADD_POINTS = ["marked", "moved", "up", "ipam", "configured", "printed"]
DEL_POINTS = ["marked", "ipam", "down", "renamed", "moved", "cleared"]


@pytest.mark.parametrize("next_command", ["ADD", "DEL"])
@pytest.mark.parametrize("point", ADD_POINTS)
def test_add_killed(world: World, point: str, next_command: str) -> None:
    config = {**CONFIG, "ipam": world.host_local()}
    world.host.ip(f"link set {DEVICE} up")
    world.call("ADD", config, crash_at=f"add.{point}")
    answer = world.call(next_command, config)
    assert (answer.status, answer.stderr) == (0, ""), answer.text
    if next_command == "ADD":
        check_attached(world)
        assert world.call("DEL", config).status == 0
    check_detached(world, up=next_command == "DEL")


@pytest.mark.parametrize("next_command", ["ADD", "DEL"])
@pytest.mark.parametrize("point", DEL_POINTS)
def test_del_killed(world: World, point: str, next_command: str) -> None:
    config = {**CONFIG, "ipam": world.host_local()}
    assert world.call("ADD", config).status == 0
    world.call("DEL", config, crash_at=f"del.{point}")
    answer = world.call(next_command, config)
    assert (answer.status, answer.stderr) == (0, ""), answer.text
    if next_command == "ADD":
        check_attached(world)
        assert world.call("DEL", config).status == 0
    check_detached(world, up=False)


@pytest.mark.parametrize("point", ["del.down", "del.renamed", "undo.moved", "undo.ipam"])
def test_undo_killed(world: World, point: str) -> None:
    world.host.ip(f"link set {DEVICE} up")
    world.add_plugin("failing", "[ $CNI_COMMAND = DEL ] && exit; exit 1")
    failing = {**CONFIG, "ipam": {"type": "failing"}}
    world.call("ADD", failing, crash_at=point)
    assert world.call("DEL", failing).status == 0
    check_detached(world, up=True)


@pytest.mark.parametrize("point", ["del.up", "del.moved", "add.mended"])
def test_mending_killed(world: World, point: str) -> None:
    """What mends can be killed too."""
    world.host.ip(f"link set {DEVICE} up")
    world.call("ADD", CONFIG, crash_at="add.moved")
    world.call("ADD", CONFIG, crash_at=point)
    assert world.call("ADD", CONFIG).status == 0
    check_attached(world, addresses=[])


def test_killed_with_another_container_id(world: World) -> None:
    """A runtime that starts over has a new id; the namespace and the device are the same."""
    world.call("ADD", CONFIG, crash_at="add.moved")
    assert world.call("ADD", CONFIG, CNI_CONTAINERID="c2").status == 0
    check_attached(world, addresses=[])


@pytest.mark.parametrize("selector", [{"hwaddr": MAC}, {"device": DEVICE}])
def test_killed_and_renamed(world: World, selector: dict[str, str]) -> None:
    world.call("ADD", selector, crash_at="add.moved")
    world.container.ip(f"link set {IFNAME} name renamed0")
    assert world.call("DEL", selector).status == 0
    check_detached(world, up=False)


def test_mark_of_another_container_is_left_alone(world: World) -> None:
    world.call("ADD", CONFIG, crash_at="add.marked")
    before = world.host.links()
    mark = f"rootlessnet:moving:down:{DEVICE}:{IFNAME}:{CONTAINER}"
    assert before[DEVICE]["alias"] == mark
    assert world.call("DEL", CONFIG, CNI_CONTAINERID="c2").status == 0
    assert world.host.links() == before
    assert world.call("DEL", CONFIG).status == 0
    assert world.host.links()[DEVICE]["alias"] == ""


def test_forged_marks_and_aliases(world: World) -> None:
    """The container can write aliases; what it writes is no name for the host."""
    assert world.call("ADD", CONFIG).status == 0
    for alias in (
        "rootlessnet:moving:up:rn%d:eth0:c1",
        "rootlessnet:moving:up:a/b:eth0:c1",
        "rn%d",
    ):
        world.container.ip(f"link set {IFNAME} alias {alias}")
        answer = world.call("DEL", {"hwaddr": MAC})
        message = f'failed to find original ifname for "{IFNAME}" (alias is "{alias}")'
        assert answer.error == (999, message)
        assert world.host.links() == {}
    assert world.call("DEL", CONFIG).status == 0
    check_detached(world, up=False)


def check_attached(world: World, addresses: list[str] | None = None) -> None:
    assert world.host.links() == {}
    if addresses is None:
        leases = world.leases()
        assert len(leases) == 1
        addresses = [f"{leases[0]}/24"]
    assert world.container.links() == {
        IFNAME: {
            "up": True,
            "mac": MAC,
            "mtu": 1500,
            "alias": DEVICE,
            "master": "",
            "addresses": addresses,
        }
    }


def check_detached(world: World, *, up: bool) -> None:
    assert world.container.links() == {}
    assert world.leases() == []
    assert world.host.links() == {
        DEVICE: {
            "up": up,
            "mac": MAC,
            "mtu": 1500,
            "alias": "",
            "master": "",
            "addresses": [],
        }
    }


# --- DEL ---


def test_del_keeps_the_alias_of_no_one_else(world: World) -> None:
    """Two devices in one container: each DEL takes its own."""
    world.add_device("rndev1", "02:00:00:00:00:11")
    assert world.call("ADD", CONFIG).status == 0
    assert world.call("ADD", {"device": "rndev1"}, CNI_IFNAME="eth1").status == 0
    world.container.ip(f"link set {IFNAME} down", f"link set {IFNAME} name x0")
    assert world.call("DEL", CONFIG).status == 0
    assert world.call("DEL", CONFIG).status == 0
    assert list(world.host.links()) == [DEVICE]
    assert list(world.container.links()) == ["eth1"]


def test_del_without_alias_goes_by_the_previous_result(world: World) -> None:
    added = world.call("ADD", CONFIG)
    world.container.ip(f'link set {IFNAME} alias ""')
    config = {**CONFIG, "prevResult": added.document}
    assert world.call("DEL", config).status == 0
    check_detached(world, up=False)


def test_del_where_the_host_name_is_taken_in_the_container(world: World) -> None:
    assert world.call("ADD", CONFIG).status == 0
    world.container.ip(f"link add {DEVICE} type ifb")
    assert world.call("DEL", CONFIG).status == 0
    assert world.host.links()[DEVICE]["mac"] == MAC
    assert list(world.container.links()) == [DEVICE]


def test_del_does_every_step(world: World) -> None:
    """A name that is taken does not keep IPAM from releasing, nor the other way round."""
    config = {**CONFIG, "ipam": world.host_local()}
    assert world.call("ADD", config).status == 0
    world.host.ip(f"link add {DEVICE} type ifb")
    answer = world.call("DEL", config)
    assert answer.error == (999, f'failed to move "{DEVICE}" to hostNS: file exists')
    assert world.leases() == []
    assert world.container.links()[IFNAME]["up"]


# --- STATUS, GC ---


def test_status_is_ipams(world: World) -> None:
    config = {"cniVersion": "1.1.0", **CONFIG, "ipam": {"type": "says"}}
    log = world.add_plugin("says", """echo '{"code": 50, "msg": "no addresses"}'; exit 1""")
    assert world.call("STATUS", config, CNI_NETNS=None).error == (50, "no addresses")
    assert world.call("STATUS", {"cniVersion": "1.1.0", **CONFIG}, CNI_NETNS=None).text == ""
    assert log.read_text() == "STATUS\n"


@pytest.mark.parametrize(("code", "status"), [(1, 0), (4, 0), (11, 1)])
def test_gc_is_handed_on(world: World, code: int, status: int) -> None:
    config = {"cniVersion": "1.1.0", **CONFIG, "ipam": {"type": "says"}}
    log = world.add_plugin("says", f"""echo '{{"code": {code}, "msg": "oh"}}'; exit 1""")
    answer = world.call("GC", config, CNI_NETNS=None, CNI_IFNAME=None, CNI_CONTAINERID=None)
    assert (answer.status, answer.error) == ((1, (11, "oh")) if status else (0, (0, "")))
    assert log.read_text() == "GC\n"


def test_gc_without_ipam(world: World) -> None:
    assert world.call("GC", {"cniVersion": "1.1.0", **CONFIG}, CNI_NETNS=None).text == ""


def test_check_asks_ipam_first(world: World) -> None:
    log = world.add_plugin("says", """echo '{"code": 11, "msg": "gone"}'; exit 1""")
    answer = world.call("CHECK", {**CONFIG, "ipam": {"type": "says"}})
    assert answer.error == (11, "gone")
    assert log.read_text() == "CHECK\n"


# --- rootless ---


def test_namespace_that_is_not_ours(tmp_path: Path) -> None:
    """A user namespace that owns the container's network namespace, but not the host's."""
    world = World(tmp_path, as_root=False)
    try:
        world.add_device()
        inner = """
            exec 3< <(exec unshare -n sh -c 'echo $$; exec sleep 60')
            read -r pid <&3
            CNI_NETNS=/proc/$pid/ns/net "$0"
            status=$?
            kill "$pid"
            exit $status
        """
        environment = {
            **os.environ,
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": CONTAINER,
            "CNI_IFNAME": IFNAME,
            "CNI_PATH": "/usr/lib/cni",
        }
        config = json.dumps({"cniVersion": "1.0.0", "name": "test", **CONFIG})
        done = world.host.run(
            *("unshare", "-Ur", "bash", "-c", inner, PLUGIN),
            input=config,
            env=environment,
            check=False,
        )
        where = f'"{IFNAME}" (host: "{DEVICE}") to container NS'
        reason = f"operation not permitted: {NOT_OURS}"
        assert json.loads(done.stdout) == {
            "code": 999,
            "msg": f"failed to move link failed to move {where}: {reason}",
        }
        assert list(world.host.links()) == [DEVICE]
    finally:
        world.end()


# --- what it costs ---


def test_dpdk_touches_no_link(world: World) -> None:
    """pyroute2 cannot be imported, and is not missed."""
    device = "/sys/bus/pci/devices/0000:00:1f.6"
    world.script(
        f"mount -t tmpfs bus /sys/bus; mkdir -p {device} /sys/bus/vfio-pci\n"
        f"ln -s ../../../vfio-pci {device}/driver"
    )
    config = {"pciBusID": "0000:00:1f.6"}
    for command in ("ADD", "DEL"):
        done = call_patched(world, command, "import sys\nsys.modules['pyroute2'] = None\n", config)
        assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize(
    ("environment", "config", "forbidden"),
    [
        ({"CNI_COMMAND": "VERSION"}, "", {"json", "re", "ctypes", "socket", "typing"}),
        ({"CNI_COMMAND": "STATUS", "CNI_PATH": "/"}, '"cniVersion": "1.1.0"', {"ctypes"}),
        ({"CNI_COMMAND": "ADD"}, "", {"ctypes"}),
        ({"CNI_COMMAND": "ADD", "CNI_IFNAME": "/"}, '"device": "x"', {"ctypes"}),
    ],
    ids=["VERSION", "STATUS", "environment", "ifname"],
)
def test_nothing_heavy_is_imported(
    environment: dict[str, str], config: str, forbidden: set[str]
) -> None:
    code = (
        "import os, sys\n"
        "def leave(status):\n"
        "    print(*sorted(sys.modules), file=sys.stderr)\n"
        "    sys.exit(status)\n"
        "os._exit = leave\n"
        "from rootlessnet.devices.cni_main import main\n"
        "leave(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        input='{"name": "test", ' + (config or '"x": 1') + "}",
        env={**environment, "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    loaded = set(done.stderr.split())
    assert "rootlessnet.devices.cni_main" in loaded, done.stderr
    assert not loaded & (forbidden | {"pyroute2", "pyroute2.netlink", "subprocess", "dataclasses"})
