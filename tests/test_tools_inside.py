"""Tools inside `rootlessnet enter` use its network, and work as under `podman unshare`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from podman_support import Podman, make_rootfs
from support import RUNTIME, Net, wait_for

ADDRESS = ["ip", "-f", "inet", "address", "show", "tap0"]


@pytest.fixture
def podman() -> Iterator[Podman]:
    one = Podman(engine="")
    yield one
    one.end()


@pytest.fixture
def inside(podman: Podman, tmp_path: Path) -> Iterator[Net]:
    """An instance whose runtime directory is that of podman."""
    net = Net(tmp_path / "static", podman.runtime)
    net.environment.update(podman.environment)
    yield net
    net.enter("podman", "rm", "-af", "-t", "0", check=False)
    net.end()
    net.wait_until_down(20)


def is_ours(text: str) -> bool:
    return "inet 10.0.2.100/24" in text


# -- podman ---


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_podman_with_the_hosts_network_has_ours(inside: Net, podman: Podman, runtime: str) -> None:
    out = inside.inside(
        "podman", "--log-level=error", "--runtime", runtime, "run", "--rm", "--pids-limit=0",
        "--network=host", "--rootfs", str(podman.rootfs),
        "sh", "-c", "ip address show tap0; id -u; wget -q -O - http://203.0.113.1/",
    )  # fmt: skip
    assert is_ours(out) and out.endswith("\n0\nthe internet\n")


@pytest.mark.parametrize("network", ["slirp4netns", "podman"])
def test_podman_with_networks_of_its_own(inside: Net, podman: Podman, network: str) -> None:
    """Both end in our network. And podman clears up its own namespace, not what is mounted there:
    what is in the user's runtime directory stays."""
    kept = podman.runtime / "of-somebody-else"
    kept.write_text("kept")
    out = inside.inside(
        "podman", "--log-level=error", "run", "--rm", "--pids-limit=0", f"--network={network}",
        "--rootfs", str(podman.rootfs), "wget", "-q", "-O", "-", "http://203.0.113.1/",
    )  # fmt: skip
    assert out == "the internet\n"
    assert kept.read_text() == "kept"


def test_podman_container_in_the_background_is_a_user(inside: Net, podman: Podman) -> None:
    common = ["podman", "--log-level=error"]
    inside.enter(
        *common, "run", "-d", "--name", "c", "--pids-limit=0", "--network=host",
        "--rootfs", str(podman.rootfs), "sleep", "1000",
    )  # fmt: skip
    assert inside.status()["state"] == "running", "it counts as long as it runs"
    assert is_ours(inside.inside(*common, "exec", "c", *ADDRESS))
    assert "c" in podman.podman("ps", "--format", "{{.Names}}"), "podman knows it outside too"
    inside.enter(*common, "rm", "-f", "-t", "0", "c")
    inside.wait_until_down()


def test_networks_are_removed_while_podman_has_containers_inside_and_outside(
    inside: Net, podman: Podman
) -> None:
    """podman itself lists none of them then: each side's are out of the other's reach."""
    podman.podman("ps")  # else it joins the containers inside
    for name in ("used", "free", "used-outside"):
        inside.run("network", "create", name)
    inside.enter(
        "podman", "--log-level=error", "run", "-d", "--pids-limit=0", "--network=used",
        "--rootfs", str(podman.rootfs), "sleep", "1000",
    )  # fmt: skip
    podman.podman("create", "--network", "used-outside", "--rootfs", str(podman.rootfs), "true")
    assert podman.run("podman", "ps", "--all", check=False).returncode
    done = inside.run("network", "rm", "used", "free", "used-outside", check=False)
    assert (done.returncode, done.stdout) == (125, "free\n")
    assert done.stderr.count("has associated containers with it") == 2
    assert sorted(inside.run("network", "ls", "--quiet").stdout.split()) == [
        "podman", "used", "used-outside",
    ]  # fmt: skip


def test_podman_container_and_another_command_reach_each_other(inside: Net, podman: Podman) -> None:
    inside.enter(
        "podman", "--log-level=error", "run", "-d", "--name", "web", "--pids-limit=0",
        "--network=host", "--rootfs", str(podman.rootfs),
        "sh", "-c", "echo from the container >/tmp/index.html; exec httpd -f -p 8080 -h /tmp",
    )  # fmt: skip
    fetch = ["curl", "-sS", "-m", "5", "http://10.0.2.100:8080/"]
    wait_for("it serves", lambda: inside.enter(*fetch, check=False).returncode == 0)
    assert inside.inside(*fetch) == "from the container\n"
    server = inside.start(
        "enter", "--", "python3", "-c",
        "import socket; s = socket.create_server(('', 8081)); print('in', flush=True)\n"
        "while 1: c, _ = s.accept(); c.sendall(b'from the command\\n'); c.close()",
    )  # fmt: skip
    assert server.stdout is not None and server.stdout.readline() == "in\n"
    out = inside.inside("podman", "--log-level=error", "exec", "web", "nc", "127.0.0.1", "8081")
    assert out == "from the command\n"


def test_podman_container_with_a_network_of_its_own_reaches_a_command(
    inside: Net, podman: Podman
) -> None:
    """What is the host for it is the instance."""
    server = inside.start(
        "enter", "--", "python3", "-c",
        "import socket; s = socket.create_server(('', 8081)); print('in', flush=True)\n"
        "while 1: c, _ = s.accept(); c.sendall(b'from the command\\n'); c.close()",
    )  # fmt: skip
    assert server.stdout is not None and server.stdout.readline() == "in\n"
    out = inside.inside(
        "podman", "--log-level=error", "run", "--rm", "--pids-limit=0",
        "--network=slirp4netns:cidr=10.9.0.0/24,allow_host_loopback=true", "-i",
        "--rootfs", str(podman.rootfs), "nc", "10.9.0.2", "8081",
    )  # fmt: skip
    assert out == "from the command\n"


# -- buildah ---


def test_buildah(inside: Net, podman: Podman) -> None:
    name = inside.inside("buildah", "from", "scratch").strip()
    inside.enter("buildah", "copy", name, str(podman.rootfs), "/")
    for isolation in ("oci", "chroot"):
        out = inside.inside(
            "buildah", "run", f"--isolation={isolation}", "--network=host", name, *ADDRESS
        )
        assert is_ours(out), isolation
    inside.enter("buildah", "commit", "-q", name, "localhost/tiny")
    assert "localhost/tiny" in inside.inside("podman", "images", "--format", "{{.Repository}}")
    inside.enter("buildah", "rm", name)
    inside.enter("podman", "rmi", "localhost/tiny")


# -- plain runtimes ---


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_oci_runtime(net: Net, tmp_path: Path, runtime: str) -> None:
    """A bundle without a network namespace and a user namespace of its own."""
    make_rootfs(tmp_path / "rootfs")
    net.enter(runtime, "spec", cwd=tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["process"].update(terminal=False, args=ADDRESS)
    config["linux"]["namespaces"] = [
        one for one in config["linux"]["namespaces"] if one["type"] not in ("network", "user")
    ]
    config["linux"].pop("resources", None)
    # A network namespace that is not its own does not let it mount another sysfs.
    config["mounts"] = [one for one in config["mounts"] if one["type"] not in ("sysfs", "cgroup")]
    path.write_text(json.dumps(config))
    state = f"--root={tmp_path}/state"
    out = net.inside(runtime, state, "run", f"test-{runtime}", cwd=tmp_path)
    assert is_ours(out)
    assert net.inside(runtime, state, "list", "-q") == ""


@pytest.mark.parametrize("keep", [[], ["--keep-id"]], ids=["root inside", "keep-id"])
@pytest.mark.parametrize(
    "options", [[], ["--share-net"], ["--unshare-all", "--share-net"]], ids=" ".join
)
def test_bubblewrap(net: Net, keep: list[str], options: list[str]) -> None:
    box = ["bwrap", *options, "--bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    out = net.run("enter", *keep, "--", *box, "ip", "-4", "address", "show", "tap0").stdout
    assert is_ours(out)
    out = net.run("enter", *keep, "--", *box, "curl", "-sS", "http://203.0.113.1/").stdout
    assert out == "the internet\n"


# -- systemd ---


def test_systemd_run(net: Net) -> None:
    """A service is the manager's, and outside; a scope stays inside; and a service can enter."""
    run = ["systemd-run", "--user", "--quiet"]
    look = ["ip", "-4", "address"]
    assert "203.0.113.2" in net.inside(*run, "--wait", "--pipe", *look)
    assert is_ours(net.inside(*run, "--scope", *look))
    # Its status is 1 when some unit of the user's has failed, which is none of ours.
    state = net.enter("systemctl", "--user", "is-system-running", check=False).stdout
    assert state.strip() in ("running", "degraded")
    service = [*run, "--wait", "--pipe", f"--setenv=ROOTLESSNET_STATIC_DIR={net.static_dir}"]
    program = str(Path("/usr/local/bin/rootlessnet"))
    holder = net.hold()
    out = net.inside(*service, program, "enter", "--", "readlink", "/proc/self/ns/net")
    assert out.strip() == f"net:[{net.status()['netns']['inode']}]", "it is the same instance"
    net.release(holder)


def test_nested_enter(net: Net) -> None:
    holder = net.hold()
    inode = f"net:[{net.status()['netns']['inode']}]\n"
    nested = ["rootlessnet", "enter", "--", "rootlessnet", "enter", "--"]
    assert net.inside(*nested, "readlink", "/proc/self/ns/net") == inode
    shown = json.loads(net.inside("rootlessnet", "status", "--json"))
    assert [shown[key] for key in ("name", "netns")] == [net.status()[k] for k in ("name", "netns")]
    assert json.loads(net.inside("rootlessnet", "ps", "--json"))
    net.release(holder)


def test_unshare_and_nsenter(net: Net) -> None:
    """A user namespace below ours keeps the network; with the path others come in."""
    holder = net.hold()
    assert is_ours(net.inside("unshare", "-Ur", "ip", "-4", "address"))
    path = net.run("path").stdout.strip()
    done = subprocess.run(
        ["nsenter", f"--user={Path(path).parent}/user", f"--net={path}", "ip", "-4", "address"],
        text=True, capture_output=True, check=True,
    )  # fmt: skip
    assert is_ours(done.stdout)
    net.release(holder)


def test_users_bus_is_still_there() -> None:
    """The last of the tests here, as podman inside once removed it."""
    assert (RUNTIME / "bus").is_socket()
