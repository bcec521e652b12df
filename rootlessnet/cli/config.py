"""rootlessnet config: what containers.conf and storage.conf say, and where."""

from __future__ import annotations

from rootlessnet.cli import arguments, table
from rootlessnet.config import keys
from rootlessnet.errors import Error, reason, warn
from rootlessnet.instance import paths
from rootlessnet.networks import backend

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OPTIONS = (*arguments.COMMON, arguments.JSON)
WHAT = "Print what containers.conf and storage.conf say, and which file says it."


def main(argv: list[str]) -> int:
    values, words = arguments.parse(argv, OPTIONS)
    if "help" in values:
        print(arguments.help_text("config [OPTIONS] [KEY]", WHAT, OPTIONS))
        return 0
    arguments.no_words(words[1:])
    wanted = words or list(keys.KEYS)
    if wanted[0] not in keys.KEYS:
        raise Error(
            f"show the setting {wanted[0]}: there is none of that name",
            hint=f"there are {', '.join(keys.KEYS)}",
        )
    keys.check_files()
    # All of them, as each may be wrong.
    every = {key: look() for key, look in keys.KEYS.items()}
    every["static_dir"] = paths.resolve_static_dir(arguments.last(values, "static-dir"))
    found = {key: _complete(key, *every[key]) for key in wanted}
    if "json" in values:
        import json

        document = {
            key: {"value": value, "source": source} for key, (value, source) in found.items()
        }
        print(json.dumps(document, indent=2))
    elif words:
        for line in _lines(found[wanted[0]][0]):
            print(line)
    else:
        rows = [
            [key, " ".join(_lines(value)) or "-", source] for key, (value, source) in found.items()
        ]
        table.show([["KEY", "VALUE", "SOURCE"], *rows])
    return 0


def _complete(key: str, value: Any, source: str) -> keys.Found:
    """The same, with what follows from the backend that podman chooses where nothing is said."""
    if value is not None or key not in ("network_backend", "network_config_dir"):
        return value, source
    try:
        choice = backend.choose()
    except Error as error:
        warn(reason(error))
        return value, source
    if key == "network_config_dir":
        return choice.module.directory(), source
    return choice.name, source if choice.is_new else choice.source


def _lines(value: Any) -> list[str]:
    """A value for people: a list has an item a line, and nothing has none."""
    if value is None:
        return []
    if isinstance(value, list):
        return [_lines(item)[0] for item in value]
    if isinstance(value, dict):
        return [f"{value['base']},{value['size']}"]
    return [str(value)]
