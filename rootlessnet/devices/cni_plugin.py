"""The CNI protocol, as the wrapper around a plugin: environment, configuration, versions, errors.

The order of the checks is the reference's: environment (presence and validity), standard input,
JSON, network name, version; then the command. A failure is a JSON object on stdout and exit
status 1, a result goes to stdout alone. VERSION is answered by cni_main; a wrong environment and
a wrong configuration are answered without what touches links.
"""

from __future__ import annotations

import os

from rootlessnet.devices.cni_main import VERSIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

INCOMPATIBLE_VERSION = 1
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
DECODING_FAILURE = 6
INVALID_NETWORK_CONFIG = 7
INVALID_NETNS = 8
INTERNAL = 999

# What each command needs in the environment, beside itself. In the order of the complaint.
_NEEDS = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"),
    "GC": ("CNI_PATH",),
    "STATUS": ("CNI_PATH",),
}
# From which version of the configuration on a command exists, where it was not there at first.
_SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}

_ALPHANUMERIC = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_NAME_CHARACTERS = _ALPHANUMERIC | frozenset("_.-")


class CniError(Exception):
    """A failure that the runtime is told, with a code of the specification or 999."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


class Request:
    """One call of the plugin: what the environment and standard input said, checked."""

    __slots__ = (
        "command",
        "config",
        "container",
        "ifname",
        "netns",
        "path",
        "stdin",
        "takes_own_netns",
        "version",
    )

    def __init__(self, command: str, stdin: bytes, config: dict[str, Any], version: str) -> None:
        self.command = command
        self.stdin = stdin
        self.config = config
        self.version = version
        self.container = os.environ.get("CNI_CONTAINERID", "")
        self.netns = os.environ.get("CNI_NETNS", "")
        self.ifname = os.environ.get("CNI_IFNAME", "")
        self.path = os.environ.get("CNI_PATH", "")
        override = os.environ.get("CNI_NETNS_OVERRIDE", "")
        self.takes_own_netns = override.upper() == "TRUE" or override == "1"


def answer(command: str) -> int:
    """Answer a call other than VERSION; the exit status."""
    from rootlessnet.errors import Error, reason

    try:
        _run(command)
        return 0
    except CniError as error:
        failure = error
    except (Error, OSError) as error:
        failure = CniError(INTERNAL, reason(error))
    except Exception as error:
        # A bug: the runtime gets its JSON, and whoever reads the log the traceback.
        import traceback

        traceback.print_exc()
        failure = CniError(INTERNAL, f"{type(error).__name__}: {error}")
    document: dict[str, Any] = {"code": failure.code, "msg": failure.message}
    if failure.details:
        document["details"] = failure.details
    try:
        print_json(document)
    except OSError as error:
        os.write(2, f"cannot print the error {failure.message}: {error.strerror}\n".encode())
    return 1


def print_json(document: Any) -> None:
    """Write a document to stdout as the reference lays it out; raises OSError."""
    import json

    data = json.dumps(document, indent=4, ensure_ascii=False).encode(errors="surrogateescape")
    while data:
        data = data[os.write(1, data) :]


def _run(command: str) -> None:
    _check_environment(command)
    stdin = _read_stdin()
    config = _parse(stdin)
    if command not in _NEEDS:
        raise CniError(INVALID_ENVIRONMENT, f"unknown CNI_COMMAND: {command}")
    request = Request(command, stdin, config, _check_version(command, config))
    from rootlessnet.devices import host_device

    commands: dict[str, Callable[[Request], None]] = {
        "ADD": host_device.add,
        "CHECK": host_device.check,
        "DEL": host_device.delete,
        "GC": host_device.collect,
        "STATUS": host_device.status,
    }
    commands[command](request)


def _check_environment(command: str) -> None:
    missing = []
    checks = {"CNI_CONTAINERID": check_container, "CNI_IFNAME": check_ifname}
    for name in _NEEDS.get(command, ()):
        value = os.environ.get(name, "")
        if not value:
            missing.append(name)
        elif name in checks:
            checks[name](value)
    if missing:
        raise CniError(INVALID_ENVIRONMENT, f"required env variables [{','.join(missing)}] missing")


def is_name(value: str) -> bool:
    """Whether a network or a container can have this name, which is not empty."""
    return value[0] in _ALPHANUMERIC and _NAME_CHARACTERS.issuperset(value)


def check_container(value: str) -> None:
    """Raise CniError for what is no container id."""
    if not is_name(value):
        raise CniError(INVALID_ENVIRONMENT, "invalid characters in containerID", value)


def check_ifname(value: str) -> None:
    """Raise CniError for what is no name of an interface."""
    if len(os.fsencode(value)) > 15:
        raise CniError(
            INVALID_ENVIRONMENT,
            "interface name is too long",
            "interface name should be less than 16 characters",
        )
    if value in (".", ".."):
        raise CniError(INVALID_ENVIRONMENT, "interface name is . or ..")
    if any(character in "/:" or character.isspace() for character in value):
        raise CniError(
            INVALID_ENVIRONMENT, "interface name contains / or : or whitespace characters"
        )


def _read_stdin() -> bytes:
    chunks = []
    try:
        while chunk := os.read(0, 65536):
            chunks.append(chunk)
    except OSError as e:
        raise CniError(IO_FAILURE, f"error reading from stdin: {go_text(e)}") from e
    return b"".join(chunks)


def _parse(stdin: bytes) -> dict[str, Any]:
    import json

    attempt = "error unmarshall network config"
    try:
        config = json.loads(stdin)
    except ValueError as e:
        text = str(e)
        if isinstance(e, json.JSONDecodeError) and e.pos >= len(e.doc.rstrip()):
            text = "unexpected end of JSON input"
        raise CniError(DECODING_FAILURE, f"{attempt}: {text}") from e
    if not isinstance(config, dict):
        raise CniError(
            DECODING_FAILURE, f"{attempt}: {unexpected(config, 'Go value', 'a network config')}"
        )
    name = config.get("name")
    if name is not None and not isinstance(name, str):
        raise CniError(
            DECODING_FAILURE, f"{attempt}: {unexpected(name, 'Go struct field .name', 'string')}"
        )
    if not name:
        raise CniError(INVALID_NETWORK_CONFIG, "missing network name")
    if not is_name(name):
        raise CniError(INVALID_NETWORK_CONFIG, "invalid characters found in network name", name)
    return config


def _check_version(command: str, config: dict[str, Any]) -> str:
    """The version that results are printed in."""
    version = config.get("cniVersion")
    if version is not None and not isinstance(version, str):
        what = unexpected(version, "Go struct field .cniVersion", "string")
        raise CniError(DECODING_FAILURE, f"decoding version from network config: {what}")
    # The first version of the specification did not ask for the field.
    version = version or VERSIONS[0]
    known = version in VERSIONS
    since = _SINCE.get(command)
    if since and known and VERSIONS.index(version) < VERSIONS.index(since):
        raise CniError(INCOMPATIBLE_VERSION, f"config version does not allow {command}")
    if not known:
        supported = " ".join(f'"{each}"' for each in VERSIONS)
        raise CniError(
            INCOMPATIBLE_VERSION,
            "incompatible CNI versions",
            f'config is "{version}", plugin supports [{supported}]',
        )
    return version


def unexpected(value: Any, where: str, wanted: str) -> str:
    """What the reference says to a JSON value of the wrong kind."""
    kinds = {bool: "bool", str: "string", list: "array", dict: "object", type(None): "null"}
    found = kinds.get(type(value), "number")
    return f"json: cannot unmarshal {found} into {where} of type {wanted}"


def quote(text: str) -> str:
    """The text in double quotes, as in the reference's messages."""
    import json

    return json.dumps(text, ensure_ascii=False)


def go_text(error: OSError) -> str:
    """The words of an errno as the reference has them: like ours, in lower case."""
    return os.strerror(error.errno).lower() if error.errno else str(error)
