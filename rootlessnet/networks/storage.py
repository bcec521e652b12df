"""What podman's storage lists: the containers and images of a graphroot."""

from __future__ import annotations

import os

from rootlessnet.config import containers
from rootlessnet.errors import Error
from rootlessnet.kernel import files as kernel_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def files(graphroot: str, kind: str) -> list[str]:
    """The files in which containers/storage lists `containers` or `images`."""
    driver = containers.storage_driver()
    try:
        names = sorted(os.listdir(graphroot))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise Error(f"look for {kind}") from error
    found = []
    for name in names:
        if name == f"{driver}-{kind}" or (not driver and name.endswith(f"-{kind}")):
            prefixes = ("", "volatile-") if kind == "containers" else ("",)
            found += [f"{graphroot}/{name}/{prefix}{kind}.json" for prefix in prefixes]
    return found


def records(path: str) -> list[Any]:
    """The list in one of them. Raises Error when it cannot be read.

    Of a damaged one only whether it is empty is known, by where it begins: podman's rule too.
    """
    import json

    try:
        data = kernel_files.read(path, -1, follow=True)
        value = json.loads(data) if data else []
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Error("look for containers and images") from error
    except (ValueError, RecursionError):
        start = b"".join(data[:4096].split())
        return [None] if start.startswith(b"[") and not start.startswith(b"[]") else []
    return value if isinstance(value, list) else []
