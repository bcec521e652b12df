"""Containers: users of the instance that no process has to hold.

`containers/<id>` is a JSON record, written by rootlessnet.networks.containers under a lock:

    id, since, hostname, backend
    publish     [proto, host_ip, host_port, port, count] of each rule (rootlessnet.ports.rules)
    phase       "setup" or "teardown" while that goes on, "reload", else "ready"
    netns       path; dev, inode: which it is; kind: "new" (made by us), "pid" (a process's, pinned
                by us) or "path"; pid, started: a process whose namespace it is, for kind "pid"
    networks    by name: network (podman's description), interface, static_ips, static_mac, aliases,
                addresses, phase ("ready", "setup" or "teardown"), status (podman's StatusBlock),
                peer (the number of the interface at the other end, 0 if there is none)

A record is there before anything else of a container is, and removed after everything else, so what
was begun can always be finished; `containers.pending` names the one that is being changed. Every
record counts, also one that makes no sense: it is safer to keep an instance than to end one in use.

In a file's name, what a file cannot be called is written %XX.
"""

from __future__ import annotations

import os

from rootlessnet.errors import Error
from rootlessnet.instance import state
from rootlessnet.kernel import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.instance.paths import Instance

DIRECTORY = "containers"
LOCK = "containers.lock"
PENDING = "containers.pending"

READY = "ready"
SETUP = "setup"
TEARDOWN = "teardown"
RELOAD = "reload"

NEW = "new"
PID = "pid"
PATH = "path"

_BACKENDS = ("netavark", "cni")
_MAX_SIZE = 1 << 20
_MAX_LENGTH = 200
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-@:+")
_RULE = f"up to {_MAX_LENGTH} letters, digits and _.-+@:, the first no dot or dash"


def check(id: str) -> None:
    """Raise Error for what cannot be the id of a container."""
    if not id or len(id) > _MAX_LENGTH or id[0] in ".-" or not _PLAIN.issuperset(id):
        raise Error(f"container {id!r}: not an id" if id else "the id is empty", hint=_RULE)


def file_name(id: str) -> str:
    """The name of its record; one that is being written ends in .new."""
    return id[:-4] + "%2Enew" if id.endswith(".new") else id


def _id_of(name: str) -> str:
    return name.replace("%2E", ".")


def path(instance: Instance, id: str) -> str:
    """Where its record is."""
    return f"{instance.path(DIRECTORY)}/{file_name(id)}"


def names(instance: Instance) -> list[str]:
    """The ids of all that have a record."""
    try:
        listed = os.listdir(instance.path(DIRECTORY))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(_id_of(name) for name in listed if not name.endswith(".new"))


def read(instance: Instance, id: str) -> dict[str, Any] | None:
    """The record; None when there is none, and one with `damaged` when it makes no sense."""
    import json

    try:
        record = json.loads(files.read(path(instance, id), _MAX_SIZE))
        if record["id"] == id and _is_whole(record):
            return dict(record)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return {
        "id": id,
        "damaged": True,
        "since": None,
        "hostname": "",
        "backend": "",
        "phase": TEARDOWN,
        "publish": [],
        "netns": {"path": "", "dev": 0, "inode": 0, "kind": PATH, "pid": None, "started": None},
        "networks": {},
    }


def _is_whole(record: Any) -> bool:
    """Whether everything that is relied on is there. Raises KeyError, TypeError, AttributeError."""
    netns = record["netns"]
    return (
        all(isinstance(record[key], str) for key in ("id", "since", "hostname"))
        and record["backend"] in _BACKENDS
        and record["phase"] in (SETUP, READY, RELOAD, TEARDOWN)
        and all(_is_rule(fields) for fields in record["publish"])
        and isinstance(netns["path"], str)
        and "\0" not in netns["path"]
        and netns["kind"] in (NEW, PID, PATH)
        and all(isinstance(netns[key], int) for key in ("dev", "inode"))
        and all(isinstance(netns[key], int | None) for key in ("pid", "started"))
        and (netns["pid"] is None) == (netns["started"] is None)
        and all(_is_attachment(item) for item in record["networks"].values())
    )


def _is_rule(fields: Any) -> bool:
    kinds = (str, str, int, int, int)
    if len(fields) != len(kinds) or not all(map(isinstance, fields, kinds)):
        return False
    proto, host_ip, host_port, port, count = fields
    if proto not in ("tcp", "udp") or not (host_ip == "" or _is_address(host_ip)):
        return False
    return bool(count >= 1 and min(host_port, port) >= 0 and max(host_port, port) + count <= 65536)


def _is_address(text: str) -> bool:
    import ipaddress

    try:
        return str(ipaddress.ip_address(text)) == text
    except ValueError:
        return False


def _is_attachment(item: Any) -> bool:
    return (
        all(isinstance(item[key], str) for key in ("interface", "static_mac", "phase"))
        and all(
            isinstance(item[key], list) and all(isinstance(text, str) for text in item[key])
            for key in ("static_ips", "aliases", "addresses")
        )
        and isinstance(item["network"], dict)
        and isinstance(item["status"], dict)
        and all(map(_is_answer, (item["status"].get("interfaces") or {}).values()))
        and isinstance(item["peer"], int)
    )


def _is_answer(interface: Any) -> bool:
    """Whether what a runtime has answered about an interface can be shown."""
    texts = [interface.get("mac_address")]
    for subnet in interface.get("subnets") or []:
        texts += [subnet.get("ipnet"), subnet.get("gateway")]
    return all(isinstance(text, str | None) for text in texts)


def records(instance: Instance) -> list[dict[str, Any]]:
    """All records, by id."""
    return [found for id in names(instance) if (found := read(instance, id)) is not None]


def write(instance: Instance, record: dict[str, Any]) -> None:
    """Put the record in place. Raises Error when there is no room."""
    import json

    try:
        files.replace(path(instance, record["id"]), json.dumps(record).encode())
    except OSError as error:
        raise Error("record the container") from error


def remove(instance: Instance, id: str) -> None:
    """Forget it; one that is gone is no error. Raises OSError."""
    try:
        os.unlink(path(instance, id))
    except FileNotFoundError:
        pass


def living_pid(record: dict[str, Any]) -> int | None:
    """The process whose namespace it is, while it lives."""
    netns = record["netns"]
    pid, started = netns["pid"], netns["started"]
    if isinstance(pid, int) and isinstance(started, int) and state.is_alive(pid, started):
        return pid
    return None


def leases(instance: Instance) -> list[dict[str, Any]]:
    """The containers as leases of `status --json`."""
    return [
        {
            "id": record["id"],
            "kind": "container",
            "pid": living_pid(record),
            "command": "",
            "since": record["since"],
        }
        for record in records(instance)
    ]


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """A container as `container ls --json` and `status --json` show it."""
    networks = {}
    for name, item in record["networks"].items():
        networks[name] = {
            "interface": item["interface"],
            "addresses": addresses(item),
            "mac": mac(item),
            "bridge": str(item["network"].get("network_interface", "")),
            "peer": item["peer"],
        }
    return {
        "id": record["id"],
        "state": "damaged" if record.get("damaged") else record["phase"],
        "netns": record["netns"]["path"],
        "pid": living_pid(record),
        "since": record["since"],
        "hostname": record["hostname"],
        "backend": record["backend"],
        "networks": networks,
        "ports": ports(record),
    }


def ports(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Each published port, as in the `ports` of `status --json` but for the target."""
    return [
        {
            "proto": proto,
            "host_ip": host_ip,
            "host_port": host_port + number if host_port else 0,
            "port": port + number,
        }
        for proto, host_ip, host_port, port, count in record["publish"]
        for number in range(count)
    ]


def _interfaces(item: dict[str, Any]) -> dict[str, Any]:
    found = item["status"].get("interfaces")
    return found if isinstance(found, dict) else {}


def subnets(item: dict[str, Any]) -> list[dict[str, str]]:
    """What an attachment got: {"ipnet": "A/N", "gateway": ...} of each subnet."""
    found = _interfaces(item).get(item["interface"])
    listed = found.get("subnets") if isinstance(found, dict) else None
    return [each for each in listed or [] if isinstance(each, dict) and each.get("ipnet")]


def addresses(item: dict[str, Any]) -> list[str]:
    """The addresses of an attachment, with their prefix lengths."""
    return [str(each["ipnet"]) for each in subnets(item)]


def mac(item: dict[str, Any]) -> str:
    """The MAC address of an attachment's interface."""
    found = _interfaces(item).get(item["interface"])
    return str(found.get("mac_address", "")) if isinstance(found, dict) else ""


def pin_directory(instance: Instance) -> str:
    """Where network namespaces are bound that we made or pinned: podman's place."""
    return f"{os.path.dirname(instance.base)}/netns"


def pin(instance: Instance, id: str) -> str:
    """The path of the namespace that we made or pinned for a container.

    The file is on the host, and the same for all its instances; so its name has the instance's in
    it. (The mount is inside alone, and a file that is a mount point elsewhere can be unlinked.)
    """
    return f"{pin_directory(instance)}/{id}{_pin_end(instance)}"


def _pin_end(instance: Instance) -> str:
    return f"-{instance.name.rpartition('-')[2][:12]}"


def remove_pins(instance: Instance) -> None:
    """Remove the files, when there is nobody inside who could have mounts on them: also those of
    containers whose record is lost."""
    try:
        listed = os.listdir(pin_directory(instance))
    except OSError:
        return
    for name in listed:
        path = f"{pin_directory(instance)}/{name}"
        try:
            # The directory is podman's too; ours have nothing in them.
            if name.endswith(_pin_end(instance)) and os.lstat(path).st_size == 0:
                os.unlink(path)
        except OSError:
            continue
