"""Fixtures for tests with network devices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from device_support import World


@pytest.fixture(params=["user", pytest.param("root", marks=pytest.mark.root)])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A host with a device and a container: in a user namespace, and on the machine itself."""
    made = World(tmp_path, as_root=request.param == "root")
    try:
        made.add_device()
        yield made
    finally:
        made.end()
