"""rootlessnet-slirp4netns: to its caller as the original, and a network that lasts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from slirp4netns_support import (
    REAL,
    USUAL,
    WRAPPER,
    Namespace,
    Wrapped,
    api,
    forward,
    free_port,
    private_directories,
    real_of,
)
from support import Net, is_alive, kill, wait_for


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = Namespace()
    yield made
    made.end()


Start = Callable[..., Wrapped]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start one; afterwards nothing of it may be left."""
    started: list[Wrapped] = []

    def begin(*arguments: str, **options: Any) -> Wrapped:
        log = tmp_path / f"log-{len(started)}"
        started.append(Wrapped(*arguments, log=log, **options))
        return started[-1]

    yield begin
    for one in started:
        one.end()
    assert not private_directories()


def configured(start: Start, namespace: Namespace, *more: str, **options: Any) -> Wrapped:
    one = start(*USUAL, "-c", *more, str(namespace.pid), "tap0", **options)
    assert one.wait_until_ready() == b"1", one.text()
    return one


# -- what the caller sees ---


@pytest.mark.parametrize("option", ["--help", "--version", "-h", "-v"])
def test_help_and_version_are_the_originals(option: str) -> None:
    ours = subprocess.run([WRAPPER, option], capture_output=True, text=True, check=False)
    theirs = subprocess.run([REAL, option], capture_output=True, text=True, check=False)
    assert (ours.returncode, ours.stderr) == (theirs.returncode, theirs.stderr)
    assert ours.stdout.replace(WRAPPER, REAL).replace(REAL, "slirp4netns") == theirs.stdout.replace(
        REAL, "slirp4netns"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["123"],
        ["--no-such-option", "1", "tap0"],
        ["--mtu"],
        ["--enable-s", "1", "tap0"],
        ["-c", "999999999", "tap0"],
        ["-c", "--netns-type=path", "/no/such", "tap0"],
        ["-c", "--netns-type=path", "--userns-path=/no/such", "/proc/self/ns/net", "tap0"],
        ["-c", "--mtu=70000", "SELF", "tap0"],
        ["-c", "--cidr=10.0.2.1/24", "SELF", "tap0"],
        ["-c", "-r", "x", "SELF", "tap0"],
        ["-c", "-a", "/tmp/" + 110 * "x", "SELF", "tap0"],
        ["--target-type=bess", "-c", "/tmp/x"],
    ],
)
def test_wrong_lines_are_refused_in_the_originals_words(
    arguments: list[str], namespace: Namespace
) -> None:
    line = [str(namespace.pid) if word == "SELF" else word for word in arguments]
    done = {}
    for program in (WRAPPER, REAL):
        ended = subprocess.run(
            [program, *line], text=True, capture_output=True, check=False, timeout=20,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        text = (ended.stdout + ended.stderr).replace(REAL, "slirp4netns")
        done[program] = (ended.returncode, sorted(text.splitlines()))
    assert done[WRAPPER] == done[REAL]
    assert done[REAL][0] == 1


@pytest.mark.parametrize(
    "options",
    [
        ["-c"],
        ["-c6", "-m", "3000", "--cidr", "10.9.0.0/24"],
        ["--conf", "--enable-ipv6", "--enable-sandbox", "--disable-dns", "--mtu=3000"],
        ["-c", "--macaddress=02:11:22:33:44:55", "--outbound-addr=203.0.113.2"],
        ["--"],
    ],
)
def test_the_namespace_is_configured_as_by_the_original(options: list[str], tmp_path: Path) -> None:
    seen = []
    for number, program in enumerate((REAL, WRAPPER)):
        namespace = Namespace()
        log = tmp_path / str(number)
        one = Wrapped(*options, str(namespace.pid), "tap7", log=log, program=program)
        try:
            assert one.wait_until_ready() == b"1"
            interface = namespace.interface("tap7")
            if "macaddress" not in str(options):
                del interface["mac"]
            interface["addresses"] = [one for one in interface["addresses"] if "." in one]
            seen.append((interface, namespace.run("ip", "route"), namespace.interfaces()))
        finally:
            one.end()
            namespace.end()
    assert seen[0] == seen[1]


def test_options_after_the_words_and_a_path(start: Start, namespace: Namespace) -> None:
    path = f"/proc/{namespace.pid}/ns"
    one = start(
        f"{path}/net", "tap0", "-c", "--netns-type", "path", "--userns-path", f"{path}/user"
    )
    assert one.wait_until_ready() == b"1"
    assert namespace.interface()["addresses"][0] == "10.0.2.100"
    before = namespace.interface()
    real = one.real()
    kill(real)
    one.wait_until_restarted(real)
    assert namespace.interface() == before and namespace.reaches_internet()


def test_ready_pipe_is_closed_without_a_word_on_failure(start: Start, namespace: Namespace) -> None:
    configured(start, namespace)
    second = start(*USUAL, "-c", str(namespace.pid), "tap0")
    assert second.wait_until_ready() == b""
    assert second.process.wait(10) == 1
    assert "Device or resource busy" in second.text()
    assert namespace.reaches_internet(), "the first one is not disturbed"


def test_exit_descriptor_ends_it_by_hanging_up_only(start: Start, namespace: Namespace) -> None:
    one = configured(start, namespace)
    real = one.real()
    os.write(one.exit, b"1")
    assert namespace.reaches_internet()
    one.close(one.exit)
    assert one.process.wait(10) == 0
    assert not is_alive(real)
    assert namespace.interfaces() == ["lo"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_signal_ends_both_and_the_caller_sees_it(
    start: Start, namespace: Namespace, number: signal.Signals, tmp_path: Path
) -> None:
    socket_path = tmp_path / "api"
    one = configured(start, namespace, "-a", str(socket_path))
    real = one.real()
    one.process.send_signal(number)
    assert one.process.wait(10) == -number
    wait_for("the real one has ended", lambda: not is_alive(real))
    wait_for("the tap is gone", lambda: namespace.interfaces() == ["lo"])
    assert socket_path.exists() == (number == signal.SIGKILL)
    again = configured(start, namespace, "-a", str(socket_path))
    assert api(socket_path, {"execute": "list_hostfwd"}) == {"entries": []}
    again.close(again.exit)
    assert again.process.wait(10) == 0 and not socket_path.exists()


def test_caller_that_closes_everything(namespace: Namespace) -> None:
    script = f"exec {WRAPPER} -c --mtu=3000 {namespace.pid} tap0 <&- >&- 2>&-"
    with subprocess.Popen(["sh", "-c", script]) as child:
        try:
            wait_for("it works", namespace.reaches_internet)
        finally:
            child.terminate()
        assert child.wait(10) == -signal.SIGTERM


def test_no_descriptor_of_the_caller_is_kept(start: Start, namespace: Namespace) -> None:
    read, write = os.pipe()
    try:
        configured(start, namespace, pass_fds=[write])
        os.close(write)
        write = -1
        assert os.read(read, 1) == b"", "whoever waits for the end of a pipe sees it"
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)


# -- what it adds ---


def test_moved_out_of_the_callers_cgroup(start: Start, namespace: Namespace) -> None:
    one = configured(start, namespace)
    for pid in (one.pid, one.real()):
        text = Path(f"/proc/{pid}/cgroup").read_text()
        assert f"/user.slice/rootlessnet-slirp4netns-{one.pid}.scope" in text
    real = one.real()
    kill(real)
    text = Path(f"/proc/{one.wait_until_restarted(real)}/cgroup").read_text()
    assert f"/user.slice/rootlessnet-slirp4netns-{one.pid}.scope" in text


def test_killed_slirp4netns_is_replaced_and_nothing_inside_changes(
    start: Start, namespace: Namespace
) -> None:
    one = configured(start, namespace, "--enable-ipv6")
    namespace.run("ip", "address", "add", "192.0.2.7/32", "dev", "tap0")
    namespace.run("ip", "route", "add", "198.51.100.0/24", "via", "10.0.2.2")

    def inside() -> object:
        interface = namespace.interface()
        # Autoconfiguration goes on by itself.
        interface["addresses"] = [one for one in interface["addresses"] if "." in one]
        return interface, namespace.run("ip", "route")

    before = inside()
    descriptors = []
    for _ in range(3):
        real = one.real()
        kill(real)
        one.wait_until_restarted(real)
        assert inside() == before
        descriptors.append(len(os.listdir(f"/proc/{one.pid}/fd")))
        assert namespace.reaches_internet()
    # The first restart opens the journal.
    assert descriptors[1] == descriptors[2] <= descriptors[0] + 1
    assert f"{real} was killed by signal 9" in one.text()
    assert one.process.poll() is None
    one.close(one.exit)
    assert one.process.wait(10) == 0
    assert namespace.interfaces() == ["lo"], "it is not left persistent"


def test_tap_that_the_caller_configures_is_kept(start: Start, namespace: Namespace) -> None:
    """RootlessKit does without -c."""
    one = start("--mtu=2500", str(namespace.pid), "tap0")
    assert one.wait_until_ready() == b"1"
    for command in (
        "link set tap0 up mtu 2500 address 02:00:00:00:00:09",
        "address add 10.0.2.100/24 dev tap0",
        "route add default via 10.0.2.2",
    ):
        namespace.run("ip", *command.split())
    assert namespace.reaches_internet()
    before = namespace.interface()
    real = one.real()
    kill(real)
    one.wait_until_restarted(real)
    assert namespace.interface() == before and namespace.reaches_internet()


def test_tap_that_cannot_be_kept_is_made_anew(
    start: Start, namespace: Namespace, tmp_path: Path
) -> None:
    """A script that does not exec it: the tap is another process'."""
    program = tmp_path / "slirp4netns"
    program.write_text(f'#!/bin/sh\n{REAL} "$@"\nexit 3\n')
    program.chmod(0o755)
    environment = {**os.environ, "ROOTLESSNET_SLIRP4NETNS": str(program)}
    one = configured(start, namespace, env=environment)
    assert "tap0 cannot be kept over a restart: it has no tap" in one.text()
    before = namespace.interface()
    kill(real_of(int(one_child(one.pid))))
    wait_for("it works again", namespace.reaches_internet)
    after = namespace.interface()
    assert after["number"] != before["number"]
    assert "10.0.2.100" in after["addresses"] and after["mtu"] == before["mtu"]
    assert "ended with status 3" in one.text()


def one_child(pid: int) -> str:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return child


@pytest.mark.root
def test_as_root(tmp_path: Path) -> None:
    """In a namespace of root's, without a user namespace."""
    child = subprocess.Popen(
        ["unshare", "-n", "sh", "-c", "echo in; exec sleep 1000"], stdout=subprocess.PIPE
    )
    assert child.stdout is not None and child.stdout.readline() == b"in\n"
    inside = ["nsenter", "-t", str(child.pid), "-n", "--"]
    one = Wrapped(*USUAL, "-c", str(child.pid), "tap0", log=tmp_path / "log")
    try:
        assert one.wait_until_ready() == b"1", one.text()
        assert "rootlessnet-slirp4netns-" in Path(f"/proc/{one.real()}/cgroup").read_text()
        real = one.real()
        kill(real)
        one.wait_until_restarted(real)
        fetch = [*inside, "curl", "-sS", "-m", "5", "http://203.0.113.1/"]
        assert subprocess.run(fetch, check=True, capture_output=True).stdout == b"the internet\n"
        child.kill()
        child.wait()
        assert one.process.wait(10) == 0
    finally:
        child.kill()
        child.communicate()
        one.end()


@pytest.mark.parametrize(
    "point", ["started", "ready", "guarded", "persistent", "spawned", "restarted"]
)
def test_killed_anywhere_leaves_nothing(
    start: Start, namespace: Namespace, point: str, tmp_path: Path
) -> None:
    environment = {**os.environ, "ROOTLESSNET_CRASH_AT": f"slirp4netns:{point}"}
    one = start(
        *USUAL, "-c", "-a", str(tmp_path / "api"), str(namespace.pid), "tap0", env=environment
    )
    one.wait_until_ready()
    if one.process.poll() is None and one.real():
        kill(one.real())
    assert one.process.wait(10) == -signal.SIGKILL
    wait_for("the tap is gone", lambda: namespace.interfaces() == ["lo"])
    again = configured(start, namespace, "-a", str(tmp_path / "api"))
    assert namespace.reaches_internet()
    again.close(again.exit)
    assert again.process.wait(10) == 0
    assert not private_directories()


def test_both_killed_at_once(start: Start, namespace: Namespace) -> None:
    one = configured(start, namespace)
    real = one.real()
    os.kill(one.pid, signal.SIGSTOP)
    kill(real)
    kill(one.pid)
    wait_for("the tap is gone", lambda: namespace.interfaces() == ["lo"])


def test_slirp4netns_that_cannot_start_again_is_tried_again(
    start: Start, namespace: Namespace, tmp_path: Path
) -> None:
    program, broken = tmp_path / "slirp4netns", tmp_path / "broken"
    program.write_text(
        f'#!/bin/sh\n[ -e {broken} ] && {{ echo cannot do it >&2; exit 9; }}\nexec {REAL} "$@"\n'
    )
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    one = configured(start, namespace, env=environment)
    before = namespace.interface()
    broken.touch()
    kill(one.real())
    wait_for("it was tried twice", lambda: one.text().count("cannot do it") > 1)
    assert namespace.interface() == before, "addresses and routes stay meanwhile"
    broken.unlink()
    wait_for("it works again", lambda: one.real() and namespace.reaches_internet())
    one.close(one.exit)
    assert one.process.wait(10) == 0
    assert namespace.interfaces() == ["lo"]


def test_ended_while_slirp4netns_is_out(start: Start, namespace: Namespace, tmp_path: Path) -> None:
    program = tmp_path / "slirp4netns"
    program.symlink_to(REAL)
    environment = {**os.environ, "ROOTLESSNET_SLIRP4NETNS": str(program)}
    one = configured(start, namespace, env=environment)
    program.unlink()
    kill(one.real())
    wait_for("it cannot be started", lambda: "restart: " in one.text())
    assert "tap0" in namespace.interfaces()
    one.process.terminate()
    assert one.process.wait(10) == -signal.SIGTERM
    wait_for("the tap is gone", lambda: namespace.interfaces() == ["lo"])


def test_leaves_when_the_target_process_is_gone(start: Start, namespace: Namespace) -> None:
    one = configured(start, namespace)
    real = one.real()
    other = subprocess.Popen(
        ["nsenter", "-t", str(namespace.pid), "-U", "-n", "--preserve-credentials", "sleep", "100"]
    )
    wait_for(
        "another one is inside",
        lambda: (
            os.readlink(f"/proc/{other.pid}/ns/net") == os.readlink(f"/proc/{namespace.pid}/ns/net")
        ),
    )
    namespace.end()
    namespace.pid = other.pid
    assert namespace.reaches_internet(), "as long as anybody is inside"
    kill(real)
    one.wait_until_restarted(real)
    assert namespace.reaches_internet()
    real = one.real()
    other.kill()
    other.wait()
    assert one.process.wait(10) == 0
    assert not is_alive(real)
    assert "the network namespace is gone" in one.text()


def test_leaves_when_the_named_file_is_gone(tmp_path: Path) -> None:
    """As podman does it: no process inside, only a file that is unmounted and removed."""
    path = tmp_path / "netns"
    path.touch()
    script = (
        f"mount --make-rprivate / && unshare -n mount --bind /proc/self/ns/net {path} && "
        f"{{ unshare -m {WRAPPER} -c -r 5 --netns-type=path {path} tap0 5>{tmp_path}/ready & }} && "
        f"until grep -q 1 {tmp_path}/ready; do sleep 0.01; done && "
        f"nsenter --net={path} curl -sS -m 5 http://203.0.113.1/ && "
        f"echo still $(jobs -r | wc -l) && umount -l {path} && rm {path} && wait $! && echo left"
    )
    done = subprocess.run(
        ["unshare", "-Urm", "bash", "-c", script], text=True, capture_output=True, timeout=30,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "internet" in done.stdout and done.stdout.endswith("still 1\nleft\n")


def test_namespace_that_is_only_mounted_is_served(start: Start, tmp_path: Path) -> None:
    """Without a process inside it goes by a descriptor; and is gone with the last mount."""
    namespace = Namespace()
    one = configured(start, namespace)
    path = tmp_path / "netns"
    path.touch()
    enter = ["nsenter", "-t", str(namespace.pid), "-U", "--preserve-credentials", "unshare", "-m"]
    script = f"mount --bind /proc/{namespace.pid}/ns/net {path} && echo in && exec sleep 1000"
    keeper = subprocess.Popen([*enter, "sh", "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert keeper.stdout is not None and keeper.stdout.readline() == "in\n"
        namespace.end()
        real = one.real()
        kill(real)
        one.wait_until_restarted(real)
        fetch = f"nsenter --net={path} curl -sS -m 5 http://203.0.113.1/"
        inside = ["nsenter", "-t", str(keeper.pid), "-U", "-m", "--preserve-credentials"]
        out = subprocess.run([*inside, "sh", "-c", fetch], check=True, capture_output=True).stdout
        assert out == b"the internet\n"
    finally:
        keeper.kill()
        keeper.communicate()
    assert one.process.wait(20) == 0
    assert "the network namespace is gone" in one.text()


def test_connection_through_a_dead_one_is_reset(start: Start, namespace: Namespace) -> None:
    """Whoever uses it hears of it, instead of waiting for an answer for ever."""
    one = configured(start, namespace)
    code = (
        "import socket; s = socket.create_connection(('203.0.113.1', 80)); s.settimeout(20)\n"
        "print('in', flush=True); input()\n"
        "try: s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n'); print(s.recv(9))\n"
        "except ConnectionResetError: print('reset')"
    )
    enter = ["nsenter", "-t", str(namespace.pid), "-U", "-n", "--preserve-credentials"]
    client = subprocess.Popen(
        [*enter, "python3", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert client.stdout is not None and client.stdout.readline() == "in\n"
    real = one.real()
    kill(real)
    one.wait_until_restarted(real)
    assert client.communicate("go\n", timeout=30)[0] == "reset\n"


def test_log_goes_to_the_journal_too(start: Start, namespace: Namespace) -> None:
    one = configured(start, namespace)
    real = one.real()
    kill(real)
    one.wait_until_restarted(real)

    def told() -> bool:
        found = subprocess.run(
            ["journalctl", "--user", "-t", "rootlessnet", "-o", "cat", "-n", "200"],
            text=True, capture_output=True, check=False,
        )  # fmt: skip
        system = subprocess.run(
            ["journalctl", "-t", "rootlessnet", "-o", "cat", "-n", "200"],
            text=True, capture_output=True, check=False,
        )  # fmt: skip
        text = f"rootlessnet-slirp4netns {one.pid}: slirp4netns {real} was killed by signal 9"
        return text in found.stdout + system.stdout

    wait_for("it is in the journal", told)


# -- the real one ---


def test_installed_as_slirp4netns_it_finds_the_real_one(
    start: Start, namespace: Namespace, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "one/slirp4netns").symlink_to(WRAPPER)
    (tmp_path / "two/slirp4netns").write_bytes(Path(WRAPPER).read_bytes())
    (tmp_path / "two/slirp4netns").chmod(0o755)
    path = f"{tmp_path}/one:{tmp_path}/two:{os.environ['PATH']}"
    one = start(
        "-c", str(namespace.pid), "tap0",
        program=str(tmp_path / "one/slirp4netns"), env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert one.wait_until_ready() == b"1"
    assert os.readlink(f"/proc/{one.real()}/exe") == os.path.realpath(REAL)


def test_loop_through_a_script_is_told(tmp_path: Path) -> None:
    script = tmp_path / "slirp4netns"
    script.write_text(f'#!/bin/sh\nexec {WRAPPER} "$@"\n')
    script.chmod(0o755)
    done = subprocess.run(
        [WRAPPER, "--version"], text=True, capture_output=True, check=False, timeout=20,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 125
    assert done.stderr.splitlines() == [
        f"rootlessnet-slirp4netns: start slirp4netns: {WRAPPER} was started by itself, "
        "as a slirp4netns",
        "rootlessnet-slirp4netns: hint: ROOTLESSNET_SLIRP4NETNS=PATH names the real one",
    ]


def test_rootlessnet_itself_uses_the_real_one(net: Net, tmp_path: Path) -> None:
    """containers.conf may name us for podman; two supervisors for one would be one too many."""
    conf = tmp_path / "containers.conf"
    conf.write_text(f'[engine]\nnetwork_cmd_path = "{WRAPPER}"\n')
    holder = net.hold(env={"CONTAINERS_CONF": str(conf)})
    assert os.readlink(f"/proc/{net.pids()['driver']}/exe") == os.path.realpath(REAL)
    net.release(holder)


def test_no_slirp4netns_at_all(tmp_path: Path) -> None:
    done = subprocess.run(
        [WRAPPER, "--help"], text=True, capture_output=True, check=False,
        env={**os.environ, "ROOTLESSNET_SLIRP4NETNS": str(tmp_path / "none")},
    )  # fmt: skip
    assert done.returncode == 125
    assert done.stderr.splitlines()[0] == (
        f"rootlessnet-slirp4netns: start slirp4netns: ROOTLESSNET_SLIRP4NETNS={tmp_path}/none: "
        "not an executable file"
    )


@pytest.fixture
def old(tmp_path: Path) -> dict[str, str]:
    """Environment in which slirp4netns is one that says it is 1.0.0."""
    program = tmp_path / "old-slirp4netns"
    program.write_text(
        "#!/bin/sh\ncase $* in\n"
        f"*--help*) {REAL} --help | grep -v -e macaddress -e outbound -e disable-dns "
        "-e target-type;;\n"
        "*--version*) echo slirp4netns version 1.0.0;;\n"
        "*--macaddress*) echo \"slirp4netns: unrecognized option '--macaddress'\" >&2; exit 1;;\n"
        f'*) exec {REAL} "$@";;\nesac\n'
    )
    program.chmod(0o755)
    return {**os.environ, "ROOTLESSNET_SLIRP4NETNS": str(program)}


def test_too_old_for_an_option(start: Start, namespace: Namespace, old: dict[str, str]) -> None:
    line = ["-c", "--macaddress=02:00:00:00:00:01", str(namespace.pid), "tap0"]
    one = start(*line, env=old)
    assert one.process.wait(10) == 1
    assert one.text().splitlines()[-1] == (
        f"rootlessnet-slirp4netns: {old['ROOTLESSNET_SLIRP4NETNS']} is too old: "
        "--macaddress needs version 1.1.9"
    )


@pytest.mark.parametrize(
    ("option", "version"), [("--target-type=bess", "1.2.0"), ("--netns-type=tapfd", "1.3.0")]
)
def test_too_old_for_a_kind_of_target(old: dict[str, str], option: str, version: str) -> None:
    done = subprocess.run(
        [WRAPPER, option, "3"], text=True, capture_output=True, check=False, env=old
    )
    assert done.returncode == 125
    assert done.stderr.splitlines() == [
        f"rootlessnet-slirp4netns: start slirp4netns: {option} not supported",
        f"rootlessnet-slirp4netns: hint: {old['ROOTLESSNET_SLIRP4NETNS']} is version 1.0.0; "
        f"{version} and newer have it",
    ]


def test_bess_target_is_left_to_the_original(tmp_path: Path) -> None:
    path = tmp_path / "bess"
    with subprocess.Popen(
        [WRAPPER, "--target-type=bess", str(path)], stderr=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        wait_for("it listens", path.exists)
        assert Path(f"/proc/{child.pid}/comm").read_text() == "slirp4netns\n"
        # The original has a child of its own, which SIGTERM to it would leave behind.
        for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split():
            kill(int(pid))
        child.terminate()


# -- the API ---


class Echo:
    """A server inside, on one port."""

    def __init__(self, namespace: Namespace, port: int) -> None:
        code = (
            "import socket, sys; s = socket.create_server(('', int(sys.argv[1])));\n"
            "print('in', flush=True)\nwhile 1: c, _ = s.accept(); c.sendall(b'inside'); c.close()"
        )
        enter = ["nsenter", "-t", str(namespace.pid), "-U", "-n", "--preserve-credentials"]
        self.process = subprocess.Popen(
            [*enter, "python3", "-c", code, str(port)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None and self.process.stdout.readline() == "in\n"

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            return client.recv(10) == b"inside"
    except OSError:
        return False


def test_forwards_outlive_slirp4netns(start: Start, namespace: Namespace, tmp_path: Path) -> None:
    path = tmp_path / "api"
    one = configured(start, namespace, "-a", str(path))
    ports = [free_port() for _ in range(3)]
    server = Echo(namespace, 80)
    try:
        for number, port in enumerate(ports, 1):
            assert api(path, forward(port, 80)) == {"return": {"id": number}}
        assert all(map(answers, ports))
        remove = {"execute": "remove_hostfwd", "arguments": {"id": 2}}
        assert api(path, remove) == {"return": {}}
        assert not answers(ports[1])
        listed = api(path, {"execute": "list_hostfwd"})
        assert listed["entries"][0] == {
            "id": 1, "proto": "tcp", "host_addr": "127.0.0.1", "host_port": ports[0],
            "guest_addr": "10.0.2.100", "guest_port": 80,
        }  # fmt: skip
        assert [entry["id"] for entry in listed["entries"]] == [1, 3]
        inode = path.stat().st_ino
        for _ in range(2):
            real = one.real()
            kill(real)
            # A client that comes while there is none waits for the next.
            assert api(path, {"execute": "list_hostfwd"}) == listed
            one.wait_until_restarted(real)
            assert path.stat().st_ino == inode
            assert (answers(ports[0]), answers(ports[1]), answers(ports[2])) == (True, False, True)
        assert api(path, {"execute": "remove_hostfwd", "arguments": {"id": 3}}) == {"return": {}}
        assert api(path, remove) == {
            "error": {"desc": "bad request: remove_hostfwd: bad arguments.id"}
        }
        assert api(path, forward(ports[1], 80)) == {"return": {"id": 4}}, "ids are not used again"
    finally:
        server.end()


def test_forward_whose_port_was_taken_meanwhile_comes_back_later(
    start: Start, namespace: Namespace, tmp_path: Path
) -> None:
    program, closed = tmp_path / "slirp4netns", tmp_path / "closed"
    program.write_text(f'#!/bin/sh\n[ -e {closed} ] && exit 1\nexec {REAL} "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "ROOTLESSNET_SLIRP4NETNS": str(program)}
    path = tmp_path / "api"
    one = configured(start, namespace, "-a", str(path), env=environment)
    port = free_port()
    api(path, forward(port, 80))
    server = Echo(namespace, 80)
    closed.touch()
    real = one.real()
    kill(real)
    try:
        with socket.create_server(("127.0.0.1", port)):
            closed.unlink()
            one.wait_until_restarted(real)
            wait_for("it is told", lambda: f"put forwards back: tcp 127.0.0.1:{port}" in one.text())
        wait_for("it is forwarded again", lambda: answers(port))
    finally:
        server.end()


BAD = [
    ("{", "cannot parse JSON"),
    ("hello", "cannot parse JSON"),
    ("[" * 4000, "cannot parse JSON"),
    (b"\xff\xfe\x00", "cannot parse JSON"),
    ("[1]", "json_object() failed"),
    ("{}", "no execute found"),
    ('{"execute": 5}', "no execute found"),
    ('{"execute": "nonsense"}', "unknown execute"),
    ('{"execute": "add_hostfwd"}', "add_hostfwd: bad arguments.proto"),
    ('{"execute": "add_hostfwd", "arguments": []}', "add_hostfwd: bad arguments.proto"),
    ({"proto": None}, "add_hostfwd: bad arguments.proto"),
    ({"proto": "sctp"}, "add_hostfwd: bad arguments.proto"),
    ({"proto": ["tcp"]}, "add_hostfwd: bad arguments.proto"),
    ({"host_addr": "::1"}, "add_hostfwd: bad arguments.host_addr"),
    ({"host_addr": "127.0.0.1\0"}, "add_hostfwd: bad arguments.host_addr"),
    ({"host_port": 0}, "add_hostfwd: bad arguments.host_port"),
    ({"host_port": "80"}, "add_hostfwd: bad arguments.host_port"),
    ({"host_port": True}, "add_hostfwd: bad arguments.host_port"),
    ({"host_port": 65536}, "add_hostfwd: bad arguments.host_port"),
    ({"host_port": 1e300}, "add_hostfwd: bad arguments.host_port"),
    ({"host_port": float("nan")}, "add_hostfwd: bad arguments.host_port"),
    ({"guest_addr": "x"}, "add_hostfwd: bad arguments.guest_addr"),
    ({"guest_port": -1}, "add_hostfwd: bad arguments.guest_port"),
    ({"host_addr": "203.0.113.77"}, "add_hostfwd: slirp_add_hostfwd failed"),
    ('{"execute": "remove_hostfwd"}', "remove_hostfwd: bad arguments.id"),
    ('{"execute": "remove_hostfwd", "arguments": {"id": "1"}}', "remove_hostfwd: bad arguments.id"),
    ("x" * 5000, "too large message"),
]


def test_damaged_requests_are_refused_and_harm_nobody(
    start: Start, namespace: Namespace, tmp_path: Path
) -> None:
    path = tmp_path / "api"
    one = configured(start, namespace, "-a", str(path))
    real = one.real()
    for bad, desc in BAD:
        request: object = bad
        if isinstance(bad, dict):
            request = forward(8080, 80)
            request["arguments"].update(bad)
        assert api(path, request) == {"error": {"desc": f"bad request: {desc}"}}, bad
    assert one.real() == real, "it is still the same"
    assert api(path, {"execute": "list_hostfwd"}) == {"entries": []}


def test_silent_slow_and_many_clients_stall_nothing(
    start: Start, namespace: Namespace, tmp_path: Path
) -> None:
    path = tmp_path / "api"
    configured(start, namespace, "-a", str(path))
    silent = []
    try:
        for _ in range(100):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(path))
            silent.append(client)
        half = socket.socket(socket.AF_UNIX)
        silent.append(half)
        half.connect(str(path))
        half.settimeout(10)
        text = json.dumps({"execute": "list_hostfwd"}).encode()
        half.sendall(text[:9])
        assert namespace.reaches_internet()
        assert api(path, {"execute": "list_hostfwd"}, finish=False) == {"entries": []}
        half.sendall(text[9:])
        assert json.loads(half.recv(1000)) == {"entries": []}, "a request may come in pieces"
    finally:
        for client in silent:
            client.close()


def test_api_socket_that_cannot_be_bound(start: Start, namespace: Namespace) -> None:
    one = start(*USUAL, "-c", "-a", "/no/such/api", str(namespace.pid), "tap0")
    assert one.wait_until_ready() == b""
    assert one.process.wait(10) == 125
    assert "bind the API socket /no/such/api: No such file or directory" in one.text()
    wait_for("nothing is left", lambda: namespace.interfaces() == ["lo"])
