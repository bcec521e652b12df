"""Every page of docs/man goes into the wheel, to the directory of its section."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManPages(BuildHookInterface):  # type: ignore[type-arg]
    """The wheel's shared data, out of what there is: a new page needs no line anywhere."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        for page in sorted(Path(self.root, "docs/man").glob("*.[1-8]")):
            target = f"share/man/man{page.suffix[1:]}/{page.name}"
            build_data["shared_data"][str(page)] = target
