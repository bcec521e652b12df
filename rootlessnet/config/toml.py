"""Single values out of a stack of TOML files, at next to no cost when the value is in none of them.

Every `enter` asks where the static dir is, and on nearly every machine the files say nothing about
it. So a file is parsed (10 ms for tomllib alone) only when a line that is no comment names the key.
"""

from __future__ import annotations

from rootlessnet.errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


def read(path: str) -> bytes:
    """The file's bytes; empty when there is none. Raises Error when it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise Error("read the configuration") from error


def parse(path: str, data: bytes) -> dict[str, Any]:
    """The tables of one file. Raises Error naming file and line."""
    import tomllib

    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Error(f"read {path}: {error}", hint="the file is not valid TOML: mend it") from None


def mentions(data: bytes, key: str) -> bool:
    """Whether a line that is no comment names the key."""
    name = key.encode()
    if name not in data:
        return False
    return any(name in line and not line.lstrip().startswith(b"#") for line in data.split(b"\n"))


def last_string(files: Iterable[str], table: str, key: str) -> tuple[str, str]:
    """The string at [table] key in the last of the files that has it, and that file's path.

    ("", "") when none has it. Raises Error for invalid TOML or a value that is no string.
    """
    found = ("", "")
    for path in files:
        data = read(path)
        if not mentions(data, key):
            continue
        section = parse(path, data).get(table, {})
        value = section.get(key, "") if isinstance(section, dict) else ""
        if not isinstance(value, str):
            raise Error(f'read {path}: {key} in [{table}] has to be a string, "..."')
        if value:
            found = (value, path)
    return found


def last_strings(files: Iterable[str], table: str, key: str) -> tuple[list[str], str]:
    """Like last_string, for a list of strings."""
    found: tuple[list[str], str] = ([], "")
    for path in files:
        data = read(path)
        if not mentions(data, key):
            continue
        section = parse(path, data).get(table, {})
        value = section.get(key) if isinstance(section, dict) else None
        if value is None:
            continue
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise Error(f'read {path}: {key} in [{table}] has to be a list of strings, ["..."]')
        found = (value, path)
    return found


def last_number(files: Iterable[str], table: str, key: str) -> tuple[int | None, str]:
    """Like last_string, for a number from 0 on: (None, "") when none has it."""
    value, path = last_value(files, table, key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise Error(f"read {path}: {key} in [{table}] has to be a number from 0 on")
    return value, path


def last_value(files: Iterable[str], table: str, key: str) -> tuple[Any, str]:
    """Like last_string, for a value of any type: (None, "") when none has it."""
    found: tuple[Any, str] = (None, "")
    for path in files:
        data = read(path)
        if not mentions(data, key):
            continue
        section = parse(path, data).get(table, {})
        if isinstance(section, dict) and section.get(key) is not None:
            found = (section[key], path)
    return found
