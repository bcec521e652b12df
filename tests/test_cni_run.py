"""Containers on podman's CNI networks inside an instance, with Debian's plugins."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cni_support import answers
from network_support import Home
from support import Net, wait_for

from rootlessnet.errors import Error
from rootlessnet.networks import cni_args, cni_convert

WEB = "203.0.113.1"

_HEAD = """
import json, os, subprocess, sys
from rootlessnet.errors import Error, reason
from rootlessnet.networks import api, cni_run
from rootlessnet.networks.attachment import Attachment, Container
networks = {network.name: network for network in api.list_all()}
kids = []
def box(id, *attachments, **options):
    kid = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo; exec sleep 600"],
                           stdout=subprocess.PIPE)
    kid.stdout.read(1)
    kids.append(kid)
    return Container(id, f"/proc/{kid.pid}/ns/net", list(attachments), **options)
def on(name, interface="eth0", **options):
    return Attachment(networks[name], interface, **options)
def port(host, container, protocol="tcp", range=1):
    return dict(container_port=container, host_ip="", host_port=host, protocol=protocol,
                range=range)
def answer(function, *arguments, **options):
    try:
        print(json.dumps({"result": function(*arguments, **options)}), flush=True)
    except Error as error:
        print(json.dumps({"error": reason(error)}), flush=True)
def tell(value):
    print(json.dumps({"result": value}), flush=True)
def sh(container, *command):
    return subprocess.run(["nsenter", f"--net={container.netns}", *command],
                          capture_output=True, text=True).stdout
def out(*command):
    return subprocess.run(command, capture_output=True, text=True).stdout
def links(container):
    found = {}
    for link in json.loads(sh(container, "ip", "-j", "address")):
        found[link["ifname"]] = sorted(
            f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"] if a["scope"] == "global")
    return found
def held(name):
    try:
        names = os.listdir(f"/var/lib/cni/networks/{name}")
        return sorted(each for each in names if each != "lock" and each[:4] != "last")
    except FileNotFoundError:
        return []
def results():
    try:
        return sorted(os.listdir("/var/lib/cni/results"))
    except FileNotFoundError:
        return []
def get(container, address, port):
    code = ("import socket; s = socket.create_connection((%r, %r), 5); print(s.recv(9).decode())"
            % (address, port))
    return (sh(container, sys.executable, "-c", code) if container
            else out(sys.executable, "-c", code)).strip()
def serve(container, port, text):
    code = ("import socket; s = socket.create_server(('', %r)); print(flush=True)\\n"
            "while 1: c, _ = s.accept(); c.sendall(%r); c.close()" % (port, text.encode()))
    kid = subprocess.Popen(["nsenter", f"--net={container.netns}", sys.executable, "-c", code],
                           stdout=subprocess.PIPE)
    kid.stdout.read(1)
    kids.append(kid)
def finish():
    for kid in kids:
        kid.kill()
        kid.wait()
try:
    exec(sys.argv[1])
finally:
    finish()
"""


class Lab:
    """A home with CNI networks, and an instance in which programs use them."""

    def __init__(self, home: Home, net: Net) -> None:
        self.home = home
        self.net = net
        self.environment = {name: home.environment[name] for name in ("HOME", "CONTAINERS_CONF")}
        self.warnings = ""

    def run(self, code: str, **environment: str) -> list[Any]:
        """Run a program inside; what it answered."""
        done = self.net.enter(
            sys.executable, "-c", _HEAD, textwrap.dedent(code),
            env={**self.environment, **environment},
        )  # fmt: skip
        self.warnings = done.stderr
        return answers(done)

    def conflist(self, name: str, *plugins: dict[str, Any], version: str = "0.4.0") -> None:
        """Write a network that somebody else might have written."""
        directory = self.home.directory("cni")
        directory.mkdir(parents=True, exist_ok=True)
        document = {"cniVersion": version, "name": name, "plugins": plugins}
        (directory / f"{name}.conflist").write_text(json.dumps(document))


@pytest.fixture
def lab(tmp_path: Path, net: Net) -> Iterator[Lab]:
    home = Home(tmp_path, "cni")
    yield Lab(home, net)
    home.end()


def status(mac: str, *subnets: tuple[str, str]) -> dict[str, Any]:
    listed = [{"ipnet": ipnet, "gateway": gateway} for ipnet, gateway in subnets]
    return {
        "interfaces": {"eth0": {"mac_address": mac, "subnets": listed}},
        "dns_server_ips": [],
        "dns_search_domains": [],
    }


def test_two_containers_each_other_the_outside_and_a_port(lab: Lab) -> None:
    lab.home.run("create", "lab", "--subnet", "10.80.1.0/24")
    answered = lab.run(
        f"""
        one, two = box("one", on("lab"), port_mappings=[port(8080, 80)]), box("two", on("lab"))
        for container in (one, two):
            answer(cni_run.setup, container, "")
        serve(one, 80, "hello")
        tell(get(two, "10.80.1.2", 80))
        address = json.loads(out("ip", "-j", "-4", "address", "show", "tap0"))[0]["addr_info"][0]
        tell(get(None, address["local"], 8080))
        tell(sh(two, "curl", "-s", "-m5", "-o/dev/null", "-w%{{http_code}}", "http://{WEB}/"))
        tell(links(one))
        tell(one.attachments[0].addresses)
        tell(results())
        for container in (one, two):
            answer(cni_run.teardown, container, "")
        tell(links(one))
        tell([results(), held("lab")])
        """
    )
    first, second = answered[:2]
    mac = first["lab"]["interfaces"]["eth0"]["mac_address"]
    assert first == {"lab": status(mac, ("10.80.1.2/24", "10.80.1.1"))}
    assert second["lab"]["interfaces"]["eth0"]["subnets"][0]["ipnet"] == "10.80.1.3/24"
    assert answered[2:] == [
        "hello", "hello", "200",
        {"lo": [], "eth0": ["10.80.1.2/24"]}, ["10.80.1.2"],
        ["lab-one-eth0", "lab-two-eth0"],
        None, None,
        {"lo": []},
        [[], []],
    ]  # fmt: skip
    assert lab.warnings == ""


def test_addresses_and_mac_that_are_asked_for(lab: Lab) -> None:
    lab.home.run("create", "two", "--subnet", "10.80.2.0/24", "--subnet", "fd00:80:2::/64")
    answered = lab.run(
        """
        mac, ips = "02:00:00:00:00:77", ["10.80.2.9", "fd00:80:2::9"]
        both = box("both", on("two", static_ips=ips, static_mac=mac, aliases=["a"]), name="nick")
        single = box("single", on("two", static_ips=["10.80.2.10"]))
        taken = box("taken", on("two", static_ips=ips))
        for container in (both, single, taken):
            answer(cni_run.setup, container, "")
        tell(json.load(open("/var/lib/cni/results/two-both-eth0")))
        tell(links(both))
        for container in (both, single, taken):
            answer(cni_run.teardown, container, "")
        tell([results(), held("two")])
        """
    )
    both, single, taken, cached, links = answered[:5]
    assert both["two"] == status(
        "02:00:00:00:00:77",
        ("10.80.2.9/24", "10.80.2.1"),
        ("fd00:80:2::9/64", "fd00:80:2::1"),
    )
    ipnets = [subnet["ipnet"] for subnet in single["two"]["interfaces"]["eth0"]["subnets"]]
    assert ipnets[0] == "10.80.2.10/24"
    assert taken.startswith('error: plugin type="bridge" failed (add): cni plugin bridge failed: ')
    assert "requested IP address 10.80.2.9 is not available" in taken
    assert cached["cniArgs"] == [
        ["IgnoreUnknown", "1"], ["K8S_POD_NAME", "nick"], ["MAC", "02:00:00:00:00:77"],
    ]  # fmt: skip
    assert cached["capabilityArgs"] == {
        "ips": ["10.80.2.9", "fd00:80:2::9"], "aliases": {"two": ["a"]},
    }  # fmt: skip
    assert links["eth0"] == ["10.80.2.9/24", "fd00:80:2::9/64"]
    assert answered[5:] == [None, None, None, [[], []]]


def test_a_failed_setup_is_undone_and_its_error_told(lab: Lab) -> None:
    lab.home.run("create", "good", "--subnet", "10.80.3.0/24")
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.80.4.0/24"}]]}
    lab.conflist(
        "bad",
        {"type": "bridge", "bridge": "badbr", "ipam": ipam},
        {"type": "tuning", "sysctl": {"net.nosuch": "1"}},
    )
    lab.conflist("empty", {"type": "nosuch"})
    answered = lab.run(
        """
        one = box("one", on("good"), on("bad", "eth1"), port_mappings=[port(8080, 80)])
        answer(cni_run.setup, one, "")
        tell(links(one))
        tell([results(), held("good"), held("bad")])
        tell("10.80.3" in out("iptables-save"))
        """
    )
    assert answered[0].startswith(
        'error: plugin type="tuning" failed (add): cni plugin tuning failed: '
    )
    assert answered[1:] == [{"lo": []}, [[], [], []], False]


REFUSED = [
    ('Container("c", "", [on("lab")])', "namespacePath is empty"),
    ('Container("", "/proc/self/ns/net", [on("lab")])', "ContainerID is empty"),
    ('box("c")', "must specify at least one network"),
    ('box("c", on("lab", ""))', "interface name on network lab is empty"),
    (
        'box("c", on("lab"), on("podman"))',
        "interface eth0 is asked for on more than one network",
    ),
    (
        'box("c", on("lab", static_ips=["10.0.0.1"]))',
        "requested static ip 10.0.0.1 not in any subnet on network lab",
    ),
    ('box("c", on("lab", static_ips=["x"]))', "static ip x on network lab: no address"),
    ('box("c", on("lab"), port_mappings=[port(1, 1, "")])', "port protocol should not be empty"),
    ('box("c", on("lab"), port_mappings=[port(1, 1, "tcp,x")])', "unknown port protocol x"),
    (
        'Container("c", "/nowhere", [on("lab")])',
        "open the network namespace: /nowhere: No such file or directory",
    ),
    (
        'Container("c", "/proc/self/ns/net", [on("lab")])',
        "set up c: /proc/self/ns/net is the network namespace that the networks are in",
    ),
    ('box("c/d", on("lab"))', "invalid characters in containerID: c/d"),
    ('box("c", on("lab", "lo"))', "set up c: it has an interface lo already"),
]


def test_what_cannot_work_is_refused_before_anything_changes(lab: Lab) -> None:
    lab.home.run("create", "lab", "--subnet", "10.80.5.0/24")
    code = "".join(f'answer(cni_run.setup, {what}, "")\n' for what, _ in REFUSED)
    code += 'tell([out("ip", "-br", "link").count("cni"), results(), held("lab")])\n'
    code += 'os.remove(os.environ["HOME"] + "/.config/cni/net.d/lab.conflist")\n'
    code += 'answer(cni_run.setup, box("c", on("lab")), "")\n'
    *answered, gone = lab.run(code)
    assert answered == [*(f"error: {message}" for _, message in REFUSED), [0, [], []]]
    assert gone == "error: network lab: network not found"


def test_reload_keeps_addresses_and_brings_rules_back(lab: Lab) -> None:
    lab.home.run("create", "lab", "--subnet", "10.80.6.0/24", "--subnet", "fd00:80:6::/64")
    answered = lab.run(
        """
        fill = box("fill", on("lab"))
        one = box("one", on("lab"), port_mappings=[port(8080, 80)])
        other = box("other", on("lab"))
        for container in (fill, one, other):
            answer(cni_run.setup, container, "")
        cni_run.teardown(fill, "")
        rules = out("iptables-save", "-t", "nat").count("10.80.6.3")
        out("nft", "flush", "ruleset")
        tell(out("iptables-save", "-t", "nat").count("10.80.6.3"))
        answer(cni_run.reload, one, "")
        tell(out("iptables-save", "-t", "nat").count("10.80.6.3") == rules > 0)
        tell([one.attachments[0].static_ips, one.attachments[0].static_mac])
        serve(one, 80, "again")
        address = json.loads(out("ip", "-j", "-4", "address", "show", "tap0"))[0]["addr_info"][0]
        tell(get(None, address["local"], 8080))
        # One that was not reloaded has no rules to be deleted.
        answer(cni_run.teardown, other, "")
        answer(cni_run.teardown, one, "")
        tell([results(), held("lab")])
        """
    )
    before, after = answered[1], answered[4]
    assert answered[3] == 0
    assert after == before
    assert answered[5:] == [True, [[], ""], "again", None, None, [[], []]]
    assert lab.warnings == ""


def test_teardown_of_what_is_gone_damaged_or_done(lab: Lab) -> None:
    lab.home.run("create", "lab", "--subnet", "10.80.7.0/24")
    answered = lab.run(
        """
        names = ["gone", "damaged", "foreign", "removed"]
        boxes = {name: box(name, on("lab")) for name in names}
        for container in boxes.values():
            cni_run.setup(container, "")
        kids[0].kill(); kids[0].wait()
        open("/var/lib/cni/results/lab-damaged-eth0", "w").write("{")
        answer(cni_run.teardown, boxes["gone"], "")
        answer(cni_run.teardown, boxes["damaged"], "")
        # The number of its process has become another's, who has an eth0 too.
        stranger = box("stranger")
        sh(stranger, "ip", "link", "add", "eth0", "type", "ifb")
        boxes["foreign"].netns = stranger.netns
        answer(cni_run.teardown, boxes["foreign"], "")
        tell(list(links(stranger)))
        os.remove(os.environ["HOME"] + "/.config/cni/net.d/lab.conflist")
        answer(cni_run.teardown, boxes["removed"], "")
        tell([results(), held("lab")])
        answer(cni_run.teardown, boxes["removed"], "")
        """
    )
    assert answered[:3] == [None, None, None]
    assert sorted(answered[3]) == ["eth0", "lo"]
    assert answered[4:] == [
        None, [[], []],
        "error: tear down the network of removed: network lab: network not found",
    ]  # fmt: skip
    warning = (
        "rootlessnet: warning: Failed to load cached network config: network lab not found in CNI "
        "cache, falling back to loading network lab from disk\n"
    )
    assert lab.warnings == warning * 2


def test_what_a_plugin_fails_to_delete_does_not_keep_the_instance(lab: Lab) -> None:
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.80.13.0/24"}]]}
    lab.conflist("lab", {"type": "bridge", "bridge": "labbr", "ipam": ipam}, {"type": "rn-late"})
    plugins = lab.home.path / "plugins"
    plugins.mkdir()
    late = plugins / "rn-late"
    late.write_text(
        "#!/bin/sh\ncase $CNI_COMMAND in\n"
        'VERSION) echo \'{"cniVersion": "0.4.0", "supportedVersions": ["0.4.0"]}\';;\n'
        f"ADD) {sys.executable} -c 'import json, sys; "
        'print(json.dumps(json.load(sys.stdin)["prevResult"]))\';;\n'
        "DEL) echo broken >&2; exit 1\nesac\n"
    )
    late.chmod(0o755)
    lab.home.configure(f'network_backend = "cni"\ncni_plugin_dirs = ["{plugins}", "/usr/lib/cni"]')
    answered = lab.run(
        """
        one, two = box("one", on("lab")), box("two", on("lab"))
        answer(cni_run.setup, one, "")
        answer(cni_run.setup, two, "")
        answer(cni_run.teardown, one, "")
        tell([held("lab"), links(one), results()])
        # Nobody knows any more what two was attached to.
        answer(cni_run.teardown, Container("two", two.netns, []), "")
        tell([held("lab"), links(two), results()])
        """
    )
    broken = 'plugin type="rn-late" failed (delete): cni plugin rn-late failed: broken'
    for number, name in ((2, "one"), (4, "two")):
        assert answered[number] == (
            f"error: tear down the network of {name}: detach {name} from lab: {broken}"
        )
    marks = [".lab-one-eth0", ".lab-two-eth0"]
    assert answered[3] == [["10.80.13.3"], {"lo": []}, [marks[0], "lab-two-eth0"]]
    assert answered[5] == [[], {"lo": []}, marks]
    lab.net.wait_until_down()


def test_the_bridge_goes_with_its_network(lab: Lab) -> None:
    lab.home.run("create", "lab", "--subnet", "10.80.8.0/24", "--interface-name", "labbr")
    answered = lab.run(
        """
        one = box("one", on("lab"))
        cni_run.setup(one, "")
        cni_run.remove_bridge(networks["lab"])
        tell(["labbr" in out("ip", "link"), held("lab")])
        cni_run.teardown(one, "")
        tell("labbr" in out("ip", "link"))
        cni_run.remove_bridge(networks["lab"])
        tell(["labbr" in out("ip", "link"), os.listdir("/var/lib/cni/networks")])
        cni_run.remove_bridge(networks["lab"])
        """
    )
    assert answered == [[True, ["10.80.8.2"]], True, [False, []]]


def test_the_default_network_has_no_file(lab: Lab) -> None:
    answered = lab.run(
        """
        one = box("one", on("podman"))
        answer(cni_run.setup, one, "")
        answer(cni_run.teardown, one, "")
        answer(cni_run.is_ready, networks["podman"])
        """
    )
    assert answered[0]["podman"]["interfaces"]["eth0"]["subnets"] == [
        {"ipnet": "10.88.0.2/16", "gateway": "10.88.0.1"}
    ]
    assert answered[1:] == [None, None]


def test_name_servers_and_ready_made_plugins(lab: Lab) -> None:
    """A network that was written for others: ptp, static addresses, a section for DNS."""
    ipam = {"type": "static", "addresses": [{"address": "10.80.9.2/24", "gateway": "10.80.9.1"}]}
    dns = {"nameservers": ["203.0.113.53"], "search": ["example"]}
    lab.conflist("other", {"type": "ptp", "ipam": ipam, "dns": dns}, version="1.0.0")
    answered = lab.run(
        """
        one = box("one", on("other"))
        answer(cni_run.setup, one, "")
        answer(cni_run.check, one, "")
        sh(one, "ip", "address", "flush", "dev", "eth0")
        answer(cni_run.check, one, "")
        answer(cni_run.teardown, one, "")
        """
    )
    found = answered[0]["other"]
    assert found["dns_server_ips"] == ["203.0.113.53"]
    assert found["dns_search_domains"] == ["example"]
    assert answered[1] is None
    assert answered[2].startswith(
        'error: check the network of one: plugin type="ptp" failed (check): cni plugin ptp failed: '
    )
    assert answered[3] is None


def test_kill_9_in_the_middle_and_again(lab: Lab, tmp_path: Path) -> None:
    lab.home.run("create", "lab", "--subnet", "10.80.10.0/24")
    program = tmp_path / "setup.py"
    program.write_text(
        "import os, sys\n"
        "os.environ['ROOTLESSNET_CRASH_AT'] = sys.argv[1]\n"
        "from rootlessnet.networks import api, cni_run\n"
        "from rootlessnet.networks.attachment import Attachment, Container\n"
        "lab = Attachment(api.inspect('lab'), 'eth0')\n"
        "cni_run.setup(Container('one', sys.argv[2], [lab]), '')\n"
    )
    answered = lab.run(
        """
        one, two = box("one", on("lab")), box("two", on("lab"))
        def crash(point):
            command = [sys.executable, os.environ["PROGRAM"], point, one.netns]
            return subprocess.run(command).returncode
        tell(crash("cni:add:portmap"))
        tell([held("lab"), results()])
        answer(cni_run.setup, one, "")
        tell([len(held("lab")), results()])
        cni_run.teardown(one, "")
        tell([held("lab"), results()])
        tell(crash("cni:add:bridge"))
        cni_run.setup(two, "")
        answer(cni_run.collect, networks["lab"], [("two", "eth0")])
        tell([len(held("lab")), results(), links(one)])
        cni_run.teardown(two, "")
        tell(held("lab"))
        """,
        PROGRAM=str(program),
    )
    crashed, first, result, again, free, crashed_too, collected, after, none = answered
    assert (crashed, crashed_too) == (-9, -9)
    assert first == [["10.80.10.2"], [".lab-one-eth0"]]
    assert "eth0" in result["lab"]["interfaces"]
    assert again == [1, ["lab-one-eth0"]]
    assert free == [[], []]
    assert collected is None
    assert after == [1, ["lab-two-eth0"], {"lo": []}]
    assert none == []


def test_many_at_once_with_the_whole_chain(lab: Lab) -> None:
    lab.home.run("create", "lab", "--subnet", "10.80.11.0/24")
    answered = lab.run(
        """
        boxes = [box(f"b-{n}", on("lab"), port_mappings=[port(9000 + n, 80)]) for n in range(12)]
        def at_once(function):
            pids = []
            for container in boxes:
                pid = os.fork()
                if pid == 0:
                    try:
                        answer(function, container, "")
                    finally:
                        os._exit(0)
                pids.append(pid)
            for pid in pids:
                os.waitpid(pid, 0)
        at_once(cni_run.setup)
        tell([len(held("lab")), len(results())])
        at_once(cni_run.teardown)
        tell([held("lab"), results(), "10.80.11" in out("iptables-save", "-t", "nat")])
        """
    )
    ipnets = {each["lab"]["interfaces"]["eth0"]["subnets"][0]["ipnet"] for each in answered[:12]}
    assert len(ipnets) == 12
    assert answered[12:] == [[12, 12], *[None] * 12, [[], [], False]]


# -- the instance ----------------------------------------------------------------------------------


def test_results_keep_the_instance(net: Net) -> None:
    net.inside("sh", "-c", "mkdir -p /var/lib/cni/results; touch /var/lib/cni/results/lab-c-eth0")
    status = net.status()
    assert status["state"] == "running"
    assert status["leases"] == []
    # Also over the death of the supervisor, and of the holder.
    os.kill(status["supervisor"]["pid"], 9)
    wait_for("the supervisor is dead", lambda: not alive(status["supervisor"]["pid"]))
    assert net.status()["holder"] == status["holder"]
    os.kill(status["holder"]["pid"], 9)
    # For a moment there is none.
    wait_for("a new one", lambda: net.status()["holder"] not in (None, status["holder"]))
    path = net.directory / "root/var/lib/cni/results/lab-c-eth0"
    assert path.exists()
    path.unlink()
    net.wait_until_down()


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_force_ends_it_in_spite_of_results(net: Net) -> None:
    net.inside("sh", "-c", "mkdir -p /var/lib/cni/results; touch /var/lib/cni/results/lab-c-eth0")
    assert net.status()["state"] == "running"
    net.run("down", "--force")
    assert not net.directory.exists()


def test_what_has_only_begun_does_not_keep_it(net: Net) -> None:
    net.inside("sh", "-c", "mkdir -p /var/lib/cni/results; touch /var/lib/cni/results/.lab-c-eth0")
    net.wait_until_down()


# -- podman beside it ------------------------------------------------------------------------------


def test_podmans_cache_is_ours_and_ours_is_podmans(lab: Lab, tmp_path: Path) -> None:
    home = lab.home
    home.configure('network_backend = "cni"', 'cgroup_manager = "cgroupfs"\nevents_logger = "none"')
    root = tmp_path / "root" / "bin"
    root.mkdir(parents=True)
    (root / "busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "busybox").chmod(0o755)
    home.run("create", "lab", "--subnet", "10.80.12.0/24")
    run = ["run", "-d", "--network", "lab", "--pids-limit=0", "--cgroups=disabled"]
    sleep = ["--rootfs", str(root.parent), "/bin/busybox", "sleep", "600"]
    home.podman(*run, "--name", "stays", *sleep)
    home.podman(*run, "--name", "changes", "--network-alias", "other", *sleep)
    container = home.podman("inspect", "-f", "{{.Id}}", "changes").stdout.strip()
    netns = home.podman("inspect", "-f", "{{.NetworkSettings.SandboxKey}}", "changes").stdout
    program = f"""
import json, os, sys
from rootlessnet.networks import cni_list
from rootlessnet.networks.cni_runtime import Runtime
runtime = Runtime(["/usr/lib/cni"])
(entry,) = runtime.attached({container!r})
found = entry.attachment
runtime.delete(None, found.container, {netns.strip()!r}, found.interface, name=found.network)
between = os.listdir("/var/lib/cni/networks/lab")
network = cni_list.parse(entry.config)
result = runtime.add(network, found.container, {netns.strip()!r}, found.interface,
                     args=found.args, capability_args=found.capability_args)
print(json.dumps(dict(args=found.args, aliases=found.capability_args["aliases"],
                      before=entry.result["ips"], between=between, result=result["ips"])))
"""
    inside = ["unshare", "--rootless-netns"]
    told = json.loads(home.podman(*inside, sys.executable, "-c", program).stdout)
    assert told["args"] == [["IgnoreUnknown", "1"], ["K8S_POD_NAME", "changes"]]
    assert told["aliases"] == {"lab": ["other", container[:12]]}
    assert told["before"][0]["address"] == "10.80.12.3/24"
    assert "10.80.12.3" not in told["between"]
    assert told["result"][0]["address"] == "10.80.12.4/24"
    # podman finds what we have cached, or it would say that it falls back to the file.
    removed = home.podman("--log-level=warn", "rm", "-f", "-t", "0", "changes")
    assert "Failed to load cached" not in removed.stderr
    left = home.podman(*inside, "ls", "/var/lib/cni/results", "/var/lib/cni/networks/lab").stdout
    assert container not in left
    assert "10.80.12.4" not in left
    assert "10.80.12.2" in left
    home.podman("rm", "-f", "-t", "0", "stays")


def test_a_program_that_joins_with_the_environment_outside(lab: Lab) -> None:
    lab.home.run("create", "lab", "--subnet", "10.80.14.0/24")
    answered = lab.run(
        """
        for name in list(os.environ):
            if name.startswith("_CONTAINERS_"):
                del os.environ[name]
        os.environ["PATH"] = "/usr/bin:/bin"
        one = box("one", on("lab"), port_mappings=[port(8080, 80)])
        answer(cni_run.setup, one, "")
        answer(cni_run.teardown, one, "")
        """
    )
    assert "eth0" in answered[0]["lab"]["interfaces"]
    assert answered[1] is None


def test_protocols_and_ranges_of_ports() -> None:
    mapping = {"host_port": 80, "container_port": 8080, "protocol": "tcp,udp", "range": 2}
    found = cni_args.port_mappings([{**mapping, "host_ip": "127.0.0.1"}])
    assert [(p["protocol"], p["hostPort"], p["containerPort"]) for p in found] == [
        ("tcp", 80, 8080), ("tcp", 81, 8081), ("udp", 80, 8080), ("udp", 81, 8081),
    ]  # fmt: skip
    assert {p["hostIP"] for p in found} == {"127.0.0.1"}
    with pytest.raises(Error):
        cni_args.port_mappings([{**mapping, "protocol": "icmp"}])


def test_a_result_that_says_odd_things() -> None:
    odd = {
        "cniVersion": "0.4.0",
        "interfaces": [{"sandbox": "x"}, {"name": "br0", "mac": "02:00:00:00:00:01"}],
        "ips": [{"version": "4", "address": "10.0.0.2/8", "interface": 7}],
    }
    assert cni_convert.status_of(odd) == {
        "interfaces": {"": {"mac_address": "", "subnets": []}},
        "dns_server_ips": [],
        "dns_search_domains": [],
    }
    assert cni_convert.addresses_of(odd) == ["10.0.0.2"]
    for wrong in ({**odd, "dns": "x"}, {**odd, "interfaces": "x"}, [], None):
        with pytest.raises(Error):
            cni_convert.status_of(wrong)  # type: ignore[arg-type]
