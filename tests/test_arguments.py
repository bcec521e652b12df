"""Values that are none, for every option of every command: one line, and nothing has changed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support import PROGRAM
from test_completion import command_lines

LINES = {" ".join(line): described for line, described in command_lines()}
HUGE = "9" * 5000
"""More digits than Python reads as a number."""

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    """Run a command line and return the line that refuses it."""
    home, runtime = tmp_path / "home", tmp_path / "runtime"
    home.mkdir()
    runtime.mkdir(mode=0o700)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(runtime),
        "SHELL": "/bin/false",
    }

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [PROGRAM, *arguments], env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (125, ""), (arguments, done)
        line, *hint = done.stderr.splitlines()
        assert len(hint) <= 1 and all(text.startswith("  hint: ") for text in hint), done.stderr
        assert not list(home.iterdir())
        assert not list(runtime.glob("rootlessnet/*/")), "no instance was made"
        return line.removeprefix("rootlessnet: ")

    return run


@pytest.mark.parametrize("line", [line for line in LINES if line])
def test_an_empty_value_is_none(line: str, refused: Refused) -> None:
    for option in LINES[line].options:
        if not option.metavar or option.may_be_empty:
            continue
        names = [f"--{option.name}", *([f"-{option.short}"] if option.short else [])]
        for name in names:
            told = f"option {name} needs a value, not an empty one: {name} {option.metavar}"
            assert refused(*line.split(), name, "") == told
        assert refused(*line.split(), f"--{option.name}=").startswith(f"option --{option.name} ")


@pytest.mark.parametrize(
    "line",
    [line for line in LINES if line and line not in ("enter", "completion", "device stats")],
)
def test_an_empty_word_is_no_argument(line: str, refused: Refused) -> None:
    assert refused(*line.split(), "") == "an argument is an empty word"


@pytest.mark.parametrize(
    "text", ["nan", "inf", "-inf", "-1", "1e400", HUGE, "0x10", "1_0", "٣", " 1", "5s"]
)
def test_seconds(text: str, refused: Refused) -> None:
    for option, most, command in (
        ("--linger", "0 to 315360000", ("up",)),
        ("--timeout", "0.1 to 1000000", ("enter",)),
        ("--timeout", "0.1 to 1000000", ("container", "setup", "c1", "--new")),
        ("--interval", "0.1 to 3600", ("top", "--once")),
    ):
        told = refused(*command, f"{option}={text}")
        assert told.endswith(f"{option} {text}: not a number of seconds from {most}")


@pytest.mark.parametrize("text", ["nan", "-1", "0", "1e3", HUGE, "1_0", "٣", " 1", "4294967297"])
def test_process_ids(text: str, refused: Refused) -> None:
    for command in (("setup", "c1"), ("inspect",)):
        assert refused("container", *command, f"--pid={text}").endswith(
            f"--pid {text}: not a process id"
        )


@pytest.mark.parametrize("text", ["nan", "-1", "0", "65536", HUGE, "8_0", "٣", " 80", ":"])
def test_ports(text: str, refused: Refused) -> None:
    for command in (
        ("up", "-p"),
        ("enter", "--listen"),
        ("container", "setup", "c", "--new", "-p"),
    ):
        told = refused(*command, text)
        assert text in told and "not a port" in told
    assert "not a port" in refused("port", "rm", text if text != "-1" else "x")


@pytest.mark.parametrize(
    "pair",
    ["=", "=x", "mtu=", "cidr=", "enable_ipv6=", "allow_host_loopback=", "outbound_addr=",
     "outbound_addr6=", "port_handler=", "dns_fallback=", "source_ip=", "allow_ports_from_inside=",
     f"mtu={HUGE}", f"cidr=10.0.0.0/{HUGE}"],
)  # fmt: skip
@pytest.mark.parametrize("driver", ["slirp4netns", "pasta"])
def test_driver_options(pair: str, driver: str, refused: Refused) -> None:
    assert refused("up", "--driver", driver, "-o", pair).startswith(f"-o {pair}: ")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("network create a -o vlan=" + HUGE, "value out of range"),
        ("network create a --subnet 10.0.0.0/" + HUGE, "invalid CIDR address"),
        ("network create a --subnet=", "invalid CIDR address"),
        ("container setup c --new --network podman:mac=", "mac cannot be empty"),
        ("container setup c --new --network podman:ip=", 'invalid ip address ""'),
        ("container setup c --new --network podman:alias=", "alias cannot be empty"),
        ("container setup c --new --network podman:,", "unknown bridge network option"),
        ("container setup c --new --network :", "the name of the network is empty"),
    ],
)
def test_others(command: str, told: str, refused: Refused) -> None:
    assert told in refused(*command.split(" "))
