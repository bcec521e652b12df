"""A hook of OCI runtimes: gives their containers networks, and takes them away.

A runtime starts us at several stages with the container's state on stdin:

    prestart, createRuntime     in the runtime's namespaces, before the container's program: devices
                                and networks are set up; the second of them finds it done
    createContainer             in the container's namespaces, before its root is the root: the
                                resolv.conf of its networks is mounted (oci_resolv)
    startContainer, poststart   nothing is left to do
    poststop                    everything is taken down; again, or when it is gone, is no failure

What is wanted the annotations say, those of the state or of the bundle's config.json:

    org.rootlessnet.network     NAME[:KEY=VALUE,...], several separated by commas; without it the
                                default network
    org.rootlessnet.ip, .mac    on the first network
    org.rootlessnet.alias       on each network
    org.rootlessnet.publish     rules, as -p takes them

The runtime runs inside the instance, so that the container's network namespace belongs to it, and
that is the instance that counts. A hook's environment may be empty: what is missing is taken from
the runtime's.
"""

from __future__ import annotations

import os

from rootlessnet.errors import Error
from rootlessnet.instance import containers, paths, state
from rootlessnet.kernel import namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.instance.paths import Instance
    from rootlessnet.networks.connection import Connection

PREFIX = "org.rootlessnet."
AUTO = "auto"
STAGES = (
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
)

ENVIRONMENT = (
    "HOME",
    "PATH",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "CONTAINERS_CONF",
    "CONTAINERS_CONF_OVERRIDE",
    "CONTAINERS_STORAGE_CONF",
    "CONTAINERS_HELPER_BINARY_DIR",
    "STORAGE_DRIVER",
    "ROOTLESSNET_STATIC_DIR",
)
"""What says where things are."""

_INSIDE = ("_CONTAINERS_USERNS_CONFIGURED", "_CONTAINERS_ROOTLESS_UID", "_CONTAINERS_ROOTLESS_GID")
_MAX_STATE = 4 << 20
_MAX_ENVIRONMENT = 4 << 20


class State:
    """The state of a container as the runtime tells it, and its bundle."""

    def __init__(self, document: Any) -> None:
        """Raises Error for what is no state."""
        if not isinstance(document, dict):
            raise Error("the state is not an object")
        self.id = _text(document, "id")
        containers.check(self.id)
        self.status = _text(document, "status")
        self.bundle = _text(document, "bundle") if "bundle" in document else ""
        pid = document.get("pid") or 0
        if not isinstance(pid, int) or isinstance(pid, bool) or pid < 0:
            raise Error("pid of the state is not a number of a process")
        self.pid = pid
        self._annotations = _annotations(document, "the state")
        self._config: dict[str, Any] | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The bundle's config.json. Raises Error."""
        if self._config is None:
            import json

            if not self.bundle.startswith("/"):
                raise Error("the state names no bundle")
            path = f"{self.bundle}/config.json"
            try:
                with open(path, "rb") as file:
                    found = json.load(file)
            except OSError as error:
                raise Error("read the bundle") from error
            except (ValueError, RecursionError) as error:
                raise Error(f"read {path}: {error}") from None
            if not isinstance(found, dict):
                raise Error(f"read {path}: it is not an object")
            self._config = found
        return self._config

    def annotation(self, name: str) -> list[str]:
        """The parts, between commas, of one of our annotations."""
        key = PREFIX + name
        text = self._annotations.get(key)
        if text is None:
            text = _annotations(self.config, "config.json").get(key, "")
        return [part.strip() for part in text.split(",") if part.strip()]

    def has_own_network(self) -> bool:
        """Whether the bundle has a network namespace."""
        linux = self.config.get("linux")
        listed = linux.get("namespaces") if isinstance(linux, dict) else None
        return isinstance(listed, list) and any(
            isinstance(each, dict) and each.get("type") == "network" for each in listed
        )


def _text(document: dict[str, Any], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str):
        raise Error(f"{key} of the state is not a string")
    return value


def _annotations(document: dict[str, Any], what: str) -> dict[str, str]:
    found = document.get("annotations")
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        raise Error(f"annotations of {what} are not strings by name")
    return found


def read_state(fd: int = 0) -> State:
    """The state that the runtime writes to us. Raises Error."""
    import json

    data = b""
    while chunk := os.read(fd, 1 << 16):
        data += chunk
        if len(data) > _MAX_STATE:
            raise Error("read the container's state from stdin: it is too large")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise Error(
            "read the container's state from stdin: it is not JSON",
            hint="this command is for the `hooks` of an OCI bundle: rootlessnet oci-hook generate",
        ) from None
    return State(document)


# -- where we are ----------------------------------------------------------------------------------


def complete_environment() -> None:
    """Fill in what a hook's environment lacks: from the runtime's, and from the user namespace."""
    # Numbers of processes mean nothing where /proc is of another pid namespace.
    if os.readlink("/proc/self") == str(os.getpid()):
        try:
            with open(f"/proc/{os.getppid()}/environ", "rb") as file:
                lines = file.read(_MAX_ENVIRONMENT).split(b"\0")
        except OSError:
            lines = []
        for line in lines:
            name, _, value = os.fsdecode(line).partition("=")
            if name in ENVIRONMENT or name in _INSIDE:
                os.environ.setdefault(name, value)
    if os.geteuid() == 0 and "_CONTAINERS_ROOTLESS_UID" not in os.environ:
        for name in ("uid", "gid"):
            outer = _outer_id(name)
            if outer:
                os.environ[f"_CONTAINERS_ROOTLESS_{name.upper()}"] = str(outer)
    if "HOME" not in os.environ and (uid := os.environ.get("_CONTAINERS_ROOTLESS_UID")):
        import pwd

        try:
            os.environ["HOME"] = pwd.getpwuid(int(uid)).pw_dir
        except (KeyError, ValueError):
            pass


def _outer_id(name: str) -> int:
    """What 0 is outside our user namespace; 0 in the first one."""
    try:
        with open(f"/proc/self/{name}_map", encoding="ascii") as file:
            for line in file:
                first, outer, _ = map(int, line.split())
                if first == 0:
                    return outer
    except (OSError, ValueError):
        pass
    return 0


def find_instance(id: str, given: str = "") -> Instance:
    """The instance in which we are; else the one that has this container; else the usual one."""
    if given:
        return paths.find(given)
    base = paths.base_directory()
    own = namespaces.inode("self", "net")
    holding = []
    for name in sorted(os.listdir(base)):
        if not name.startswith(paths.NAME_PREFIX) or name.endswith(".lock"):
            continue
        instance = paths.Instance(base, "", name)
        holder = state.read_holder(instance)
        if holder is not None and holder.netns == own:
            return _with_static_dir(instance)
        if os.path.lexists(containers.path(instance, id)):
            holding.append(instance)
    usual = paths.find()
    if len(holding) == 1 and usual.name != holding[0].name:
        return _with_static_dir(holding[0])
    return usual


def _with_static_dir(instance: Instance) -> Instance:
    record = state.read(instance)
    if record is not None:
        instance.static_dir = str(record["static_dir"])
    return instance


def stage_of(current: State) -> str:
    """The stage, where the runtime was not told to say it: by the state, and by where we are."""
    if current.status == "stopped":
        return "poststop"
    if current.pid > 1 and os.readlink("/proc/self") == str(os.getpid()):
        try:
            there = namespaces.inode(current.pid, "net")
        except OSError:
            there = 0
        if there != namespaces.inode("self", "net"):
            return "createRuntime"
    return "createContainer"


# -- stages ----------------------------------------------------------------------------------------


def run(stage: str, current: State, given: str = "") -> None:
    """Do what is to be done at a stage. Raises Error."""
    if stage == AUTO:
        stage = stage_of(current)
    if stage == "poststop":
        _remove(current, find_instance(current.id, given))
    elif stage in ("prestart", "createRuntime"):
        _create(current, find_instance(current.id, given))
    elif stage == "createContainer":
        from rootlessnet.tools import oci_resolv

        _refuse_host_network(current)
        oci_resolv.mount(current)


def _refuse_host_network(current: State) -> None:
    if not current.has_own_network():
        raise Error(
            "the container has no network namespace of its own",
            hint='{"type": "network"} has to be in linux.namespaces of config.json',
        )


def _create(current: State, instance: Instance) -> None:
    if not current.pid:
        raise Error("the state names no process")
    _refuse_host_network(current)
    wanted = connections(current)
    if _is_done(current, instance):
        return
    from rootlessnet.devices import oci
    from rootlessnet.networks import api
    from rootlessnet.tools import oci_resolv

    oci_resolv.prepare(current)

    def attach() -> None:
        api.setup(
            current.id,
            wanted,
            pid=current.pid,
            publish=current.annotation("publish"),
            instance=instance,
        )

    linux = current.config.get("linux")
    if isinstance(linux, dict) and linux.get("netDevices"):
        path = f"/proc/{current.pid}/ns/net"
        if not oci.is_applied(current.bundle, path):
            oci.apply(current.bundle, path, attach)
            return
    attach()


def _is_done(current: State, instance: Instance) -> bool:
    """Whether an earlier stage has set the same container up."""
    record = containers.read(instance, current.id)
    return (
        record is not None
        and record["phase"] == containers.READY
        and containers.living_pid(record) == current.pid
    )


def _remove(current: State, instance: Instance) -> None:
    record = containers.read(instance, current.id)
    if record is None:
        return
    if containers.living_pid(record) is not None:
        # That of another runtime, with the same id: ours has ended.
        return
    from rootlessnet.networks import api

    api.teardown(current.id, instance=instance)


def connections(current: State) -> list[Connection]:
    """What the annotations ask for. Raises Error."""
    from rootlessnet.networks import connection

    found = []
    for text in networks(current.annotation("network")):
        try:
            found.append(connection.parse(text))
        except Error as error:
            raise Error(f"{PREFIX}network {text}") from error
    if not found:
        from rootlessnet.config import network as config

        found.append(connection.Connection(config.default_network()))
    found[0].static_ips += current.annotation("ip")
    macs = current.annotation("mac")
    if len(macs) > 1:
        raise Error(f"{PREFIX}mac: one address, for the first network")
    found[0].static_mac = macs[0] if macs else found[0].static_mac
    for each in found:
        each.aliases += current.annotation("alias")
    return found


def networks(parts: list[str]) -> list[str]:
    """Networks from the parts of a list in which a comma separates networks and their options: a
    part with = and no colon before it belongs to the network before."""
    found: list[str] = []
    for part in parts:
        before, equals, _ = part.partition("=")
        if found and equals and ":" not in before:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found
