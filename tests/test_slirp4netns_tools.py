"""podman, buildah and rootlesskit with rootlessnet-slirp4netns in the place of slirp4netns."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from podman_support import Podman
from slirp4netns_support import WRAPPER, free_port, real_of
from support import kill, wait_for

SERVE = "echo from inside >/tmp/index.html; exec httpd -f -p 80 -h /tmp"


@pytest.fixture
def podman() -> Iterator[Podman]:
    one = Podman()
    yield one
    one.end()


def fetch(port: int, host: str = "127.0.0.1") -> str:
    """What the web server in a container says; empty when it does not answer."""
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/", timeout=5) as reply:
            text: str = reply.read().decode()
            return text
    except OSError:
        return ""


def steady(text: str) -> str:
    """What `ip` shows, without the state: a tap that was attached to once more tells a carrier."""
    return re.sub(r" state [A-Z]+", "", text)


# -- podman ---


def test_podman_network_of_one_container(podman: Podman) -> None:
    """`--network slirp4netns` with options, and ports through slirp4netns' own API."""
    port = free_port()
    podman.container(
        "c",
        "slirp4netns:port_handler=slirp4netns,cidr=10.7.0.0/24,mtu=3000,enable_ipv6=true",
        "-p", f"127.0.0.1:{port}:80",
        command=SERVE,
    )  # fmt: skip
    look = "ip -f inet address show tap0; ip route"
    shown = podman.execute("c", look)
    assert "inet 10.7.0.100/24" in shown and "mtu 3000" in shown
    assert "default via 10.7.0.2" in shown
    assert fetch(port) == "from inside\n"
    assert podman.reaches_internet("c")
    for _ in range(2):
        podman.restart_real()
        wait_for("it is as before", lambda: steady(podman.execute("c", look)) == steady(shown))
        wait_for("the port is forwarded again", lambda: fetch(port) == "from inside\n")
        assert podman.reaches_internet("c")
    podman.podman("stop", "-t", "0", "c")
    wait_for("slirp4netns has gone with the container", lambda: not podman.wrappers())
    assert not fetch(port)


def test_podman_port_handler_rootlesskit(podman: Podman) -> None:
    port = free_port()
    podman.container("c", "slirp4netns", "-p", f"127.0.0.1:{port}:80", command=SERVE)
    assert fetch(port) == "from inside\n"
    podman.restart_real()
    assert fetch(port) == "from inside\n"
    assert podman.reaches_internet("c")


def test_podman_container_killed(podman: Podman) -> None:
    podman.container("c", "slirp4netns")
    (wrapper,) = podman.wrappers()
    assert f"rootlessnet-slirp4netns-{wrapper}.scope" in Path(f"/proc/{wrapper}/cgroup").read_text()
    shown = podman.inspect("c")
    kill(shown["State"]["ConmonPid"])
    kill(shown["State"]["Pid"])
    wait_for("slirp4netns has gone with the container", lambda: not podman.wrappers())


def test_podman_refuses_what_slirp4netns_refuses(podman: Podman) -> None:
    done = podman.run(
        "podman", "run", "--rm", "--pids-limit=0", "--network", "slirp4netns:cidr=10.0.2.1/24",
        "--rootfs", str(podman.rootfs), "true", check=False,
    )  # fmt: skip
    assert done.returncode == 126 or done.returncode == 125
    assert "CIDR needs to be a network address like 10.0.2.0/24" in done.stderr


def test_podman_shared_namespace_of_its_bridges(podman: Podman) -> None:
    """The network comes back in running containers, whatever happens to slirp4netns."""
    podman.podman("network", "create", "net")
    podman.container("one", "net", command=SERVE)
    podman.container("two", "net")
    (wrapper,) = podman.wrappers()
    assert "/user.slice/" in Path(f"/proc/{wrapper}/cgroup").read_text()
    assert podman.reaches_internet("one") and podman.reaches_internet("two")
    address = podman.inspect("one")["NetworkSettings"]["Networks"]["net"]["IPAddress"]
    inner = "podman unshare --rootless-netns ip -4 address show tap0".split()
    before = steady(podman.run(*inner).stdout)
    for _ in range(2):
        podman.restart_real()
        wait_for("it is as before", lambda: steady(podman.run(*inner).stdout) == before)
        wait_for("one is connected again", lambda: podman.reaches_internet("one"))
        assert podman.reaches_internet("two")
        assert podman.execute("two", f"wget -q -O - http://{address}/") == "from inside\n"
    assert podman.wrappers() == [wrapper]
    podman.podman("rm", "-af", "-t", "0")
    wait_for("it has gone with the last container", lambda: not podman.wrappers())


def test_podman_unshare_command_killed(podman: Podman) -> None:
    """podman never cleans up after it; slirp4netns goes when the namespace is taken away."""
    podman.run("podman", "unshare", "--rootless-netns", "true")
    (wrapper,) = podman.wrappers()
    (path,) = (podman.runtime / "netns").iterdir()
    podman.run("podman", "unshare", "sh", "-c", f"umount -l {path} && rm {path}")
    wait_for("it has seen that the namespace is gone", lambda: not podman.wrappers())
    assert not Path(f"/proc/{wrapper}").exists() or not real_of(wrapper)


# -- buildah ---


def test_buildah_from_scratch(podman: Podman) -> None:
    """buildah makes an image without a registry, runs in it, and podman runs the image."""
    # It does not ask containers.conf, but PATH.
    directory = podman.base / "bin"
    directory.mkdir()
    (directory / "slirp4netns").symlink_to(WRAPPER)
    podman.environment["PATH"] = f"{directory}:{podman.environment['PATH']}"
    name = podman.run("buildah", "from", "scratch").stdout.strip()
    podman.run("buildah", "copy", name, str(podman.rootfs), "/")
    fetch = "wget -q -O - http://203.0.113.1/"
    script = f"ip address show tap0; {fetch}; until [ -e /go ]; do :; done; {fetch}"
    child = subprocess.Popen(
        ["buildah", "run", name, "sh", "-c", script],
        env=podman.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None
    shown = ""
    while "internet" not in shown:
        line = child.stdout.readline()
        assert line, (shown, child.communicate())
        shown += line
    assert "inet 10.0.2.100/24" in shown
    (wrapper,) = (pid for pid, _ in podman.named(str(directory / "slirp4netns")))
    podman.restart_real(wrapper)
    mounted = podman.run("buildah", "unshare", "buildah", "mount", name).stdout.strip()
    podman.run("buildah", "unshare", "touch", f"{mounted}/go")
    out, err = child.communicate(timeout=20)
    assert (child.returncode, out) == (0, "the internet\n"), err
    wait_for("it has gone with the command", lambda: not Path(f"/proc/{wrapper}").exists())
    podman.run("buildah", "config", "--cmd", "true", name)
    podman.run("buildah", "commit", "-q", name, "localhost/tiny")
    out = podman.podman(
        "run", "--rm", "--pids-limit=0", "--network=slirp4netns", "localhost/tiny",
        "wget", "-q", "-O", "-", "http://203.0.113.1/",
    )  # fmt: skip
    assert "internet" in out


# -- rootlesskit ---


@pytest.fixture
def state() -> Iterator[Path]:
    import shutil
    import tempfile

    path = Path(tempfile.mkdtemp(prefix="rk-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.parametrize("port_driver", ["slirp4netns", "builtin"])
def test_rootlesskit(state: Path, port_driver: str) -> None:
    port = free_port()
    code = (
        "import socket; s = socket.create_server(('', 80)); print('in', flush=True)\n"
        "while 1: c, _ = s.accept(); c.sendall(b'inside'); c.close()"
    )
    child = subprocess.Popen(
        [
            "rootlesskit", f"--state-dir={state}/s", "--net=slirp4netns", "--mtu=3000",
            f"--slirp4netns-binary={WRAPPER}", "--disable-host-loopback", "--copy-up=/etc",
            f"--port-driver={port_driver}", "-p", f"127.0.0.1:{port}:80/tcp",
            "--slirp4netns-sandbox=auto", "--slirp4netns-seccomp=auto", "python3", "-c", code,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        assert line == "in\n", child.communicate()
        inner = int((state / "s/child_pid").read_text())
        enter = ["nsenter", "-t", str(inner), "-U", "-n", "--preserve-credentials"]

        def inside(*command: str) -> str:
            return subprocess.run(
                [*enter, *command], text=True, capture_output=True, check=False
            ).stdout

        def answers() -> bool:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                    return client.recv(10) == b"inside"
            except OSError:
                return False

        wait_for("the port is forwarded", answers)

        def look() -> str:
            return steady(inside("ip", "-4", "address", "show", "tap0") + inside("ip", "route"))

        before = look()
        assert "mtu 3000" in before and "default via 10.0.2.2" in before
        wrapper = wrapper_of(child.pid)
        real = real_of(wrapper)
        kill(real)
        wait_for("another one runs", lambda: real_of(wrapper) not in (0, real))
        wait_for("the port is forwarded again", answers)
        wait_for("it is as before", lambda: look() == before)
        assert "internet" in inside("curl", "-sS", "-m", "5", "http://203.0.113.1/")
    finally:
        child.kill()
        child.communicate()
    wait_for("it ends with rootlesskit", lambda: not Path(f"/proc/{wrapper}").exists())


def wrapper_of(parent: int) -> int:
    children = Path(f"/proc/{parent}/task").glob("*/children")
    for pid in " ".join(path.read_text() for path in children).split():
        if WRAPPER.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:2]:
            return int(pid)
    raise AssertionError(f"no {WRAPPER} below {parent}: {os.listdir(f'/proc/{parent}/task')}")
