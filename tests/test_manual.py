"""The man pages say what the program knows, and where they point there is something."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_completion import command_lines

from rootlessnet.cli import arguments

MAN = Path(__file__).resolve().parent.parent / "docs/man"
LINES = {" ".join(line): described for line, described in command_lines()}


def pages_of(command: str) -> str:
    """The source of the pages that a command is in: its own, and those that name it."""
    texts = [page.read_text() for page in sorted(MAN.iterdir())]
    return "\n".join(text for text in texts if re.search(rf"^\..*Cm {command}\b", text, re.M))


@pytest.mark.parametrize("line", LINES)
def test_command_and_options_are_in_the_manual(line: str) -> None:
    command, *inner = line.split()
    text = pages_of(command)
    assert text, f"{command} is in no page"
    for word in inner:
        assert re.search(rf"Cm ({command} )?(Cm )?{word}\b", text), f"{line} is in no page"
    common = (MAN / "rootlessnet.1").read_text()
    named = rf"^\.It Cm {command}$|^\.Xr rootlessnet-{command} 1"
    assert re.search(named, common, re.MULTILINE), f"rootlessnet(1) does not lead to {command}"
    # Options that several commands share are explained once.
    elsewhere = dict.fromkeys(arguments.COMMON, "path") | dict.fromkeys(arguments.CREATE, "enter")
    for option in LINES[line].options:
        where = pages_of(elsewhere.get(option, command))
        assert f"Fl -{option.name}" in where, f"--{option.name} of {line}"
        if option.short:
            assert re.search(rf"Fl {option.short}\b", where), f"-{option.short} of {line}"


def references() -> set[str]:
    found = set()
    for page in MAN.iterdir():
        pattern = r"^\.Xr (rootlessnet\S*) (\d)"
        found |= {f"{m[1]}.{m[2]}" for m in re.finditer(pattern, page.read_text(), re.MULTILINE)}
    return found


def test_no_reference_to_a_page_that_is_missing() -> None:
    assert {name for name in references() if not (MAN / name).exists()} == set()


def test_every_page_says_what_it_is() -> None:
    for page in MAN.iterdir():
        title, section = page.stem.upper(), page.suffix[1:]
        assert f".Dt {title} {section}\n" in page.read_text(), page


def test_sections_that_are_referred_to_are_in_the_page() -> None:
    for page in MAN.iterdir():
        text = page.read_text()
        sections = set(re.findall(r"^\.S[hs] (.+)$", text, re.MULTILINE))
        for name in re.findall(r"^\.Sx (.+?)(?: [.,:;()]+)*$", text, re.MULTILINE):
            assert name in sections, (page.name, name)
