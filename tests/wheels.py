"""Wheels of the packages that the tests run with, for a pip that has no index."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path


def environment(directory: Path, *names: str) -> dict[str, str]:
    """Make wheels of the named packages and of all that they need; pip's variables to find them."""
    directory.mkdir()
    for found in closure(names):
        pack(found, directory)
    return {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(directory),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def closure(names: tuple[str, ...]) -> Iterator[Distribution]:
    """The distributions of these names and of what they require here, each once."""
    from packaging.requirements import Requirement

    left, seen = list(names), set()
    while left:
        found = distribution(left.pop())
        if found.name in seen:
            continue
        seen.add(found.name)
        yield found
        for text in found.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(requirement.name)


def pack(found: Distribution, directory: Path) -> Path:
    """The wheel that the distribution was installed from, as far as it can be told."""
    if found.files is None:
        raise PackageNotFoundError(found.name)
    files = [path for path in found.files if ".." not in path.parts and path.suffix != ".pyc"]
    record = next(path for path in files if path.name == "RECORD")
    lines = found.read_text("WHEEL") or ""
    tags = [line.split()[1].split("-") for line in lines.splitlines() if line.startswith("Tag:")]
    tag = "-".join(".".join(dict.fromkeys(part)) for part in zip(*tags, strict=True))
    stem = record.parent.name.removesuffix(".dist-info")
    wheel = directory / f"{stem}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in files:
            if path != record:
                archive.write(str(path.locate()), str(path))
        kept = {str(path) for path in files}
        text = (found.read_text("RECORD") or "").splitlines(keepends=True)
        archive.writestr(str(record), "".join(t for t in text if t.split(",")[0] in kept))
    return wheel
