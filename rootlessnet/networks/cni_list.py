"""A CNI network: the plugins that make it, from a configuration list or a single configuration.

What is read and refused is libcni's, in its words. A list may have its plugins in one file each, in
<directory of the list>/<name of the network>/*.conf, unless it says loadOnlyInlinedPlugins.
"""

from __future__ import annotations

import os

from rootlessnet.devices.cni_main import VERSIONS
from rootlessnet.errors import Error
from rootlessnet.kernel import files
from rootlessnet.networks import gojson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CURRENT = VERSIONS[-1]
_MAX_SIZE = 1 << 20
_LIST = "error parsing configuration list"
_SINGLE = "error parsing configuration"


class NetworkList:
    """A network: its name, the version its plugins are spoken to in, the plugins in their order.

    data is the configuration list as it is cached, from which the same object can be read again.
    """

    def __init__(self, document: dict[str, Any], data: bytes) -> None:
        """The list of a JSON object, with nothing but plugins that it has itself. Raises Error."""
        self.name = _text(document, "name", required=True)
        self.version = _version(document)
        self.disable_check = _truth(document, "disableCheck")
        self.disable_gc = _truth(document, "disableGC")
        self.only_inlined = _truth(document, "loadOnlyInlinedPlugins")
        self.plugins: list[dict[str, Any]] = []
        self.data = data
        if "plugins" not in document:
            if self.only_inlined:
                raise Error(f"{_LIST}: `loadOnlyInlinedPlugins` is true, and no 'plugins' key")
            return
        plugins = document["plugins"]
        if not isinstance(plugins, list):
            raise Error(f"{_LIST}: invalid 'plugins' type {_kind(plugins)}")
        if not plugins:
            raise Error(f"{_LIST}: no plugins in list")
        for number, plugin in enumerate(plugins):
            try:
                self.plugins.append(_plugin(plugin))
            except Error as error:
                raise Error(f"{_LIST}: failed to parse plugin config {number}") from error

    def speaks(self, since: str) -> bool:
        """Whether its version of the specification is this one or a later."""
        return _key(self.version or "0.1.0") >= _key(since)

    def add_plugins(self, plugins: list[dict[str, Any]]) -> None:
        """Append plugins that came from files of their own; they get into data as well."""
        import json

        if not plugins:
            return
        self.plugins += plugins
        document = json.loads(self.data)
        document.update(plugins=self.plugins, loadOnlyInlinedPlugins=True)
        self.data = json.dumps(document, ensure_ascii=False).encode(errors="surrogateescape")

    def inject(self, number: int, values: dict[str, Any]) -> None:
        """Set keys of a plugin for the calls that follow; data stays as it was."""
        self.plugins[number] = {**self.plugins[number], **values}


def parse(data: bytes) -> NetworkList:
    """The list of a configuration's text. Raises Error."""
    document = _object(data, _LIST)
    found = NetworkList(document, data)
    if not found.plugins:
        raise Error("no plugin configs found")
    return found


def load_file(path: str) -> NetworkList:
    """The list of a file: a .conflist, or a single .conf or .json, which becomes a list of one.

    Raises Error; its cause is a FileNotFoundError when there is no such file.
    """
    data = _read(path)
    if not path.endswith(".conflist"):
        single = _object(data, _SINGLE)
        if "plugins" not in single:
            return _of_one(single)
    document = _object(data, _LIST)
    found = NetworkList(document, data)
    if not found.only_inlined:
        found.add_plugins(_beside(path, found.name))
    if not found.plugins:
        raise Error(f"{path}: no plugin configs found")
    return found


def load_network(directory: str, name: str) -> NetworkList:
    """The network of this name in a directory: of its lists in the order of their file names, then
    of its single configurations. Raises Error."""
    names = _listing(directory)
    for suffixes in ((".conflist",), (".conf", ".json")):
        for file in names:
            if not file.endswith(suffixes):
                continue
            path = f"{directory}/{file}"
            if os.path.isdir(path):
                continue
            try:
                found = load_file(path)
            except Error:
                # Another network's file is none of our business, unless it is the one wanted.
                if _claims(path, name):
                    raise
                continue
            if found.name == name:
                return found
    raise Error(f"no net configuration with name {gojson.quote(name)} in {directory}")


def _claims(path: str, name: str) -> bool:
    try:
        return _object(_read(path), _LIST).get("name") == name
    except Error:
        return False


def _listing(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Error("read the networks") from error


def _beside(path: str, name: str) -> list[dict[str, Any]]:
    if "/" in name or name in ("", ".", ".."):
        return []
    directory = os.path.join(os.path.dirname(path), name)
    if not os.path.isdir(directory):
        return []
    found = []
    for file in _listing(directory):
        if file.endswith(".conf"):
            inner = f"{directory}/{file}"
            try:
                found.append(_plugin(_object(_read(inner), _SINGLE)))
            except Error as error:
                raise Error(f"failed to load plugin config file {inner}") from error
    return found


def _of_one(single: dict[str, Any]) -> NetworkList:
    import json

    plugin = _plugin(single)
    # The same defaults as the plugin itself would use.
    document: dict[str, Any] = {"name": single.get("name", "")}
    document["cniVersion"] = single.get("cniVersion") or ""
    document["plugins"] = [plugin]
    data = json.dumps(document, ensure_ascii=False).encode(errors="surrogateescape")
    return NetworkList(document, data)


def _read(path: str) -> bytes:
    try:
        data = files.read(path, _MAX_SIZE + 1, follow=True)
    except OSError as error:
        raise Error("error reading the network") from error
    if len(data) > _MAX_SIZE:
        raise Error(f"error reading {path}: larger than {_MAX_SIZE} bytes")
    return data


def _object(data: bytes, attempt: str) -> dict[str, Any]:
    import json

    try:
        value = json.loads(data.decode(errors="replace"))
    except (ValueError, RecursionError) as error:
        raise Error(f"{attempt}: {error}") from None
    if not isinstance(value, dict):
        raise Error(f"{attempt}: not a JSON object")
    return value


def _plugin(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Error(f"{_SINGLE}: not a JSON object")
    kind = value.get("type")
    if not isinstance(kind, str) or not kind:
        raise Error(f"{_SINGLE}: missing 'type'")
    capabilities = value.get("capabilities")
    if not isinstance(capabilities, dict | None):
        raise Error(f"{_SINGLE}: invalid 'capabilities' type {_kind(capabilities)}")
    return value


def _text(document: dict[str, Any], key: str, *, required: bool = False) -> str:
    if key not in document:
        if required:
            raise Error(f"{_LIST}: no {key}")
        return ""
    value = document[key]
    if not isinstance(value, str):
        raise Error(f"{_LIST}: invalid {key} type {_kind(value)}")
    return value


def _truth(document: dict[str, Any], key: str) -> bool:
    value = document.get(key, False)
    if isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise Error(f"{_LIST}: invalid type {_kind(value)} for {key}")
    if value.lower() not in ("true", "false"):
        raise Error(f"{_LIST}: invalid value {gojson.quote(value.lower())} for {key}")
    return value.lower() == "true"


def _version(document: dict[str, Any]) -> str:
    """The version to speak: the highest that the list names and we know."""
    single = _text(document, "cniVersion")
    if "cniVersions" not in document:
        return single
    listed = document["cniVersions"]
    if not isinstance(listed, list):
        raise Error(f"{_LIST}: invalid type for cniVersions: {_kind(listed)}")
    for number, each in enumerate(listed):
        if not isinstance(each, str):
            raise Error(f"{_LIST}: invalid type for cniVersions index {number}: {_kind(each)}")
        _key(each)
    known = [v for v in [*listed, single] if v and _key(v) <= _key(CURRENT)]
    return max(known, key=_key, default=single)


def _key(version: str) -> tuple[int, ...]:
    parts = version.split(".")
    if len(parts) > 3 or not all(
        part.isascii() and part.isdecimal() and len(part) < 10 for part in parts
    ):
        raise Error(f"{_LIST}: invalid version {gojson.quote(version)}")
    numbers = [int(part) for part in parts]
    return tuple(numbers + [0] * (3 - len(numbers)))


def _kind(value: Any) -> str:
    """The name of a JSON value's type."""
    if value is None:
        return "null"
    names = {bool: "boolean", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "number")
