"""What all tests share.

Two runs make the whole suite: an ordinary user's, and with --as-root the tests marked `root`,
by the real root of a machine that is there for nothing else. `scripts/test` does both.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from container_support import lab  # noqa: F401
from device_fixtures import world  # noqa: F401
from fixtures import faulty_driver, hanging_driver, net  # noqa: F401

if TYPE_CHECKING:
    from collections.abc import Generator

# The testbed leaves it in its machine; test_testbed.py tests that machine and nothing else.
TESTBED = Path("/etc/rootlessnet-testbed")

collect_ignore = [] if TESTBED.exists() else ["test_testbed.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--as-root", action="store_true", help="run the tests marked root, and only those"
    )
    parser.addoption(
        "--part", metavar="K/N", default="1/1", help="run the K-th of N parts: whole files each"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "root: needs the real root of a machine made for tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    as_root = config.getoption("--as-root")
    part, parts = map(int, config.getoption("--part").split("/"))
    chosen = divide({item.path for item in items}, parts)[part - 1]
    left_out = [
        item
        for item in items
        if ("root" in item.keywords) is not as_root or item.path not in chosen
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def divide(files: set[Path], parts: int) -> list[set[Path]]:
    """Test files in parts that take about the same time, by their size."""
    sizes = [0] * parts
    found: list[set[Path]] = [set() for _ in range(parts)]
    for size, file in sorted(((file.stat().st_size, file) for file in files), reverse=True):
        smallest = sizes.index(min(sizes))
        sizes[smallest] += size
        found[smallest].add(file)
    return found


def refuse_skip(report: pytest.CollectReport | pytest.TestReport) -> None:
    """In CI everything a test may need is there, but for what the kernel lacks."""
    if os.environ.get("CI") != "true" or not report.skipped or hasattr(report, "wasxfail"):
        return
    _, _, reason = report.longrepr if isinstance(report.longrepr, tuple) else ("", 0, "no reason")
    reason = reason.removeprefix("Skipped: ")
    if not reason.startswith("kernel:"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which in CI is a failure: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    refuse_skip(report)
    return report
