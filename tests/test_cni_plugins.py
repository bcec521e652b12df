"""The runtime with Debian's plugins and our own, in a user namespace of the test's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cni_support import REAL, answers, script
from device_support import World

# Where iptables and tc are is on the path inside an instance, and not on every user's.
ENVIRONMENT = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
OWN_PLUGIN = "rootlessnet-host-device"


class Lab:
    """The runtime on the host of a World, called from a program of its own each time."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.cache = world.directory / "cache"
        self.own = Path(sys.executable).parent

    def command(self, code: str, document: dict[str, Any]) -> list[str]:
        path = self.world.directory / "list.json"
        path.write_text(json.dumps(document))
        head = f"""
runtime = Runtime([{REAL!r}, {str(self.own)!r}], {str(self.cache)!r})
network = cni_list.parse(open({str(path)!r}, "rb").read())
first, second = {self.world.container.path!r}, {self.world.container.path!r}
"""
        return script(head + code)

    def run(self, code: str, *plugins: dict[str, Any], version: str = "1.0.0") -> list[Any]:
        document = {"cniVersion": version, "name": "test", "plugins": list(plugins)}
        return answers(self.world.host.run(*self.command(code, document), env=ENVIRONMENT))

    def host_local(self, **keys: Any) -> dict[str, Any]:
        return {**self.world.host_local(), **keys}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    world = World(tmp_path, as_root=False)
    try:
        world.add_device()
        yield Lab(world)
    finally:
        world.end()


ADD = 'answer(runtime.add, network, "c1", first, "eth0")\n'
CHECK = 'answer(runtime.check, network, "c1", first, "eth0")\n'
DELETE = 'answer(runtime.delete, None, "c1", first, "eth0", name="test")\n'


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_a_bridge_and_what_comes_after_it(lab: Lab, version: str) -> None:
    bridge = {"type": "bridge", "bridge": "rnbr0", "isGateway": True, "ipMasq": True}
    chain: list[dict[str, Any]] = [
        {**bridge, "ipam": lab.host_local()},
        {"type": "firewall"},
        {"type": "tuning", "sysctl": {"net.ipv4.tcp_fin_timeout": "31"}},
    ]
    if version == "0.3.1":
        del chain[1]  # it does not speak that
    check = CHECK if version != "0.3.1" else ""
    result, *checked = lab.run(ADD + check, *chain, version=version)
    assert result["cniVersion"] == version
    (address,) = result["ips"]
    assert address["address"] == "10.99.0.2/24"
    assert ("version" in address) == (version < "1")
    assert checked == ([None] if check else [])
    link = lab.world.container.links()["eth0"]
    assert link["addresses"] == ["10.99.0.2/24"]
    assert link["mac"] in [each["mac"] for each in result["interfaces"]]
    sysctl = "/proc/sys/net/ipv4/tcp_fin_timeout"
    assert lab.world.container.run("cat", sysctl).stdout == "31\n"
    lab.world.container.ip("link set eth0 down")
    if check:
        (told,) = lab.run(CHECK, *chain, version=version)
        assert told.startswith('error: plugin type="bridge" failed (check): cni plugin bridge')
    assert lab.world.leases() == ["10.99.0.2"]
    assert lab.run(DELETE + DELETE, *chain, version=version) == [None, None]
    assert lab.world.leases() == []
    assert lab.world.container.links() == {}
    rules = lab.world.host.run("/usr/sbin/iptables-save").stdout
    assert "10.99.0" not in rules


def test_point_to_point_and_forwarded_ports(lab: Lab) -> None:
    chain = [
        {"type": "ptp", "ipam": lab.host_local()},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    code = ADD.replace('"eth0")', '"eth0", capability_args={"portMappings": ports})')
    ports = 'ports = [{"hostPort": 8081, "containerPort": 81, "protocol": "tcp"}]\n'
    (result,) = lab.run(ports + code, *chain)
    assert [address["address"] for address in result["ips"]] == ["10.99.0.2/24"]
    rules = lab.world.host.run("/usr/sbin/iptables-save", "-t", "nat").stdout
    assert "--to-destination 10.99.0.2:81" in rules
    assert lab.run(DELETE, *chain) == [None]
    rules = lab.world.host.run("/usr/sbin/iptables-save", "-t", "nat").stdout
    assert "10.99.0.2" not in rules
    assert lab.world.leases() == []


def test_bandwidth_that_is_asked_for(lab: Lab) -> None:
    chain = [
        {"type": "ptp", "ipam": lab.host_local()},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    ]
    limits = {"ingressRate": 8_000_000, "ingressBurst": 8_000_000}
    code = ADD.replace('"eth0")', f'"eth0", capability_args={{"bandwidth": {limits}}})')
    (result,) = lab.run(code, *chain)
    (host,) = [each["name"] for each in result["interfaces"] if not each.get("sandbox")]
    assert "rate 8Mbit" in lab.world.host.run("/usr/sbin/tc", "qdisc", "show", "dev", host).stdout
    assert lab.run(DELETE, *chain) == [None]
    assert lab.world.container.links() == {}


def test_macvlan(lab: Lab) -> None:
    plugin = {"type": "macvlan", "master": "rndev0", "mode": "bridge", "ipam": lab.host_local()}
    lab.world.host.ip("link set rndev0 up")
    answered = lab.run(ADD + CHECK + DELETE, plugin)
    if "operation not supported" in str(answered[0]):
        pytest.skip("kernel: no macvlan")
    assert answered[0]["ips"][0]["address"] == "10.99.0.2/24"
    assert answered[1:] == [None, None]
    assert lab.world.container.links() == {}


def test_loopback(lab: Lab) -> None:
    code = (ADD + CHECK + DELETE).replace("eth0", "lo")
    result, checked, deleted = lab.run(code, {"type": "loopback"})
    assert result["ips"][0]["address"] == "127.0.0.1/8"
    assert (checked, deleted) == (None, None)


def test_our_own_plugin_in_a_newer_version(lab: Lab) -> None:
    plugin = {"type": OWN_PLUGIN, "device": "rndev0", "ipam": lab.host_local()}
    status = "answer(runtime.status, network)\n"
    gc = 'answer(runtime.gc, network, [("c1", "eth0")])\n'
    # host-local 1.1.1 does not know 1.1.0: the delegation says so, and nothing is left.
    plain = {"type": OWN_PLUGIN, "device": "rndev0"}
    answered = lab.run(status + ADD + CHECK + gc + CHECK + DELETE, plain, version="1.1.0")
    assert answered[1]["interfaces"][0]["name"] == "eth0"
    assert [answered[0], *answered[2:]] == [None] * 5
    (told,) = lab.run(ADD, plugin, version="1.1.0")
    assert told.startswith(f'error: plugin type="{OWN_PLUGIN}" failed (add): cni plugin ')
    assert "incompatible CNI versions" in told
    # DEL cannot reach host-local either, so the attempt is remembered for a better day.
    assert "rndev0" in lab.world.host.links()
    assert os.listdir(lab.cache / "results") == [".test-c1-eth0"]


def test_a_chain_that_fails_gives_its_address_back(lab: Lab) -> None:
    chain = [
        {"type": "bridge", "bridge": "rnbr0", "ipam": lab.host_local()},
        {"type": "tuning", "sysctl": {"net.nosuch.key": "1"}},
    ]
    (told,) = lab.run(ADD, *chain)
    assert told.startswith('error: plugin type="tuning" failed (add): cni plugin tuning failed: ')
    assert lab.world.leases() == []
    assert lab.world.container.links() == {}
    assert os.listdir(lab.cache / "results") == []


@pytest.mark.parametrize("point", ["cni:begun", "cni:add:bridge", "cni:add:tuning", "cni:added"])
def test_addresses_are_free_after_kill_9_and_a_del(lab: Lab, point: str) -> None:
    chain = [
        {"type": "bridge", "bridge": "rnbr0", "ipam": lab.host_local()},
        {"type": "tuning"},
    ]
    document = {"cniVersion": "1.0.0", "name": "test", "plugins": chain}
    done = lab.world.host.run(
        *lab.command(ADD, document),
        check=False,
        env={**ENVIRONMENT, "ROOTLESSNET_CRASH_AT": point},
    )
    assert done.returncode == -9
    assert lab.world.leases() == ([] if point == "cni:begun" else ["10.99.0.2"])
    code = "answer(runtime.gc, network, [])\n" if point == "cni:add:tuning" else DELETE
    assert lab.run(code, *chain) == [None]
    assert lab.world.leases() == []
    assert lab.world.container.links() == {}
    assert os.listdir(lab.cache / "results") == []


def test_thirty_at_once_get_thirty_addresses(lab: Lab) -> None:
    names = [f"many-{number}" for number in range(30)]
    code = f"""
import subprocess
names = {names!r}
kids = [subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; exec sleep 60"],
                         stdout=subprocess.PIPE) for _ in names]
paths = [f"/proc/{{kid.pid}}/ns/net" for kid in kids]
for kid in kids:
    kid.stdout.read(1)
def at_once(function):
    pids = []
    for name, path in zip(names, paths):
        pid = os.fork()
        if pid == 0:
            try:
                function(name, path)
                sys.stdout.flush()
            finally:
                os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
at_once(lambda name, path: answer(runtime.add, network, name, path, "eth0"))
print(json.dumps({{"result": os.listdir({str(lab.world.directory / "ipam/test")!r})}}), flush=True)
at_once(lambda name, path: answer(runtime.delete, network, name, path, "eth0"))
for kid in kids:
    kid.kill()
    kid.wait()
"""
    plugin = {"type": "bridge", "bridge": "rnbr0", "ipam": lab.host_local()}
    answered = lab.run(code, plugin)
    results, held, deleted = answered[:30], answered[30], answered[31:]
    addresses = {result["ips"][0]["address"] for result in results}
    assert len(addresses) == 30
    assert {f"{name}/24" for name in held if name[0].isdigit()} == addresses
    assert deleted == [None] * 30
    assert lab.world.leases() == []


def test_libraries_are_quiet_about_what_they_do(lab: Lab) -> None:
    plugin = {"type": "bridge", "bridge": "rnbr0", "ipam": lab.host_local()}
    document = {"cniVersion": "1.0.0", "name": "test", "plugins": [plugin]}
    done: subprocess.CompletedProcess[str] = lab.world.host.run(*lab.command(ADD, document))
    assert done.stderr == ""
    assert lab.run(DELETE, plugin) == [None]
