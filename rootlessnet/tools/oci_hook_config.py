"""What runtimes and engines are to be told of our hook.

document()          a file for a hooks.d directory (oci-hooks(5), version 1.0.0): of podman and
                    CRI-O, for containers with the annotation org.rootlessnet.network
hooks()             `hooks` of a bundle's config.json
install(), add()    the same, written
"""

from __future__ import annotations

import os
import sys

from rootlessnet.errors import Error
from rootlessnet.tools import oci_hook

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FILE = "rootlessnet.json"
STAGES = ("createRuntime", "createContainer", "poststop")
_PROGRAM = "rootlessnet"
_SECONDS = 60


def document(static_dir: str = "") -> dict[str, Any]:
    """For a hooks.d directory. Such a hook is not told its stage."""
    return {
        "version": "1.0.0",
        "hook": _hook(oci_hook.AUTO, static_dir),
        "when": {"annotations": {rf"^{oci_hook.PREFIX}network$".replace(".", r"\."): ".*"}},
        "stages": list(STAGES),
    }


def hooks(static_dir: str = "") -> dict[str, Any]:
    """For config.json."""
    return {stage: [_hook(stage, static_dir)] for stage in STAGES}


def _hook(stage: str, static_dir: str) -> dict[str, Any]:
    if static_dir:
        os.environ["ROOTLESSNET_STATIC_DIR"] = static_dir
    chosen = [name for name in oci_hook.ENVIRONMENT if os.environ.get(name)]
    return {
        "path": program(),
        "args": [_PROGRAM, "oci-hook", stage],
        "env": [f"{name}={os.environ[name]}" for name in chosen],
        "timeout": _SECONDS,
    }


def program() -> str:
    """Our executable, as an absolute path. Raises Error."""
    from rootlessnet.kernel import spawn

    beside = os.path.abspath(sys.argv[0])
    found = beside if os.path.basename(beside) == _PROGRAM else spawn.find(_PROGRAM)
    if not found or not os.access(found, os.X_OK):
        raise Error(f"find the program {_PROGRAM}: it is not on PATH")
    return os.path.abspath(found)


def install(directory: str, static_dir: str = "") -> str:
    """Put the file into a hooks.d directory, which is made if need be; its path. Raises Error."""
    path = os.path.join(os.path.abspath(directory), FILE)
    data = document(static_dir)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _write(path, data, 0o644)
    except OSError as error:
        raise Error("install the hook") from error
    return path


def add(bundle: str, static_dir: str = "") -> str:
    """Put the hooks into a bundle's config.json, before those of others and instead of our own;
    its path. Raises Error."""
    import json

    path = os.path.join(os.path.abspath(bundle), "config.json")
    new = hooks(static_dir)
    try:
        with open(path, "rb") as file:
            config = json.load(file)
            mode = os.fstat(file.fileno()).st_mode & 0o777
        present = config.setdefault("hooks", {})
        for stage in oci_hook.STAGES:
            others = [each for each in present.get(stage) or () if not _is_ours(each)]
            if others or stage in new:
                present[stage] = new.get(stage, []) + others
            else:
                present.pop(stage, None)
        _write(path, config, mode)
    except OSError as error:
        raise Error("add the hooks") from error
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise Error(f"add the hooks: {path} is no configuration of a bundle") from None
    return path


def _is_ours(hook: dict[str, Any]) -> bool:
    return list(hook.get("args") or ())[:2] == [_PROGRAM, "oci-hook"]


def _write(path: str, document: dict[str, Any], mode: int) -> None:
    import json

    temporary = f"{path}.{os.getpid()}"
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.write(json.dumps(document, indent=4) + "\n")
        os.rename(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise
