"""The completions: in each shell, of every command and option, and of what there is."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from container_support import Lab, lab_of
from port_support import add, free_port
from support import PROGRAM, Net

from rootlessnet.__main__ import COMMANDS
from rootlessnet.cli import arguments, complete, completion
from rootlessnet.drivers import options

SHELLS = completion.SHELLS


def words(net: Net, *line: str) -> list[str]:
    """What fits as the last word of a command line."""
    done = net.run("completion", "--words", "--", *line)
    assert done.stderr == ""
    return [text.partition("\t")[0] for text in done.stdout.splitlines()]


def command_lines() -> Iterator[tuple[list[str], arguments.Described]]:
    """Every command, those of groups too, with what its --help is made of."""
    for name in COMMANDS:
        module = complete.command_module(name)
        for path in [[inner] for inner in getattr(module, "COMMANDS", ())] or [[]]:
            yield [name, *path], arguments.describe(module.main, path)


# --- what fits -----------------------------------------------------------------------------------


def test_every_command_is_offered(net: Net) -> None:
    assert words(net, "") == list(COMMANDS)
    assert words(net, "--debug", "e") == ["enter", "events"]
    for name in COMMANDS:
        inner = getattr(complete.command_module(name), "COMMANDS", None)
        if inner is not None:
            assert words(net, name, "") == list(inner)


@pytest.mark.parametrize("line", [" ".join(line) for line, _ in command_lines()])
def test_every_option_of_the_help_is_offered(line: str) -> None:
    done = subprocess.run(
        [PROGRAM, *line.split(), "--help"], capture_output=True, text=True, check=True
    )
    options = re.findall(r"^  (?:-(\w), |    )--([a-z0-9-]+)", done.stdout, re.MULTILINE)
    assert ("h", "help") in options, done.stdout
    offered = [text.partition("\t")[0] for text in complete.suggest([*line.split(), "-"])]
    for short, long in options:
        assert f"--{long}" in offered
        assert not short or f"-{short}" in offered


def test_every_word_of_a_usage_is_understood() -> None:
    """A new usage says in capitals what it wants; these say nothing that could be looked up."""
    free = {"NEW", "NAME", "KEY", "COMMAND", "ARGUMENT...", "KEY=VALUE"}
    for line, described in command_lines():
        for kind in complete.positions(described):
            bare = kind.removesuffix("...")
            known = not bare or kind in free or "|" in kind or bare in complete._KINDS
            assert known, f"{line}: nothing is known of {kind}: name a kind, or say that it is free"


def test_a_command_without_a_help_of_ours_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> int:
        print("usage: ...")
        return 0

    with pytest.raises(LookupError):
        arguments.describe(main, ["inner"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("usage", "kinds"),
    [
        ("path [OPTIONS]", []),
        ("rm NETWORK...", ["NETWORK..."]),
        ("enter [OPTIONS] [--] [COMMAND [ARGUMENT...]]", ["COMMAND", "ARGUMENT..."]),
        ("setup ID (--new | --pid P | --netns PATH) [--net NAME]... [OPTIONS]", ["ID"]),
        ("teardown ID... | --all | --new", ["ID..."]),
        ("add [OPTIONS] [IP:][PORT:]PORT[-PORT][/tcp|udp] ...", ["..."]),
        ("rm --all | RULE...", ["RULE..."]),
        ("completion bash|zsh|fish", ["bash|zsh|fish"]),
    ],
)
def test_usage_says_what_the_words_are(usage: str, kinds: list[str]) -> None:
    options = [arguments.Option(name, "", metavar="X") for name in ("pid", "netns", "net")]
    options += [arguments.Option(name, "") for name in ("new", "all")]
    assert complete.positions(arguments.Described(usage, options)) == kinds


def test_networks(net: Net, tmp_path: Path) -> None:
    net.environment |= {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    net.environment |= {"XDG_DATA_HOME": str(tmp_path / "data")}
    net.run("network", "create", "lab")
    assert words(net, "network", "rm", "") == ["lab", "podman"]
    assert words(net, "network", "rm", "lab", "") == ["podman"]
    assert words(net, "network", "ls", "") == []


def test_a_look_changes_nothing(net: Net, tmp_path: Path) -> None:
    net.environment |= {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    net.environment |= {"XDG_DATA_HOME": str(tmp_path / "data")}
    assert words(net, "network", "inspect", "") == ["podman"]
    assert list(tmp_path.iterdir()) == []


def test_named_leases_of_the_static_dir_that_is_meant(net: Net) -> None:
    net.run("up", "--name", "web")
    net.run("up", "--name", "lab@home")
    try:
        assert words(net, "down", "--name", "") == ["lab@home", "web"]
        assert words(net, "down", "--name=w") == ["--name=web"]
        del net.environment["ROOTLESSNET_STATIC_DIR"]
        line = ["--static-dir", str(net.static_dir), "down", "--name", ""]
        assert words(net, *line) == ["lab@home", "web"]
        assert words(net, "--static-dir=/nowhere", "down", "--name", "") == []
    finally:
        net.run("--static-dir", str(net.static_dir), "down", "--all")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with lab_of(tmp_path) as one:
        yield one


def test_containers_and_published_ports(lab: Lab) -> None:
    lab.network("lab", "--subnet", "10.99.0.0/24")
    # The second one is not what its record is called: that would end like one half written.
    port = free_port()
    lab.setup("web", "--network", "lab", "-p", f"127.0.0.1:{port}:80")
    lab.setup("w.new", "--network", "lab")
    own = add(lab, "127.0.0.1::7")[0]
    for line in (
        ["container", "inspect"],
        ["container", "stats"],
        ["container", "teardown"],
        ["container", "reload"],
        ["network", "connect", "lab"],
        ["network", "disconnect", "lab"],
    ):
        assert words(lab, *line, "w") == ["w.new", "web"], line
    assert words(lab, "container", "teardown", "web", "w") == ["w.new"]
    assert words(lab, "container", "setup", "new", "--network", "l") == ["lab"]
    assert words(lab, "network", "connect", "") == ["lab", "podman"]
    # What `port rm` cannot withdraw is not offered, and what is new nobody knows.
    assert words(lab, "port", "rm", "") == [f"127.0.0.1:{own}:7/tcp"]
    assert words(lab, "port", "rm", f"127.0.0.1:{own}:7/tcp", "") == []
    assert words(lab, "port", "add", "") == words(lab, "enter", "-p", "") == []
    assert in_bash(lab, "rootlessnet port rm 127.0.0.1:") == [f"{own}:7/tcp"]


def test_words_of_options_and_stages(net: Net) -> None:
    assert words(net, "graph", "--format", "") == ["text", "svg", "dot", "mermaid"]
    assert words(net, "graph", "--format=s") == ["--format=svg"]
    assert words(net, "port", "add", "--source-ip", "") == ["preserve", "snat"]
    assert words(net, "network", "ls", "--filter", "d") == ["driver=", "dangling="]
    assert words(net, "oci-hook", "create") == ["createRuntime", "createContainer"]
    assert words(net, "oci-hook", "generate", "--bundle", "") == [":directories"]
    assert words(net, "metrics", "--output", "") == [":files"]
    assert words(net, "container", "setup", "x", "--netns", "") == [":files"]


def test_drivers_and_their_options(net: Net) -> None:
    assert words(net, "enter", "--driver", "") == ["pasta", "slirp4netns"]
    assert words(net, "up", "--driver=s") == ["--driver=slirp4netns"]
    assert words(net, "enter", "-o", "enable_ipv6=") == ["enable_ipv6=true", "enable_ipv6=false"]
    assert words(net, "enter", "--option", "mtu=") == ["mtu=20000"]
    assert words(net, "up", "-o", "source_ip=") == ["source_ip=preserve", "source_ip=snat"]
    handlers = ["port_handler=rootlesskit", "port_handler=slirp4netns"]
    assert words(net, "up", "-o", "port_handler=") == handlers
    assert "outbound_addr=lo" in words(net, "up", "-o", "outbound_addr=")
    keys = [f"{key}=" for key in options.defaults()]
    assert words(net, "container", "setup", "x", "-o", "") == keys


def test_settings(net: Net) -> None:
    assert words(net, "config", "default_sub") == ["default_subnet", "default_subnet_pools"]


def test_files_directories_and_other_command_lines(net: Net) -> None:
    assert words(net, "enter", "-C", "") == [":directories"]
    assert words(net, "--static-dir=") == [":directories"]
    assert words(net, "install-cni", "") == [":directories"]
    assert words(net, "device", "move", "lo", "/proc/") == [":files"]
    assert words(net, "enter", "l") == [":command 1"]
    assert words(net, "enter", "--", "") == [":command 2"]
    assert words(net, "enter", "-o", "mtu=1500", "ls", "-") == [":command 3"]


def test_devices(net: Net) -> None:
    assert words(net, "device", "stats", "l") == ["lo"]
    assert words(net, "device", "stats", "lo", "") == []


def test_nonsense_gets_no_answer_and_no_message(net: Net) -> None:
    for line in (["fly", ""], ["network", "fly", ""], ["path", ""], ["--fly="]):
        assert words(net, *line) == []
    assert words(net, "down", "--name", "x", "--name") == ["--name"]


def test_names_of_others_cannot_break_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [(1, "two words"), (2, "line\nbreak"), (3, "x\x1b[31m"), (4, "fine"), (5, "$(id)")]
    monkeypatch.setattr("socket.if_nameindex", lambda: names)
    found = complete.suggest(["device", "stats", ""])
    assert [line.partition("\t")[0] for line in found] == ["fine", "$(id)"]


# --- in the shells -------------------------------------------------------------------------------


def test_scripts_are_printed(net: Net) -> None:
    for shell in SHELLS:
        done = net.run("completion", shell)
        assert done.stderr == ""
        assert "completion --words" in done.stdout
    done = net.run("completion", "tcsh", check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("rootlessnet: completion: unknown shell tcsh: completion bash|")


def in_bash(net: Net, line: str) -> list[str]:
    """What bash has after a TAB at the end of the line, as its own splitting gives it."""
    break_at = re.compile(r"([\s]+|[@=:])")
    parts = [part for part in break_at.split(line) if part and not part.isspace()]
    if line[-1].isspace():
        parts.append("")
    code = (
        'eval "$("$1" completion bash)"; shift; COMP_LINE=$1; COMP_POINT=${#1}; shift; '
        'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _rootlessnet; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", code, "bash", PROGRAM, line, *parts],
        env=net.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return [text for text in done.stdout.splitlines() if text]


def test_bash_function(net: Net, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").touch()
    assert in_bash(net, "rootlessnet ent") == ["enter"]
    assert in_bash(net, "rootlessnet enter --driver=sl") == ["slirp4netns"]
    assert in_bash(net, "rootlessnet enter -o enable_ipv6=t") == ["true"]
    assert in_bash(net, f"rootlessnet --static-dir {tmp_path}/") == [str(tmp_path / "one")]
    assert in_bash(net, f"rootlessnet --static-dir={tmp_path}/o") == [str(tmp_path / "one")]
    assert in_bash(net, "rootlessnet enter -- rootlessn") != []
    net.run("up", "--name", "lab@home")
    try:
        assert in_bash(net, "rootlessnet down --name la") == ["lab@home"]
        assert in_bash(net, "rootlessnet down --name lab@h") == ["home"]
    finally:
        net.run("down", "--all")


def in_terminal(net: Net, shell: Sequence[str], setup: str, line: str, wanted: str) -> str:
    """Type a line and a TAB into a shell on a terminal; what it shows until it shows the wanted."""
    pid, master = pty.fork()
    if pid == 0:
        path = f"{Path(PROGRAM).parent}:{os.environ['PATH']}"
        environment = {**net.environment, "PATH": path, "TERM": "dumb", "PS1": "", "HISTFILE": ""}
        os.execvpe(shell[0], list(shell), environment)
    seen = b""

    def until(text: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 20
        while text not in seen.replace(b"\a", b""):
            assert time.monotonic() < deadline, (text, seen)
            if select.select([master], [], [], 0.1)[0]:
                try:
                    seen += os.read(master, 65536)
                except OSError:
                    raise AssertionError(f"the shell has ended: {seen!r}") from None

    try:
        os.write(master, f"{setup}; echo rea''dy\n".encode())
        until(b"ready")
        seen = b""
        os.write(master, f"{line}\t".encode())
        until(wanted.encode())
        return seen.decode()
    finally:
        os.close(master)
        os.kill(pid, 9)
        os.waitpid(pid, 0)


BASH = (["bash", "--norc", "--noprofile", "-i"], 'eval "$(rootlessnet completion bash)"')
ZSH = (
    ["zsh", "-f", "-i"],
    'autoload -Uz compinit; compinit -D -u; eval "$(rootlessnet completion zsh)"',
)


@pytest.mark.parametrize("shell", [BASH, ZSH], ids=["bash", "zsh"])
@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("rootlessnet ent", "rootlessnet enter "),
        ("rootlessnet --debug network cr", "network create "),
        ("rootlessnet enter --driver=sl", "--driver=slirp4netns "),
        ("rootlessnet up -o allow_host_loopback=f", "allow_host_loopback=false "),
        ("rootlessnet enter -o ci", "cidr="),
        ("rootlessnet enter -- rootlessne", "rootlessnet enter -- rootlessnet"),
    ],
)
def test_a_tab_completes(net: Net, shell: tuple[list[str], str], line: str, wanted: str) -> None:
    in_terminal(net, shell[0], shell[1], line, wanted)


def test_fish(net: Net) -> None:
    def offered(line: str) -> list[str]:
        code = f"{PROGRAM} completion fish | source; complete -C '{line}'"
        path = f"{Path(PROGRAM).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["fish", "--no-config", "-c", code],
            env={**net.environment, "PATH": path},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stderr == ""
        return [text.partition("\t")[0] for text in done.stdout.splitlines()]

    assert set(offered("rootlessnet ")) == set(COMMANDS)
    assert offered("rootlessnet enter --driver=sl") == ["--driver=slirp4netns"]
    assert offered("rootlessnet enter -o enable_ipv6=t") == ["enable_ipv6=true"]
    assert offered("rootlessnet --static-dir /usr/share/man/man1") == ["/usr/share/man/man1/"]
    assert "rootlessnet" in offered("rootlessnet enter -- rootlessn")
    assert offered("rootlessnet enter -- rootlessnet stat") == ["status"]


def test_zsh_completes_the_command_line_inside(net: Net) -> None:
    in_terminal(net, *ZSH, "rootlessnet enter -o mtu=1500 rootlessnet sta", "rootlessnet status ")


def test_zsh_script_is_also_a_file_of_fpath(tmp_path: Path, net: Net) -> None:
    (tmp_path / "_rootlessnet").write_text(net.run("completion", "zsh").stdout)
    setup = f"fpath=({tmp_path} $fpath); autoload -Uz compinit; compinit -D -u"
    in_terminal(net, ["zsh", "-f", "-i"], setup, "rootlessnet doc", "rootlessnet doctor ")


def test_answering_loads_no_more_than_the_command(net: Net) -> None:
    """A TAB must not be waited for: neither the D-Bus code nor rich is loaded for one."""
    heavy = {"dbus_next", "rich", "pyroute2", "psutil", "subprocess"}
    code = (
        "import sys; from rootlessnet.cli import complete\n"
        "complete.suggest(['enter', '--'])\n"
        f"print(*sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "\n"
