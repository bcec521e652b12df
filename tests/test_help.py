"""What a user sees who asks what there is, and who asks for what there is not."""

from __future__ import annotations

import pytest
from support import Net

from rootlessnet.__main__ import COMMANDS
from rootlessnet.cli import complete

GROUPS = [name for name in COMMANDS if hasattr(complete.command_module(name), "COMMANDS")]


def test_all_commands_and_what_they_are_for(net: Net) -> None:
    lines = net.run("--help").stdout.splitlines()
    for name, text in COMMANDS.items():
        assert f"  {name:<15}{text}" in lines
        assert text[0] != text[0].upper(), "it goes on after the name"
        assert not text.endswith(".")
        assert len(text) <= 60


def test_groups() -> None:
    assert GROUPS == ["port", "container", "network", "device", "oci-hook"]


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_shows_its_commands(net: Net, group: str) -> None:
    asked = net.run(group, "--help")
    lines = asked.stdout.splitlines()
    assert lines[0].startswith(f"usage: rootlessnet {group} ")
    for name, text in complete.command_module(group).COMMANDS.items():
        assert [line for line in lines if line.split() == [name, *text.split()]], name
    assert asked.stderr == ""
    # As the program alone does: the same text, but it was no success.
    alone = net.run(group, check=False)
    assert (alone.returncode, alone.stdout, alone.stderr) == (125, asked.stdout, "")


@pytest.mark.parametrize("group", GROUPS)
def test_a_command_that_does_not_exist_is_one_line(net: Net, group: str) -> None:
    commands = ", ".join(complete.command_module(group).COMMANDS)
    noun = "stage" if group == "oci-hook" else "command"
    done = net.run(group, "fly", check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == (
        f"rootlessnet: unknown {noun} {group} fly\n  hint: there are {commands}\n"
    )
    done = net.run("--debug", group, check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith(f"rootlessnet: {group} needs a {noun}: {commands}\n")
