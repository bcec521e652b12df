"""Set containers up, take them down, connect, disconnect, reload. All of it is called inside.

One at a time changes anything: `containers.lock` is held for it. Before its first change it writes
the container's id into `containers.pending`, and removes that after its last one; so whoever gets
the lock and finds the file knows that somebody was killed, and finishes (`Session`):

    setup, connect              killed on the way: undone
    teardown, disconnect        finished
    reload                      done again

Order of a setup: record, namespace, ports of the host taken, addresses, interfaces, ports lead
there, record complete. A teardown goes the other way, through all steps whatever becomes of them.
"""

from __future__ import annotations

import os
from functools import partial

from rootlessnet.errors import Error, Failures, debug, reason, warn
from rootlessnet.instance import cni_results, containers, dns, lock
from rootlessnet.kernel import files, links, netns, process
from rootlessnet.kernel.trace import trace
from rootlessnet.networks import aardvark, addresses, cni, container_netns, netavark, published
from rootlessnet.networks.attachment import Attachment, Container, hashed
from rootlessnet.networks.network import from_document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from rootlessnet.instance.paths import Instance
    from rootlessnet.networks.container_netns import Wanted

_PATIENCE = 180.0
"""Seconds for the others before us: a hundred at once are a lot, but each of them ends in time."""


class Session:
    """The right to change containers, as a context; what a killed one has left is finished."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self._fd = -1

    def __enter__(self) -> Session:
        path = self.instance.path(containers.LOCK)
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            os.makedirs(self.instance.path(containers.DIRECTORY), mode=0o700, exist_ok=True)
        except OSError as error:
            raise Error("lock the containers") from error
        try:
            lock.acquire(self._fd, lock.EXCLUSIVE, _PATIENCE)
            _finish_pending(self.instance)
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _finish_pending(instance: Instance) -> None:
    path = instance.path(containers.PENDING)
    try:
        id = files.read(path, 4096).decode()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        warn(f"finish what a killed command has left: {reason(error)}")
        id = ""
    record = containers.read(instance, id) if id else None
    if record is not None:
        debug(f"container {id} was left in the middle of {record['phase']}")
        try:
            _finish(instance, record)
        except (Error, OSError) as error:
            warn(f"finish what was left of container {id}: {reason(error)}")
    _unmark(instance)


def _finish(instance: Instance, record: dict[str, Any]) -> None:
    if record["phase"] in (containers.SETUP, containers.TEARDOWN):
        take_down(instance, record)
    elif record["phase"] == containers.RELOAD:
        _reload(instance, record)
    else:
        for name, item in list(record["networks"].items()):
            if item["phase"] != containers.READY:
                _detach(instance, record, name)


def _mark(instance: Instance, id: str) -> None:
    try:
        files.replace(instance.path(containers.PENDING), id.encode())
    except OSError as error:
        raise Error("record the container") from error


def _unmark(instance: Instance) -> None:
    try:
        os.unlink(instance.path(containers.PENDING))
    except FileNotFoundError:
        pass


def runtime(record: dict[str, Any]) -> Any:
    """The module that attaches the container: netavark_run or cni_run."""
    from importlib import import_module

    return import_module(f"rootlessnet.networks.{record['backend']}_run")


def item_of(attachment: Attachment, phase: str) -> dict[str, Any]:
    """What the record says about an attachment that is about to be made."""
    return {
        "network": attachment.network.document(),
        "interface": attachment.interface,
        "static_ips": attachment.static_ips,
        "static_mac": attachment.static_mac,
        "aliases": attachment.aliases,
        "addresses": attachment.addresses,
        "phase": phase,
        "status": {},
        "peer": 0,
    }


def _attachment(item: dict[str, Any]) -> Attachment:
    found = Attachment(
        from_document(item["network"]),
        item["interface"],
        static_ips=item["static_ips"],
        static_mac=item["static_mac"],
        aliases=item["aliases"],
    )
    found.addresses = list(item["addresses"])
    return found


def _container(record: dict[str, Any], path: str, names: list[str] | None = None) -> Container:
    """The container as a runtime wants it, with these of its networks or with all."""
    chosen = record["networks"] if names is None else names
    attachments = []
    for name in chosen:
        try:
            attachments.append(_attachment(record["networks"][name]))
        except ValueError as error:
            warn(f"container {record['id']}: network {name}: {error}")
    return _as_container(record, path, attachments)


def _as_container(record: dict[str, Any], path: str, attachments: list[Attachment]) -> Container:
    id = record["id"]
    if record["backend"] == cni.NAME and not id.replace("_", "").isalnum():
        # Not every id of ours is one for CNI plugins; and in the names of their results a dash
        # separates.
        id = hashed(id)
    return Container(id, path, attachments, name=record["id"], hostname=record["hostname"])


class _Namespace:
    """The container's namespace as a path that leads there for sure, as a context; "" when gone."""

    def __init__(self, record: dict[str, Any]) -> None:
        self._record = record

    def __enter__(self) -> str:
        self._fd = container_netns.open_again(self._record)
        if self._fd is None:
            return ""
        path: str = self._record["netns"]["path"]
        try:
            info = os.stat(path)
            if (info.st_dev, info.st_ino) == (os.fstat(self._fd).st_dev, os.fstat(self._fd).st_ino):
                return path
        except OSError:
            pass
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def __exit__(self, *_: object) -> None:
        if self._fd is not None:
            os.close(self._fd)


# -- set up ----------------------------------------------------------------------------------------


def setup(
    instance: Instance,
    id: str,
    wanted: Wanted,
    attachments: list[Attachment],
    *,
    backend: str,
    hostname: str,
    publications: list[Any],
) -> dict[str, Any]:
    """Set a container up; its record. Raises Error, and nothing is left then."""
    from rootlessnet.instance.clock import now

    with Session(instance):
        before = containers.read(instance, id)
        if before is not None:
            if not before.get("damaged") and not is_gone(before):
                raise Error(
                    f"container {id} is set up already",
                    hint=f"rootlessnet container teardown {id}, or rootlessnet network connect",
                )
            _mark(instance, id)
            _tolerate(lambda: take_down(instance, before))
        _check_bridges(attachments)
        fd = container_netns.open_wanted(wanted)
        try:
            _name_interfaces(attachments, links.all_of(fd), set())
            items = {each.network.name: item_of(each, containers.SETUP) for each in attachments}
            record: dict[str, Any] = {
                "id": id,
                "since": now(),
                "hostname": hostname,
                "backend": backend,
                "phase": containers.SETUP,
                "publish": publications,
                "netns": container_netns.document(instance, id, wanted, fd),
                # As long as no network of it has been touched, none is torn down.
                "networks": {} if publications else items,
            }
            _mark(instance, id)
            try:
                containers.write(instance, record)
                trace("container:recorded")
                if wanted.kind != containers.PATH:
                    container_netns.bind(record["netns"]["path"], fd)
                    trace("container:pinned")
                if publications:
                    published.reserve(record)
                    trace("container:published")
                    record["networks"] = items
                    containers.write(instance, record)
                _attach(instance, record, list(record["networks"]), attachments)
                published.check_reached(record)
                published.follow(record)
                record["phase"] = containers.READY
                containers.write(instance, record)
            except BaseException:
                _tolerate(lambda: take_down(instance, record))
                _unmark(instance)
                raise
        finally:
            os.close(fd)
        trace("container:complete")
        _unmark(instance)
        return record


def _check_bridges(attachments: list[Attachment]) -> None:
    """Raise Error for a network whose bridge would be an interface of another kind: netavark would
    remove it with the last container, tap0 as well."""
    present = links.all_of()
    for each in attachments:
        found = present.get(each.network.interface)
        if each.network.driver == "bridge" and found and found.kind != "bridge":
            raise Error(
                f"network {each.network.name}: its interface {found.name} is no bridge here",
                hint="create the network with another --interface-name",
            )


def _tolerate(action: Callable[[], None]) -> None:
    """Undo, when there is a first error to be told already."""
    try:
        action()
    except (Error, OSError) as error:
        debug(reason(error))


def _name_interfaces(
    attachments: list[Attachment], present: dict[str, links.Interface], used: set[str]
) -> None:
    """Give those a name that have none, and raise Error for one that is taken."""
    taken = set(present) | used
    for attachment in attachments:
        if attachment.interface:
            if attachment.interface in taken:
                raise Error(f"interface {attachment.interface} is in the network namespace already")
            taken.add(attachment.interface)
    for attachment in attachments:
        if not attachment.interface:
            number = 0
            while f"eth{number}" in taken:
                number += 1
            attachment.interface = f"eth{number}"
            taken.add(attachment.interface)


def _attach(
    instance: Instance, record: dict[str, Any], names: list[str], attachments: list[Attachment]
) -> None:
    """Addresses and interfaces on some of its networks; the record gets what came of it."""
    if record["backend"] == netavark.NAME:
        addresses.allocate(instance, record["id"], attachments)
        for name, attachment in zip(names, attachments, strict=True):
            record["networks"][name]["addresses"] = attachment.addresses
        trace("container:addressed")
        containers.write(instance, record)
    with _Namespace(record) as path:
        if not path:
            raise Error(f"the network namespace of container {record['id']} is gone")
        container = _as_container(record, path, attachments)
        try:
            statuses = runtime(record).setup(container, _work(instance))
        except BaseException:
            for name in names:
                record["networks"][name]["undone"] = True  # by the runtime itself
            raise
        trace("container:attached")
        _take_note(record, names, statuses, path)
    _keep_addresses(record, names)
    _settle_names(instance, record, names)


def _keep_addresses(record: dict[str, Any], names: list[str]) -> None:
    """Let the bridges keep their MAC addresses when other containers go."""
    present: dict[str, links.Interface] = {}
    for name in names:
        network = record["networks"][name]["network"]
        if network.get("driver") == "bridge":
            present = present or links.all_of()
            bridge = present.get(str(network.get("network_interface", "")))
            if bridge:
                links.keep_address(bridge)


def _work(instance: Instance) -> str:
    path = dns.work_directory(instance)
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path


def _take_note(
    record: dict[str, Any], names: list[str], statuses: dict[str, Any] | None, path: str
) -> None:
    """Enter what a runtime has answered, and where the interfaces lead to."""
    fd = netns.open_path(path)
    try:
        present = links.all_of(fd)
    finally:
        os.close(fd)
    for name in names:
        item = record["networks"][name]
        if statuses and name in statuses:
            item["status"] = statuses[name]
        found = present.get(item["interface"])
        # What a macvlan is on stays when it goes.
        is_pair = item["network"].get("driver") == "bridge"
        item["peer"] = found.peer if found and is_pair else 0
        item["phase"] = containers.READY


def _settle_names(instance: Instance, record: dict[str, Any], names: list[str]) -> None:
    """See that names are served, where netavark was asked for it."""
    if record["backend"] != netavark.NAME:
        return
    if any(record["networks"][name]["network"].get("dns_enabled") for name in names):
        aardvark.check(dns.work_directory(instance))


# -- take down -------------------------------------------------------------------------------------


def teardown(instance: Instance, id: str) -> None:
    """Take a container down; one that is not there is no error. Raises Failures after all steps."""
    with Session(instance):
        record = containers.read(instance, id)
        if record is None:
            return
        # Without it on a full disk: that is no reason to keep what could be taken down.
        _tolerate(lambda: _mark(instance, id))
        try:
            take_down(instance, record)
        finally:
            _unmark(instance)


def take_down(instance: Instance, record: dict[str, Any]) -> None:
    """All steps, each whatever becomes of the others; the container is marked as pending."""
    id = record["id"]
    failed: list[BaseException] = []

    def step(action: Callable[[], object]) -> None:
        try:
            action()
        except (Error, OSError) as error:
            failed.append(error)

    if not record.get("damaged"):
        record["phase"] = containers.TEARDOWN
        step(lambda: containers.write(instance, record))
    trace("container:ending")
    step(lambda: published.withdraw(record))
    if record["networks"]:
        step(lambda: _run_teardown(instance, record, list(record["networks"])))
    elif record.get("damaged"):
        step(lambda: _teardown_results(instance, id))
    trace("container:detached")
    step(lambda: addresses.free(instance, id))
    trace("container:freed")
    if record["netns"]["kind"] != containers.PATH or record.get("damaged"):
        step(lambda: container_netns.release(containers.pin(instance, id)))
    trace("container:released")
    step(lambda: containers.remove(instance, id))
    if failed:
        raise Failures(f"tear down container {id}", failed)


def _teardown_results(instance: Instance, id: str) -> None:
    """Detach a container from CNI networks that only the plugins' results tell of."""
    if not cni_results.names(instance):
        return
    from rootlessnet.networks import cni_run

    path = containers.pin(instance, id)
    record = {"id": id, "backend": cni.NAME, "hostname": ""}
    known = _as_container(record, path if os.path.lexists(path) else "", [])
    cni_run.teardown(known, _work(instance))


def _run_teardown(instance: Instance, record: dict[str, Any], names: list[str]) -> None:
    names = [name for name in names if not record["networks"][name].get("undone")]
    if not names:
        return
    with _Namespace(record) as path:
        runtime(record).teardown(_container(record, path, names), _work(instance))


# -- connect, disconnect ---------------------------------------------------------------------------


def _existing(instance: Instance, id: str) -> dict[str, Any]:
    record = containers.read(instance, id)
    if record is None:
        raise Error(f"no container with ID {id} found: no such container")
    if record.get("damaged"):
        raise Error(
            f"read {containers.path(instance, id)}: damaged",
            hint=f"rootlessnet container teardown {id}",
        )
    return record


def connect(instance: Instance, id: str, attachment: Attachment, backend: str) -> dict[str, Any]:
    """Attach a container to one more network; its record. Raises Error, nothing is changed then."""
    name = attachment.network.name
    with Session(instance):
        record = _existing(instance, id)
        if name in record["networks"]:
            raise Error(
                f"container {id} is already connected to network {name}: "
                "network is already connected"
            )
        if record["backend"] != backend:
            raise Error(
                f"container {id} was set up with {record['backend']}, and now {backend} counts",
                hint="set it up anew",
            )
        _check_bridges([attachment])
        fd = container_netns.open_again(record)
        if fd is None:
            raise Error(f"the network namespace of container {id} is gone")
        try:
            used = {item["interface"] for item in record["networks"].values()}
            _name_interfaces([attachment], links.all_of(fd), used)
        finally:
            os.close(fd)
        _mark(instance, id)
        record["networks"][name] = item_of(attachment, containers.SETUP)
        try:
            containers.write(instance, record)
            trace("connect:recorded")
            _attach(instance, record, [name], [attachment])
            published.follow(record)
            containers.write(instance, record)
        except BaseException:
            _tolerate(lambda: _detach(instance, record, name))
            _unmark(instance)
            raise
        trace("connect:complete")
        _unmark(instance)
        return record


def disconnect(instance: Instance, id: str, name: str) -> None:
    """Detach a container from a network. Raises Error, or Failures after all steps."""
    with Session(instance):
        record = _existing(instance, id)
        if name not in record["networks"]:
            raise Error(f"container {id} is not connected to network {name}")
        _mark(instance, id)
        try:
            _detach(instance, record, name)
        finally:
            _unmark(instance)


def _detach(instance: Instance, record: dict[str, Any], name: str) -> None:
    failed: list[BaseException] = []
    record["networks"][name]["phase"] = containers.TEARDOWN

    def step(action: Callable[[], object]) -> None:
        try:
            action()
        except (Error, OSError) as error:
            failed.append(error)

    step(lambda: containers.write(instance, record))
    trace("disconnect:recorded")
    step(lambda: _run_teardown(instance, record, [name]))
    step(lambda: addresses.free(instance, record["id"], name))
    del record["networks"][name]
    step(lambda: published.follow(record))
    step(lambda: containers.write(instance, record))
    if failed:
        raise Failures(f"disconnect container {record['id']} from network {name}", failed)


# -- reload, and what is gone ----------------------------------------------------------------------


def reload(instance: Instance, id: str) -> None:
    """Restore what belongs to a container outside its namespace; IP and MAC stay. Raises Error."""
    with Session(instance):
        record = _existing(instance, id)
        _mark(instance, id)
        record["phase"] = containers.RELOAD
        try:
            containers.write(instance, record)
            trace("reload:recorded")
            _reload(instance, record)
        finally:
            _unmark(instance)


def _reload(instance: Instance, record: dict[str, Any]) -> None:
    try:
        with _Namespace(record) as path:
            if not path:
                raise Error(f"the network namespace of container {record['id']} is gone")
            container = _container(record, path)
            for attachment in container.attachments:
                item = record["networks"][attachment.network.name]
                attachment.static_mac = attachment.static_mac or containers.mac(item)
                if record["backend"] != netavark.NAME:
                    # Nobody but the plugins has the addresses.
                    own = [text.partition("/")[0] for text in containers.addresses(item)]
                    attachment.static_ips = own or attachment.static_ips
            statuses = runtime(record).reload(container, _work(instance))
            _take_note(record, list(record["networks"]), statuses, path)
        _keep_addresses(record, list(record["networks"]))
        _settle_names(instance, record, list(record["networks"]))
        published.follow(record)
    finally:
        # Also when that failed: it is a container still, and the next reload may mend it.
        record["phase"] = containers.READY
        containers.write(instance, record)


def is_gone(record: dict[str, Any]) -> bool:
    """Whether the container's namespace has ended, or nobody is left in a process's one."""
    if record.get("damaged"):
        return False
    netns_of = record["netns"]
    if netns_of["kind"] == containers.PID:
        return not process.inside_netns(netns_of["inode"])
    fd = container_netns.open_again(record)
    if fd is not None:
        os.close(fd)
        return False
    # The other ends of its interfaces are gone with it, and only with it.
    present = {each.index for each in links.all_of().values()}
    return not any(item["peer"] in present for item in record["networks"].values())


def teardown_gone(instance: Instance) -> list[str]:
    """Take down every container whose namespace is gone; their ids. Raises Failures."""
    ended: list[str] = []
    failed: list[BaseException] = []
    with Session(instance):
        for record in containers.records(instance):
            try:
                if not is_gone(record):
                    _watch_another(instance, record)
                    continue
                _tolerate(partial(_mark, instance, record["id"]))
                ended.append(record["id"])
                take_down(instance, record)
            except (Error, OSError) as error:
                failed.append(error)
        _unmark(instance)
    if failed:
        raise Failures("tear down what is gone", failed)
    return ended


def _watch_another(instance: Instance, record: dict[str, Any]) -> None:
    """The process of the record has ended, and others are left in its namespace: one of these is to
    be watched from now on."""
    netns_of = record["netns"]
    if netns_of["kind"] != containers.PID or containers.living_pid(record) is not None:
        return
    for pid in process.inside_netns(netns_of["inode"]):
        try:
            started = process.start_time(pid)
        except OSError:
            continue
        netns_of["pid"], netns_of["started"] = pid, started
        containers.write(instance, record)
        return
