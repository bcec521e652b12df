"""The linters are part of the suite."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "--no-cache", "."],
        ["ruff", "format", "--check", "--no-cache", "."],
        ["mypy", "--no-incremental", "--cache-dir=/dev/null"],
    ],
    ids=["ruff check", "ruff format", "mypy --strict"],
)
def test_linter(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_man_pages_are_valid() -> None:
    pages = sorted((ROOT / "docs/man").glob("*.[1-8]"))
    assert pages
    for page in pages:
        done = subprocess.run(
            ["man", "--warnings", "-l", str(page)],
            env={"MANROFFOPT": "-ww", "LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), page
