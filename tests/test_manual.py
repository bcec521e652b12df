"""The man pages say what the program knows, and where they point there is something."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_completion import command_lines

from rootlessnet.cli import arguments

MAN = Path(__file__).resolve().parent.parent / "docs/man"
LINES = {" ".join(line): described for line, described in command_lines()}


def page_of(command: str) -> str:
    """The source of the page that a command is in: its own, or those that name it."""
    own = MAN / f"rootlessnet-{command}.1"
    pages = [own] if own.exists() else sorted(MAN.iterdir())
    texts = [page.read_text() for page in pages]
    return "\n".join(text for text in texts if re.search(rf"Cm {command}\b", text))


@pytest.mark.parametrize("line", LINES)
def test_command_and_options_are_in_the_manual(line: str) -> None:
    command, *inner = line.split()
    text = page_of(command)
    assert text, f"{command} is in no page"
    for word in inner:
        assert re.search(rf"Cm ({command} )?(Cm )?{word}\b", text), f"{line} is not in its page"
    common = (MAN / "rootlessnet.1").read_text()
    assert re.search(rf"^\.It Cm {command}$", common, re.MULTILINE), f"{command}: not in the list"
    # Options that several commands share are explained once.
    elsewhere = dict.fromkeys(arguments.COMMON, "path") | dict.fromkeys(arguments.CREATE, "enter")
    for option in LINES[line].options:
        where = page_of(elsewhere.get(option, command))
        assert f"Fl -{option.name}" in where, f"--{option.name} of {line}"
        if option.short:
            assert re.search(rf"Fl {option.short}\b", where), f"-{option.short} of {line}"


def references() -> set[str]:
    found = set()
    for page in MAN.iterdir():
        pattern = r"^\.Xr (rootlessnet\S*) (\d)"
        found |= {f"{m[1]}.{m[2]}" for m in re.finditer(pattern, page.read_text(), re.MULTILINE)}
    return found


@pytest.mark.xfail(reason="pages of commands that are being written")
def test_no_reference_to_a_page_that_is_missing() -> None:
    assert {name for name in references() if not (MAN / name).exists()} == set()


def test_every_page_says_what_it_is() -> None:
    for page in MAN.iterdir():
        title, section = page.stem.upper(), page.suffix[1:]
        assert f".Dt {title} {section}\n" in page.read_text(), page
        assert f"-l docs/man/{page.name} " in page.read_text(), page


def test_sections_that_are_referred_to_are_in_the_page() -> None:
    for page in MAN.iterdir():
        text = page.read_text()
        sections = set(re.findall(r"^\.S[hs] (.+)$", text, re.MULTILINE))
        for name in re.findall(r"^\.Sx (.+?)(?: [.,:;()]+)?$", text, re.MULTILINE):
            assert name in sections, (page.name, name)
