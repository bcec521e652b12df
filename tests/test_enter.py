"""rootlessnet enter: what the person at the terminal is promised."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support import PROGRAM, Net, both_drivers, is_alive, wait_for


@both_drivers
def test_command_has_a_network_of_its_own(net: Net) -> None:
    addresses = {link["ifname"]: link for link in json.loads(net.inside("ip", "-j", "address"))}
    assert set(addresses) == {"lo", "tap0"}
    assert "UP" in addresses["lo"]["flags"]
    v4 = [a for a in addresses["tap0"]["addr_info"] if a["family"] == "inet"]
    assert [(a["local"], a["prefixlen"]) for a in v4] == [("10.0.2.100", 24)]
    routes = json.loads(net.inside("ip", "-j", "route", "show", "default"))
    assert [route["gateway"] for route in routes] == ["10.0.2.2"]


@both_drivers
def test_nothing_paces_tcp_that_ends_at_slirp4netns(net: Net) -> None:
    name = "/proc/sys/net/ipv4/tcp_congestion_control"
    wanted = {"slirp4netns": "reno\n", "pasta": Path(name).read_text()}
    assert net.inside("cat", name) == wanted[net.driver]


@both_drivers
def test_ipv6_is_usable_at_once_and_duplicate_detection_is_restored(net: Net) -> None:
    before = Path("/proc/sys/net/ipv6/conf/default/accept_dad").read_text()
    net.hold()
    addresses = json.loads(net.inside("ip", "-j", "-6", "address", "show", "dev", "tap0"))
    found = [a for link in addresses for a in link["addr_info"]]
    assert any(a["scope"] == "link" for a in found)
    assert not any(a.get("tentative") for a in found)
    assert net.inside("cat", "/proc/sys/net/ipv6/conf/default/accept_dad") == before


def test_everyone_shares_one_namespace(net: Net) -> None:
    net.hold()
    first = net.inside("readlink", "/proc/self/ns/net")
    assert net.inside("readlink", "/proc/self/ns/net") == first
    assert net.status()["netns"]["inode"] == int(first.strip()[5:-1])


def test_another_static_dir_is_another_namespace(net: Net) -> None:
    net.hold()
    other = net.run(
        "--static-dir", f"{net.static_dir}-2", "enter", "readlink", "/proc/self/ns/net"
    ).stdout
    assert other != net.inside("readlink", "/proc/self/ns/net")


@both_drivers
def test_caller_is_root_inside_with_subordinate_ids(net: Net) -> None:
    assert net.inside("id", "-u") == "0\n"
    lines = [line.split() for line in net.inside("cat", "/proc/self/uid_map").splitlines()]
    assert lines[0] == ["0", str(os.getuid()), "1"]
    assert lines[1][0] == "1" and int(lines[1][2]) >= 65536


def test_keep_id_runs_as_the_caller(net: Net) -> None:
    ids = net.run("enter", "--keep-id", "sh", "-c", "id -u; id -g; cat /proc/self/uid_map").stdout
    uid, gid, *uid_map = ids.splitlines()
    assert (uid, gid) == (str(os.getuid()), str(os.getgid()))
    assert len(uid_map) == 3, "root and the other ids inside stay mapped"
    mine = net.run("enter", "--keep-id", "ip", "link", "set", "lo", "down", check=False)
    assert mine.returncode == 2, "no privilege over the shared network is left"
    assert "_CONTAINERS" not in net.run("enter", "--keep-id", "env").stdout


def test_environment_inside(net: Net) -> None:
    lines = net.run("enter", "env", env={"PATH": "/usr/bin:/bin"}).stdout.splitlines()
    inside = dict(line.split("=", 1) for line in lines)
    assert inside["ROOTLESSNET"] == net.name
    assert inside["PATH"] == "/usr/bin:/bin:/usr/sbin"
    assert inside["_CONTAINERS_USERNS_CONFIGURED"] == "done"
    assert inside["_CONTAINERS_ROOTLESS_UID"] == str(os.getuid())
    assert inside["_CONTAINERS_ROOTLESS_GID"] == str(os.getgid())


def test_usr_sbin_is_not_added_twice(net: Net) -> None:
    path = "/usr/sbin:/usr/bin:/bin"
    assert net.run("enter", "sh", "-c", "echo $PATH", env={"PATH": path}).stdout == f"{path}\n"


def test_working_directory_is_kept(net: Net, tmp_path: os.PathLike[str]) -> None:
    assert net.inside("pwd", cwd=tmp_path) == f"{tmp_path}\n"


def test_chdir(net: Net, tmp_path: os.PathLike[str]) -> None:
    os.mkdir(f"{tmp_path}/sub")
    assert net.run("enter", "-C", "sub", "pwd", cwd=tmp_path).stdout == f"{tmp_path}/sub\n"
    assert net.run("enter", "--chdir=/etc", "pwd", cwd=tmp_path).stdout == "/etc\n"


def test_chdir_to_nowhere(net: Net) -> None:
    done = net.run("enter", "-C", "/no/such", "true", check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == (
        "rootlessnet: change the directory inside: /no/such: No such file or directory\n"
    )


def test_exit_status_is_the_commands_own(net: Net) -> None:
    for status in (0, 1, 42, 125, 255):
        assert net.enter("sh", "-c", f"exit {status}", check=False).returncode == status


def test_command_not_found_is_127(net: Net) -> None:
    done = net.enter("no-such-command", check=False)
    assert (done.returncode, done.stderr) == (
        127,
        "rootlessnet: run no-such-command: command not found\n",
    )


def test_command_not_executable_is_126(net: Net) -> None:
    done = net.enter("/etc/passwd", check=False)
    assert (done.returncode, done.stderr) == (
        126,
        "rootlessnet: run /etc/passwd: Permission denied\n",
    )


def test_missing_interpreter_is_named(net: Net, tmp_path: os.PathLike[str]) -> None:
    script = f"{tmp_path}/script"
    with open(script, "w") as file:
        file.write("#!/no/such/interpreter\n")
    os.chmod(script, 0o755)
    done = net.enter(script, check=False)
    assert done.returncode == 127
    assert done.stderr.startswith(f"rootlessnet: run {script}: its interpreter is not found")


def test_death_by_signal_is_seen_by_the_caller(net: Net) -> None:
    assert net.enter("sh", "-c", "kill -TERM $$", check=False).returncode == -signal.SIGTERM
    shell = subprocess.run(
        ["sh", "-c", f"{PROGRAM} enter -- sh -c 'kill -KILL $$'"],
        env=net.environment,
        check=False,
        capture_output=True,
    )
    assert shell.returncode == 128 + signal.SIGKILL


def test_command_replaces_the_program_so_signals_are_its_own(net: Net) -> None:
    child = net.start("enter", "sh", "-c", "trap 'echo caught; exit 3' USR1; echo $$; read x")
    assert child.stdout is not None
    assert int(child.stdout.readline()) == child.pid
    child.send_signal(signal.SIGUSR1)
    assert child.communicate(timeout=10)[0] == "caught\n"
    assert child.returncode == 3


def test_sigpipe_has_its_default_action(net: Net) -> None:
    ignored = net.inside("sh", "-c", "grep SigIgn /proc/self/status").split()[1]
    assert int(ignored, 16) & (1 << (signal.SIGPIPE - 1)) == 0


def test_standard_streams_are_the_callers(net: Net) -> None:
    child = net.start("enter", "sh", "-c", "cat; echo err >&2")
    assert child.communicate("through\n", timeout=20) == ("through\n", "err\n")


def test_shell_is_the_default_command(net: Net) -> None:
    child = net.start("enter", env={"SHELL": "/bin/sh"})
    assert child.communicate("echo $0; exit 5\n", timeout=20)[0] == "/bin/sh\n"
    assert child.returncode == 5


def test_interactive_shell_owns_the_terminal(net: Net) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(PROGRAM, [PROGRAM, "enter"], {**net.environment, "SHELL": "/bin/sh"})
    seen = b""

    def prompt(ending: bytes) -> bool:
        nonlocal seen
        seen += os.read(terminal, 4096)
        return ending in seen

    wait_for("a prompt", lambda: prompt(b"# "), 20)
    os.write(terminal, b"ps -o tpgid= -o pgid= -p $$; exit 4\n")
    try:
        wait_for("the end", lambda: prompt(b"\x00"), 20)
    except OSError:
        pass  # the terminal has hung up
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4
    os.close(terminal)
    groups = [line.split() for line in seen.decode().splitlines() if line.split()]
    numbers = next(pair for pair in groups if len(pair) == 2 and pair[0].isdecimal())
    assert numbers[0] != "-1", "the shell has a controlling terminal"


def test_no_stray_descriptors_reach_the_helpers(net: Net) -> None:
    read, write = os.pipe()
    child = net.hold(pass_fds=[write])
    os.close(write)
    pids = net.pids()
    os.set_blocking(read, False)
    os.close(os.dup(read))
    for name, pid in pids.items():
        links = []
        for fd in os.listdir(f"/proc/{pid}/fd"):
            links.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        assert f"pipe:[{os.fstat(read).st_ino}]" not in links, name
    net.release(child)
    assert os.read(read, 1) == b"", "the caller's pipe was held by nobody but the command"
    os.close(read)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_do_no_harm(net: Net, tmp_path: Path, closed: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{PROGRAM} enter sh -c 'echo ran > {tmp_path}/ran' {closed}"],
        env=net.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "ran").read_text() == "ran\n"
    lock = net.directory.with_name(f"{net.name}.lock")
    assert lock.stat().st_size == 0, "nothing of ours took a standard stream's number"


@pytest.mark.parametrize("limit", ["-n 4", "-n 8", "-n 20", "-u 1"])
def test_limits_that_are_too_low_are_one_line(net: Net, limit: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"ulimit {limit}; exec {PROGRAM} enter true"],
        env=net.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 125)
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if "hint:" not in line]) <= 1
    net.enter("true")


def test_few_open_files_are_enough(net: Net) -> None:
    for option in ("", "--listen 127.0.0.1:39181"):
        done = subprocess.run(
            ["bash", "-c", f"ulimit -n 48; exec {PROGRAM} enter {option} -- ip -br link show tap0"],
            env=net.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("tap0 ")


def test_full_output_is_an_error(net: Net) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{PROGRAM} status > /dev/full"],
        env=net.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (125, "rootlessnet: No space left on device\n")


def test_umask_of_the_caller_is_kept_and_harmless(net: Net) -> None:
    done = subprocess.run(
        ["sh", "-c", f"umask 777; exec {PROGRAM} enter sh -c umask"],
        env=net.environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "0777\n"


def test_deleted_working_directory(net: Net, tmp_path: Path) -> None:
    gone = f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir ../gone && exec"
    for command, attempt in (
        ("enter true", "find the working directory"),
        ("--static-dir rel status", "find the working directory"),
    ):
        done = subprocess.run(
            ["sh", "-c", f"{gone} {PROGRAM} {command}"],
            env=net.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 125
        assert done.stderr.startswith(f"rootlessnet: {attempt}: No such file or directory\n")
    done = subprocess.run(
        ["sh", "-c", f"{gone} {PROGRAM} enter -C / pwd"],
        env=net.environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "/\n"


def test_ps_shows_what_the_supervisor_is(net: Net) -> None:
    net.hold()
    command = Path(f"/proc/{net.pids()['supervisor']}/cmdline").read_bytes().rstrip(b"\0")
    assert f"rootlessnet: supervisor of {net.name}".startswith(command.decode())
    assert b"read x" not in command, "pkill -f of a command does not hit it"


def test_nested_rootlessnet_means_the_same_instance(net: Net) -> None:
    out = net.inside("env", "-u", "X", PROGRAM, "status")
    assert out.startswith(f"{net.name}: running")
    other = f"{net.static_dir}-other"
    done = net.run("--static-dir", other, "enter", "sh", "-c", f"{PROGRAM} status --json")
    assert json.loads(done.stdout)["static_dir"] == other


def test_nested_enter_joins_the_same_namespace(net: Net) -> None:
    out = net.inside(
        "sh", "-c", f"readlink /proc/self/ns/net; {PROGRAM} enter readlink /proc/self/ns/net"
    )
    assert len(set(out.split())) == 1 and len(out.split()) == 2


@both_drivers
def test_inside_podman_unshare_no_user_namespace_is_made(net: Net) -> None:
    out = net.inside("sh", "-c", "readlink /proc/self/ns/user", prefix=["unshare", "-Ur", "--"])
    assert out.startswith("user:[")
    child = subprocess.Popen(
        [
            "unshare",
            "-Ur",
            "sh",
            "-c",
            f"readlink /proc/self/ns/user; {PROGRAM} enter sh -c "
            "'readlink /proc/self/ns/user; ip -br address show tap0'",
        ],
        env=net.environment,
        text=True,
        stdout=subprocess.PIPE,
    )
    lines = child.communicate(timeout=30)[0].splitlines()
    assert lines[0] == lines[1], "the caller's own user namespace is used again"
    assert "10.0.2.100/24" in lines[2]


def test_instance_of_another_user_namespace_is_refused_by_name(net: Net) -> None:
    net.hold()
    done = net.enter("true", prefix=["unshare", "-Ur", "--"], check=False)
    assert done.returncode == 125
    assert done.stderr == (
        "rootlessnet: join the instance: Operation not permitted\n"
        "  hint: it belongs to another user namespace: run this where it was started, "
        "or give another --static-dir\n"
    )


NINES = "9" * 5000
"""More digits than Python converts."""


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["enter", "--frobnicate"], "unknown option --frobnicate"),
        (["enter", "--chdir"], "option --chdir needs a value: --chdir DIR"),
        (["enter", "--keep-id=yes"], "option --keep-id takes no value"),
        (
            ["enter", "--timeout", "soon"],
            "--timeout soon: not a number of seconds from 0.1 to 1000000",
        ),
        (["enter", "--linger=-1"], "--linger -1: not a number of seconds from 0 to 315360000"),
        (["enter", "--linger=nan"], "--linger nan: not a number of seconds from 0 to 315360000"),
        (["enter", ""], "the command is an empty word"),
        (["enter", "--listen", NINES, "true"], f"--listen {NINES}: {NINES} is not a port"),
        (
            ["container", "setup", "c", "--pid", NINES],
            f"set up container c: --pid {NINES}: not a process id",
        ),
        (
            ["network", "create", "-o", f"mtu={NINES}"],
            f'create a network: strconv.Atoi: parsing "{NINES}": value out of range',
        ),
        (["frobnicate"], "unknown command frobnicate"),
        (["status", "extra"], "unexpected argument extra"),
        (
            ["enter", "--driver", "carrier-pigeon", "true"],
            "--driver carrier-pigeon: unknown driver",
        ),
    ],
)
def test_wrong_command_lines(net: Net, arguments: list[str], line: str) -> None:
    done = net.run(*arguments, check=False)
    assert done.returncode == 125
    assert done.stdout == ""
    assert done.stderr.splitlines()[0] == f"rootlessnet: {line}"
    assert all(extra.startswith("  hint: ") for extra in done.stderr.splitlines()[1:])
    assert not net.directory.exists()


def test_options_stand_before_or_after_the_name_of_the_command(net: Net) -> None:
    here, there = f"--static-dir={net.static_dir}", str(net.static_dir)
    environment = {"ROOTLESSNET_STATIC_DIR": "/elsewhere"}
    for arguments in ([here, "status"], ["status", here], ["--static-dir", there, "status"]):
        assert net.name in net.run(*arguments, env=environment).stdout


def test_options_that_contradict_the_running_instance_are_refused(net: Net) -> None:
    net.hold("-o", "cidr=10.9.0.0/24", "--linger", "0.2")
    assert net.run("enter", "-o", "cidr=10.9.0.0/24", "true").returncode == 0
    for option, message in (
        (["-o", "cidr=10.8.0.0/24"],
         "-o cidr: 10.8.0.0/24 was asked for, but the running instance has 10.9.0.0/24"),
        (["-o", "enable_ipv6=false"],
         "-o enable_ipv6: false was asked for, but the running instance has true"),
        (["--linger", "5"], "--linger: 5 was asked for, but the running instance has 0.2"),
    ):  # fmt: skip
        done = net.run("enter", *option, "true", check=False)
        assert done.returncode == 125
        assert done.stderr.splitlines()[0] == f"rootlessnet: {message}"


def test_help_names_every_option(net: Net) -> None:
    text = net.run("enter", "--help").stdout
    for option in ("--static-dir", "-o, --option", "--linger", "--timeout", "--keep-id", "-C, "):
        assert option in text
    assert "enter" in net.run("--help").stdout


def test_interrupt_while_the_instance_is_made(net: Net, hanging_driver: dict[str, str]) -> None:
    child = net.start("enter", "true", env=hanging_driver)
    wait_for("the start is under way", net.directory.exists)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=10)
    assert child.returncode == -signal.SIGINT
    net.wait_until_down(3)


def test_debug_says_what_is_done(net: Net) -> None:
    assert f"rootlessnet: debug: instance {net.name}" in net.run("--debug", "enter", "true").stderr


def test_killed_command_is_gone_at_once(net: Net) -> None:
    child = net.hold()
    pids = net.pids()
    start = time.monotonic()
    child.kill()
    child.communicate()
    net.wait_until_down()
    assert time.monotonic() - start < 5
    wait_for("every process has ended", lambda: not any(map(is_alive, pids.values())))
