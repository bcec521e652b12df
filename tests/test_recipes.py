"""docs/recipes/ and the README: what they say to type is typed, and what they show is seen.

A new recipe is a new file, nothing else. Its blocks are run in their order by one bash, in the home
directory of the ordinary user:

    ```sh         as it stands; each has to succeed
    ```console    lines after `$ ` (and `> `), and the output that follows: `...` is anything

A command whose line has a comment with the word `fails` has to fail, all others have to succeed.
Blocks in other languages are only shown.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import PROGRAM, RUNTIME, own_processes, wait_for

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "docs/recipes").glob("*.md"))
IN_TESTBED = Path("/etc/rootlessnet-testbed").exists()

pytestmark = pytest.mark.skipif(not IN_TESTBED, reason="recipes write into the home directory")


class Step:
    """One command of a text, the output shown for it, and where it is."""

    def __init__(self, text: str, shown: str | None, line: int) -> None:
        self.text = text
        self.shown = shown
        self.line = line
        self.fails = shown is not None and re.search(r"#.*\bfails\b", text) is not None


def steps(page: Path) -> Iterator[Step]:
    text = page.read_text()
    for block in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text[: block.start()].count("\n") + 2
        if block[1] == "sh":
            yield Step(block[2], None, line)
        elif block[1] == "console":
            yield from console(block[2], line)


def console(text: str, line: int) -> Iterator[Step]:
    step = None
    for number, item in enumerate(text.splitlines(), line):
        if item.startswith("$ "):
            if step is not None:
                yield step
            step = Step(item[2:], "", number)
        elif step is not None and item.startswith("> ") and not step.shown:
            step.text += f"\n{item[2:]}"
        elif step is not None and step.shown is not None:
            step.shown += f"{item}\n"
    if step is not None:
        yield step


def pattern(shown: str) -> str:
    """The expression for an output: `...` is anything in its line, and alone any lines."""
    lines = []
    for line in shown.splitlines():
        parts = (re.escape(part) for part in line.rstrip().split("..."))
        lines.append("(?:.*\n)*" if line == "..." else ".*".join(parts) + " *\n")
    return "".join(lines)


ON_ERROR = "trap 'return 1' ERR\n"
"""Leave the block, not the shell: what follows tidies up."""


def play(page: Path, directory: Path) -> list[tuple[Step, int, str]]:
    """Run the steps of a page; the status and the output of each."""
    directory.mkdir()
    script, found = [f"cd {os.environ['HOME']}", "set +H"], list(steps(page))
    for number, step in enumerate(found):
        # Each in a file of its own, so that what is left open by one is not closed by the next.
        (directory / f"{number}").write_text((ON_ERROR if step.shown is None else "") + step.text)
        script.append(
            f"source {directory}/{number} >{directory}/{number}.out 2>&1 </dev/null\n"
            f"echo $? >{directory}/{number}.status; trap - ERR"
        )
    environment = {**os.environ, "PATH": f"{Path(PROGRAM).parent}:{os.environ['PATH']}"}
    for name in ("ROOTLESSNET_STATIC_DIR", "CONTAINERS_CONF"):
        environment.pop(name, None)
    subprocess.run(
        ["bash", "-c", "\n".join(script)], env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, timeout=120, check=False,
    )  # fmt: skip
    result = []
    for number, step in enumerate(found):
        status = directory / f"{number}.status"
        output = directory / f"{number}.out"
        seen = output.read_text().replace("\r", "") if output.exists() else "(not run)\n"
        result.append((step, int(status.read_text()) if status.exists() else -1, seen))
    return result


@pytest.fixture
def nothing_left() -> Iterator[None]:
    home = Path(os.environ["HOME"])
    files = set(os.listdir(home))
    yield

    def left() -> list[str]:
        base = RUNTIME / "rootlessnet"
        here = [name for name in os.listdir(base) if not name.endswith(".lock")]
        ours = [name for name in own_processes().values() if "rootlessnet" in name.split(" -")[0]]
        return here + [name for name in ours if "pytest" not in name]

    wait_for("nothing is left", lambda: not left(), 15)
    assert set(os.listdir(home)) - files <= {".local", ".config", ".cache"}


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("page", [ROOT / "README.md", *RECIPES], ids=lambda page: page.stem)
def test_what_it_shows_is_what_happens(page: Path, tmp_path: Path) -> None:
    played = play(page, tmp_path / "steps")
    assert played, "no block to run"
    wrong = []
    for step, status, output in played:
        where = f"{page.name}:{step.line}: {step.text.strip()}"
        if (status != 0) is not step.fails:
            wrong.append(f"{where}\n  status {status}\n{output}")
        elif step.shown is not None and not re.fullmatch(pattern(step.shown), output):
            wrong.append(f"{where}\n--- shown\n{step.shown}--- seen\n{output}")
    assert not wrong, "\n\n".join(wrong)


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *RECIPES, *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_runner_sees_what_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```console\n$ echo one\ntwo\n$ false\n$ true # fails\n$ printf '1 2\\n3\\n'\n...2\n...\n"
        "$ cat <<END\n> here\n> END\nhere\n```\n\n```sh\nfalse\ntrue\n```\n"
    )
    played = play(page, tmp_path / "steps")
    assert [(status, step.fails) for step, status, _ in played] == [
        (0, False), (1, False), (0, True), (0, False), (0, False), (1, False),
    ]  # fmt: skip
    seen = [re.fullmatch(pattern(step.shown or ""), out) is not None for step, _, out in played]
    assert seen == [False, True, True, True, True, True]
