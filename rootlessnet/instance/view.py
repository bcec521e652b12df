"""An instance as `status --json`, `ps --json` and `path` show it: the record, held against the
processes that it names. Looking changes nothing, but that a killed supervisor is replaced."""

from __future__ import annotations

import os

from rootlessnet.instance import containers, lease, named, paths, start, state
from rootlessnet.instance.clock import timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.instance.paths import Instance


def status(instance: Instance) -> dict[str, Any]:
    """The document of `status --json`; with no instance its state is "down"."""
    import psutil

    start.heal(instance)
    record = state.read(instance)
    holder = state.read_holder(instance)
    if record is None and holder is not None and _holder_lives(instance, holder):
        raise state.damaged(instance, state.STATE)
    if holder is None and state.living_holder(instance) is not None:
        raise state.damaged(instance, state.HOLDER)
    if record is None or holder is None or not _holder_lives(instance, holder):
        return _down(instance)
    supervisor = _living(record["supervisor"])
    driver = dict(record["driver"])
    if driver["pid"] is not None and not state.is_alive(driver["pid"], driver["started"]):
        driver["pid"] = None
    driver.pop("started", None)
    driver.pop("program", None)
    driver.pop("asks", None)
    how = record["state"]
    if supervisor is None or driver["pid"] is None:
        how = "degraded"
    rss = None
    if supervisor is not None:
        try:
            rss = psutil.Process(supervisor).memory_info().rss
        except psutil.Error:
            supervisor = None
    return {
        "name": instance.name,
        "static_dir": record["static_dir"],
        "state": how,
        "netns": {"path": f"/proc/{holder.pid}/ns/net", "inode": holder.netns},
        "userns_inode": holder.userns,
        "supervisor": {
            "pid": supervisor,
            "scope": record["supervisor"]["scope"],
            "rss_bytes": rss,
        },
        "holder": {"pid": holder.pid},
        "driver": driver,
        "linger": record["linger"],
        "leases": leases(instance),
        "ports": [],
        "containers": [containers.summary(record) for record in containers.records(instance)],
    }


def _holder_lives(instance: Instance, holder: state.Holder) -> bool:
    return state.is_alive(holder.pid, holder.started)


def _living(record: dict[str, Any]) -> int | None:
    alive = state.is_alive(record["pid"], record["started"])
    return int(record["pid"]) if alive else None


def _down(instance: Instance) -> dict[str, Any]:
    return {
        "name": instance.name,
        "static_dir": instance.static_dir,
        "state": "down",
        "netns": None,
        "userns_inode": None,
        "supervisor": None,
        "holder": None,
        "driver": None,
        "linger": None,
        "leases": [],
        "ports": [],
        "containers": [],
    }


def leases(instance: Instance) -> list[dict[str, Any]]:
    """The users: the named leases, and for each other one the process that took it, or the eldest
    that it was left to."""
    import psutil

    pids = set(lease.holders(instance))
    found = []
    for pid in sorted(pids):
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                if process.ppid() in pids or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                found.append(
                    {
                        "id": str(pid),
                        "kind": "process",
                        "pid": pid,
                        "command": command_line(process),
                        "since": timestamp(process.create_time()),
                    }
                )
        except psutil.Error:
            continue
    foreground = {}
    for name, record in named.records(instance).items():
        if record["pid"] is not None:
            foreground[record["pid"]] = name
            continue
        found.append(
            {"id": name, "kind": "named", "pid": None, "command": "", "since": record["since"]}
        )
    for item in found:
        if item["pid"] in foreground:
            item.update(id=foreground[item["pid"]], kind="named")
    return found + containers.leases(instance)


def processes(instance: Instance) -> list[dict[str, Any]]:
    """Every process inside that is none of ours, with whether it holds a lease."""
    from rootlessnet.instance import look

    holder = state.read_holder(instance)
    if holder is None:
        return []
    pids = set(lease.holders(instance))
    return _describe(instance, look.inside(holder), pids)


def users(instance: Instance) -> list[dict[str, Any]]:
    """Every process that keeps the instance: those inside, and those with a lease elsewhere."""
    from rootlessnet.instance import look

    holder = state.read_holder(instance)
    pids = set(lease.holders(instance))
    inside = set(look.inside(holder)) if holder else set()
    return _describe(instance, sorted(pids | inside), pids)


def _describe(instance: Instance, chosen: list[int], with_lease: set[int]) -> list[dict[str, Any]]:
    import psutil

    record = state.read(instance)
    supervisor = record["supervisor"]["pid"] if record else None
    found = []
    for pid in chosen:
        if pid == os.getpid():
            continue
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if pid not in with_lease and _only_looks(process, supervisor, chosen):
                    continue
                found.append(
                    {
                        "pid": pid,
                        "ppid": process.ppid(),
                        "user": process.username(),
                        "command": command_line(process),
                        "since": timestamp(process.create_time()),
                        "lease": pid in with_lease,
                    }
                )
        except psutil.Error:
            continue
    return found


_OWN_NAME = "rootlessnet"


def _only_looks(process: Any, supervisor: int | None, inside: list[int]) -> bool:
    """Whether it is a copy of the supervisor, or of a command outside, that has a look around and
    is gone in a moment."""
    if process.name() != _OWN_NAME:
        return False
    parent = process.parent()
    if parent is None or parent.pid in inside:
        return False
    return bool(parent.pid == supervisor or parent.name() == _OWN_NAME)


def command_line(process: Any) -> str:
    """As ps shows it: the words quoted for a shell, or the bare name in brackets."""
    import shlex

    words = process.cmdline()
    return shlex.join(words) if words else f"[{process.name()}]"


def all_instances() -> list[Instance]:
    """Every instance of this user that has a state directory."""
    base = paths.base_directory()
    found = []
    for name in sorted(os.listdir(base)):
        if not name.startswith(paths.NAME_PREFIX) or name.endswith(".lock"):
            continue
        instance = paths.Instance(base, "", name)
        record = state.read(instance)
        if record is not None:
            instance.static_dir = record["static_dir"]
        found.append(instance)
    return found
