"""The OCI hook with the runtimes themselves: what containers reach, and what is left of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from container_support import Lab, lab_of
from podman_support import Podman, make_rootfs
from support import PROGRAM, Net, kill, wait_for

RUNTIMES = ("runc", "crun")
PROGRAMS = ("sh", "httpd", "wget", "cat", "sleep", "ip", "readlink")


class Bundles:
    """Bundles with busybox, and a runtime that runs them inside the instance."""

    def __init__(self, lab: Lab, base: Path, runtime: str) -> None:
        self.lab = lab
        self.base = base
        self.runtime = runtime
        self.started: list[str] = []
        lab.network("lab", "--subnet", "10.99.0.0/24", "--subnet", "fd00:99::/64")
        lab.run("up", "-o", "allow_ports_from_inside=true")

    def make(
        self, id: str, *args: str, hooks: bool = True, config: dict[str, Any] | None = None,
        **annotations: str,
    ) -> Path:  # fmt: skip
        """A bundle; annotations without our prefix."""
        bundle = self.base / id
        (bundle / "rootfs/bin").mkdir(parents=True)
        for name in ("etc", "proc", "sys", "dev"):
            (bundle / "rootfs" / name).mkdir()
        shutil.copy("/bin/busybox", bundle / "rootfs/bin")
        for name in PROGRAMS:
            (bundle / "rootfs/bin" / name).symlink_to("busybox")
        (bundle / "rootfs/index.html").write_text(f"this is {id}\n")
        subprocess.run(["runc", "spec", "--rootless"], cwd=bundle, check=True)
        document = json.loads((bundle / "config.json").read_text())
        linux = document["linux"]
        linux["namespaces"] = [
            {"type": name} for name in ("pid", "ipc", "uts", "mount", "cgroup", "network")
        ]
        del linux["uidMappings"], linux["gidMappings"]
        document["process"]["args"] = list(args or ("httpd", "-f", "-p", "80", "-h", "/"))
        document["process"]["terminal"] = False
        document["annotations"] = {
            f"org.rootlessnet.{name}": value for name, value in annotations.items()
        }
        document.update(config or {})
        (bundle / "config.json").write_text(json.dumps(document))
        if hooks:
            self.lab.run("oci-hook", "generate", "--bundle", str(bundle))
        return bundle

    def edit(self, id: str) -> Any:
        path = self.base / id / "config.json"
        document = json.loads(path.read_text())
        return document, lambda: path.write_text(json.dumps(document))

    def call(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        root = ("--root", str(self.base / "state"))
        return self.lab.enter(self.runtime, *root, *command, **options)

    def run(self, id: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Start it and leave it running."""
        self.started.append(id)
        log = self.base / f"{id}.log"
        with log.open("w") as file:
            done = subprocess.run(
                [PROGRAM, "enter", self.runtime, "--root", str(self.base / "state"), "run", "-d",
                 "--bundle", str(self.base / id), id],
                env=self.lab.environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                timeout=30, check=False,
            )  # fmt: skip
        text = log.read_text()
        if check:
            assert done.returncode == 0, text
        return subprocess.CompletedProcess(done.args, done.returncode, "", text)

    def inside(self, id: str, *command: str) -> str:
        output: str = self.call("exec", id, *command).stdout
        return output

    def pid(self, id: str) -> int:
        return int(json.loads(self.call("state", id).stdout)["pid"])

    def end(self) -> None:
        for id in self.started:
            self.call("delete", "--force", id, check=False)
        self.lab.run("down", check=False)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """With netavark, which has names."""
    with lab_of(tmp_path) as one:
        yield one


@pytest.fixture(params=RUNTIMES)
def bundles(request: pytest.FixtureRequest, lab: Lab, tmp_path: Path) -> Iterator[Bundles]:
    (tmp_path / "bundles").mkdir()
    one = Bundles(lab, tmp_path / "bundles", request.param)
    yield one
    one.end()


def ports(lab: Lab) -> list[tuple[int, str]]:
    found = json.loads(lab.run("port", "ls", "--json").stdout)
    return sorted((port["host_port"], port["target"]) for port in found)


def fetch(url: str) -> str:
    command = ["curl", "--silent", "--max-time", "3", "--retry", "20", "--retry-connrefused",
               "--retry-delay", "0", "--retry-max-time", "5", url]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_two_containers_find_each_other_and_are_found(bundles: Bundles) -> None:
    lab = bundles.lab
    bundles.make("one", network="lab", alias="first,www", publish="127.0.0.1:18081:80")
    bundles.make("two", network="lab", ip="10.99.0.77,fd00:99::77", mac="92:d0:c6:00:11:22",
                 publish="18082:80, 18083:80")  # fmt: skip
    bundles.run("one")
    bundles.run("two")
    assert bundles.inside("one", "wget", "-qO-", "http://two/index.html") == "this is two\n"
    for name in ("one", "first", "www"):
        url = f"http://{name}/index.html"
        assert bundles.inside("two", "wget", "-qO-", url) == "this is one\n"
    assert bundles.inside("one", "wget", "-qO-", "http://203.0.113.1/") == "the internet\n"
    assert bundles.inside("one", "wget", "-qO-", "http://web.internet.test/") == "the internet\n"
    found = lab.on("two", "lab")
    assert (found["IPAddress"], found["GlobalIPv6Address"]) == ("10.99.0.77", "fd00:99::77")
    assert found["MacAddress"] == "92:d0:c6:00:11:22"
    assert ports(lab) == [(18081, "one"), (18082, "two"), (18083, "two")]
    assert fetch("http://127.0.0.1:18081/index.html") == "this is one\n"
    for host in ("127.0.0.1:18082", "[::1]:18083", "203.0.113.2:18082"):
        assert fetch(f"http://{host}/index.html") == "this is two\n"
    # One is deleted, the other killed: both are gone with all they had.
    bundles.call("delete", "--force", "one")
    assert (lab.ls(), ports(lab)) == (["two"], [(18082, "two"), (18083, "two")])
    kill(bundles.pid("two"))
    wait_for("it is taken down", lambda: not lab.ls())
    assert (ports(lab), lab.used_addresses()) == ([], [])
    # Its runtime tidies up later, and may do so twice.
    bundles.call("delete", "two")
    bundles.run("two")
    assert lab.ls() == ["two"]


def test_failure_is_the_containers_and_can_be_read(bundles: Bundles) -> None:
    lab = bundles.lab
    bundles.make("one", network="lab", publish="18081:80")
    bundles.run("one")

    def refused(id: str, **annotations: str) -> str:
        bundles.make(id, **annotations)
        done = bundles.run(id, check=False)
        assert done.returncode != 0
        assert lab.ls() == ["one"]
        assert lab.used_addresses() == ["10.99.0.2", "fd00:99::2"]
        return done.stderr

    said = refused("two", network="lab", publish="18081:80")
    assert (
        "rootlessnet: oci-hook createRuntime: container two: publish 18081:80/tcp: "
        "it is published already: 18081:80/tcp of container:one"
    ) in said
    assert "unable to find network with name or ID none-such" in refused(
        "three", network="none-such"
    )
    assert "org.rootlessnet.network lab:speed=1: unknown bridge network option" in refused(
        "four", network="lab:speed=1"
    )
    assert "port 80 of the host is privileged" in refused("five", network="lab", publish="80:80")
    # The same id with another runtime is another container, and leaves this one alone.
    other = Bundles.__new__(Bundles)
    other.lab, other.base, other.started = lab, bundles.base / "other", []
    other.runtime = next(name for name in RUNTIMES if name != bundles.runtime)
    other.base.mkdir()
    other.make("one", network="lab")
    assert "container one is set up already" in other.run("one", check=False).stderr
    assert fetch("http://127.0.0.1:18081/index.html") == "this is one\n"


def test_networks_and_their_options(bundles: Bundles) -> None:
    lab = bundles.lab
    lab.network("other", "--subnet", "10.98.0.0/24")
    bundles.make("one", network="lab:ip=10.99.0.50,alias=x, other:interface_name=in0,ip=10.98.0.9")
    bundles.run("one")
    assert lab.on("one", "lab")["IPAddress"] == "10.99.0.50"
    assert lab.on("one", "other")["IPAddress"] == "10.98.0.9"
    assert "10.98.0.9/24" in bundles.inside("one", "ip", "-o", "address", "show", "in0")
    # Without the annotation it is the default network.
    bundles.make("two")
    bundles.run("two")
    assert list(lab.inspect("two")["Networks"]) == ["podman"]
    # A file that is mounted by the bundle, and a link that leads out of it, stay.
    bundles.make("three", network="lab")
    (bundles.base / "mine").write_text("# mine\n")
    document, write = bundles.edit("three")
    document["mounts"].append(
        {"destination": "/etc/resolv.conf", "source": str(bundles.base / "mine"),
         "options": ["bind"]}
    )  # fmt: skip
    write()
    bundles.run("three")
    assert bundles.inside("three", "cat", "/etc/resolv.conf") == "# mine\n"
    four = bundles.make("four", network="lab")
    (four / "rootfs/etc/resolv.conf").symlink_to("/etc/hostname")
    bundles.run("four")
    assert bundles.inside("four", "readlink", "/etc/resolv.conf") == "/etc/hostname\n"
    assert Path("/etc/hostname").read_text() != ""


def test_environment_of_the_hook_may_be_empty(bundles: Bundles) -> None:
    lab = bundles.lab
    bundles.make("bare", network="lab")
    document, write = bundles.edit("bare")
    # Also two stages that would both set it up, and those that have nothing to do.
    for stage in ("prestart", "startContainer", "poststart"):
        if stage != "startContainer":  # which is run where our program is not
            document["hooks"][stage] = [dict(document["hooks"]["createRuntime"][0])]
            document["hooks"][stage][0]["args"] = ["rootlessnet", "oci-hook", stage]
    for hooks in document["hooks"].values():
        for hook in hooks:
            hook["env"] = ["NOTHING=1"]
    write()
    bundles.run("bare")
    assert list(lab.inspect("bare")["Networks"]) == ["lab"]
    assert "nameserver 10.99.0.1" in bundles.inside("bare", "cat", "/etc/resolv.conf")
    bundles.call("delete", "--force", "bare")
    assert lab.ls() == []


def test_hook_that_does_not_know_its_stage(bundles: Bundles, tmp_path: Path) -> None:
    """As in a hooks.d directory, whose file is the same for all stages."""
    lab = bundles.lab
    path = lab.run("oci-hook", "generate", "--hooks-dir", str(tmp_path / "hooks.d")).stdout.strip()
    installed = json.loads(Path(path).read_text())
    assert installed == json.loads(lab.run("oci-hook", "generate").stdout)
    assert (installed["version"], Path(path).name) == ("1.0.0", "rootlessnet.json")
    bundles.make("one", network="lab", publish="18081:80", hooks=False)
    document, write = bundles.edit("one")
    document["hooks"] = {stage: [installed["hook"]] for stage in installed["stages"]}
    write()
    bundles.run("one")
    assert fetch("http://127.0.0.1:18081/index.html") == "this is one\n"
    assert "nameserver 10.99.0.1" in bundles.inside("one", "cat", "/etc/resolv.conf")
    bundles.call("delete", "--force", "one")
    assert (lab.ls(), ports(lab)) == ([], [])


def test_devices_of_the_bundle(bundles: Bundles) -> None:
    lab = bundles.lab
    lab.enter("ip", "link", "add", "ens5", "type", "ifb")
    lab.enter("ip", "address", "add", "192.0.2.7/24", "dev", "ens5")
    linux = {"netDevices": {"ens5": {"name": "eth0"}}}
    bundles.make("one", network="none-such")
    document, write = bundles.edit("one")
    document["linux"].update(linux)
    write()
    assert "none-such" in bundles.run("one", check=False).stderr
    assert "192.0.2.7/24" in lab.inside("ip", "address", "show", "ens5")  # it came back
    document["annotations"]["org.rootlessnet.network"] = "lab"
    write()
    bundles.run("one")
    assert "192.0.2.7/24" in bundles.inside("one", "ip", "-o", "address", "show", "eth0")
    assert "10.99.0." in bundles.inside("one", "ip", "-o", "address", "show", "eth1")


def test_networks_of_cni(tmp_path: Path) -> None:
    with lab_of(tmp_path, "cni") as lab:
        (tmp_path / "bundles").mkdir()
        bundles = Bundles(lab, tmp_path / "bundles", "crun")
        bundles.make("one", network="lab:ip=10.99.0.50", publish="18081:80")
        bundles.run("one")
        assert fetch("http://203.0.113.2:18081/index.html") == "this is one\n"
        # The plugins say nothing of name servers: it has the instance's.
        assert "nameserver 10.0.2.3" in bundles.inside("one", "cat", "/etc/resolv.conf")
        kill(bundles.pid("one"))
        wait_for("it is taken down", lambda: not lab.ls() and not ports(lab))
        assert lab.used_addresses() == []
        bundles.end()


@pytest.mark.parametrize("mapped", [0, 1])
def test_user_namespace_of_its_own(bundles: Bundles, mapped: int) -> None:
    lab = bundles.lab
    bundles.make("one", network="lab", publish="18081:80")
    document, write = bundles.edit("one")
    document["linux"]["namespaces"].append({"type": "user"})
    for name in ("uidMappings", "gidMappings"):
        document["linux"][name] = [{"containerID": 0, "hostID": mapped, "size": 1}]
    if mapped:
        (bundles.base / "one").chmod(0o755)
        for path in (bundles.base, *list(bundles.base.parents)[:3]):
            path.chmod(path.stat().st_mode | 0o011)
    write()
    bundles.run("one")
    assert lab.on("one", "lab")["IPAddress"] == "10.99.0.2"
    assert fetch("http://127.0.0.1:18081/index.html") == "this is one\n"
    if not mapped:
        assert "nameserver 10.99.0.1" in bundles.inside("one", "cat", "/etc/resolv.conf")


def test_container_without_a_network_namespace_is_refused(bundles: Bundles) -> None:
    bundles.make("host", network="lab")
    document, write = bundles.edit("host")
    document["linux"]["namespaces"] = document["linux"]["namespaces"][:-1]
    write()
    said = bundles.run("host", check=False).stderr
    assert "container host: the container has no network namespace of its own" in said


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_podman_finds_it_in_its_hooks_directory(tmp_path: Path, runtime: str) -> None:
    podman = Podman(engine="")
    net = Net(tmp_path / "static", podman.runtime)
    net.environment.update(podman.environment)
    try:
        net.run("network", "create", "lab", "--subnet", "10.99.0.0/24")
        net.run("up", "-o", "allow_ports_from_inside=true")
        net.run("oci-hook", "generate", "--hooks-dir", str(tmp_path / "hooks.d"))
        run = ("podman", "--log-level=error", "--runtime", runtime,
               "--hooks-dir", str(tmp_path / "hooks.d"), "run", "--pids-limit=0",
               "--network", "none", "--annotation", "org.rootlessnet.network=lab")  # fmt: skip
        net.enter(
            *run, "-d", "--annotation", "org.rootlessnet.publish=18081:80",
            "--annotation", "org.rootlessnet.alias=www",
            "--rootfs", str(podman.rootfs), "httpd", "-f", "-h", "/etc",
        )  # fmt: skip
        page = "nsswitch.conf"
        assert fetch(f"http://127.0.0.1:18081/{page}") == "hosts: files\n"
        looked = net.enter(
            *run, "--rm", "--rootfs", str(make_rootfs(tmp_path / "rootfs")),
            "nslookup", "www", "10.99.0.1",
        )  # fmt: skip
        assert "10.99.0.2" in looked.stdout
        net.enter("podman", "rm", "-af", "-t", "0")
        assert json.loads(net.run("container", "ls", "--json").stdout) == []
        net.run("down")
    finally:
        net.run("down", "--force", check=False)
        net.end()
        net.wait_until_down(20)
        podman.end()


# -- without a runtime -----------------------------------------------------------------------------


def hook(lab: Lab, stage: str, state: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    text = state if isinstance(state, str) else json.dumps(state)
    return subprocess.run(
        [PROGRAM, "oci-hook", stage], input=text, env=options.pop("env", lab.environment),
        capture_output=True, text=True, timeout=30, check=False, **options,
    )  # fmt: skip


STATE = {"ociVersion": "1.0.2", "id": "gone", "status": "stopped", "bundle": "/none"}


def test_poststop_may_be_repeated(lab: Lab) -> None:
    for stage in ("poststop", "auto"):
        for _ in range(2):
            done = hook(lab, stage, STATE)
            assert (done.returncode, done.stderr) == (0, "")
    bare = {"HOME": str(lab.home), "ROOTLESSNET_STATIC_DIR": str(lab.static_dir)}
    assert hook(lab, "poststop", STATE, env=bare).returncode == 0
    assert not lab.directory.exists()


WRONG = [
    ("", "read the container's state from stdin: it is not JSON"),
    ("[]", "the state is not an object"),
    ({**STATE, "id": 5}, "id of the state is not a string"),
    ({**STATE, "id": "../x"}, "container '../x': not an id"),
    ({**STATE, "pid": "1"}, "pid of the state is not a number of a process"),
    ({**STATE, "annotations": {"a": 1}}, "annotations of the state are not strings by name"),
]


@pytest.mark.parametrize(("state", "said"), WRONG)
def test_state_that_makes_no_sense(lab: Lab, state: Any, said: str) -> None:
    done = hook(lab, "createRuntime", state)
    assert done.returncode == 125
    assert done.stderr.splitlines()[0] == f"rootlessnet: oci-hook createRuntime: {said}"


@pytest.mark.parametrize("stage", ["createRuntime", "createContainer", "auto"])
def test_names_in_a_state_steer_no_terminal(lab: Lab, tmp_path: Path, stage: str) -> None:
    state = {**STATE, "status": "creating", "pid": 1, "bundle": "/\ud800\n\x1b[31m"}
    done = hook(lab, stage, state)
    assert done.returncode == 125
    assert done.stderr == (
        f"rootlessnet: oci-hook {stage}: container gone: read /\\ud800 \\x1b[31m/config.json: "
        "'utf-8' codec can't encode character '\\ud800' in position 1: surrogates not allowed\n"
    )
    config = {"linux": {"namespaces": [{"type": "network"}], "netDevices": {"\ud800": {}}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = hook(lab, "createRuntime", {**state, "bundle": str(tmp_path)})
    assert done.returncode == 125
    assert done.stderr.endswith("invalid network device name '\\ud800': it is no text\n")


def test_bundle_that_makes_no_sense(lab: Lab, tmp_path: Path) -> None:
    state = {**STATE, "status": "creating", "pid": os.getpid(), "bundle": str(tmp_path)}
    attempt = "rootlessnet: oci-hook createRuntime: container gone: "
    config = tmp_path / "config.json"
    assert hook(lab, "createRuntime", state).stderr == (
        f"{attempt}read the bundle: {config}: No such file or directory\n"
    )
    config.write_text("[")
    assert hook(lab, "createRuntime", state).stderr.startswith(f"{attempt}read {config}: ")
    config.write_text('{"linux": {"namespaces": [{"type": "network"}]}}')
    said = hook(lab, "createRuntime", state).stderr.splitlines()
    assert said[0].endswith("it does not belong to the instance's user namespace")
    assert lab.ls() == []


def test_generated_hooks_replace_our_own_and_keep_others(lab: Lab, tmp_path: Path) -> None:
    other = {"path": "/bin/true", "args": ["true"]}
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"hooks": {"poststop": [other], "prestart": [other]}}))
    config.chmod(0o600)
    for _ in range(2):
        assert lab.run("oci-hook", "generate", "--bundle", str(tmp_path)).stdout == f"{config}\n"
    hooks = json.loads(config.read_text())["hooks"]
    assert hooks["prestart"] == [other]
    assert [each["args"][-1] for each in hooks["poststop"]] == ["poststop", "true"]
    assert hooks["createRuntime"] == json.loads(
        lab.run("oci-hook", "generate", "--config").stdout
    )["createRuntime"]  # fmt: skip
    (hook,) = hooks["createRuntime"]
    assert f"ROOTLESSNET_STATIC_DIR={lab.static_dir}" in hook["env"]
    assert os.access(hook["path"], os.X_OK)
    assert config.stat().st_mode & 0o777 == 0o600
    config.write_text("[]")
    assert lab.refused("oci-hook", "generate", "--bundle", str(tmp_path)) == (
        f"rootlessnet: add the hooks: {config} is no configuration of a bundle\n"
    )
    assert config.read_text() == "[]"


def test_commas_separate_networks_and_options() -> None:
    from rootlessnet.tools.oci_hook import networks

    assert networks(["a:ip=1.2.3.4", "ip6=fd00::1", "b", "c:mac=92:00", "alias=x"]) == [
        "a:ip=1.2.3.4,ip6=fd00::1", "b", "c:mac=92:00,alias=x",
    ]  # fmt: skip
