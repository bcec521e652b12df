"""Set containers up, take them down, connect, disconnect, reload. All of it is called inside.

One at a time changes anything, and what one that was killed has left is finished by the next one
(rootlessnet.networks.container_session).

Order of a setup: record, namespace, ports of the host taken, addresses, interfaces, ports lead
there, record complete. A teardown goes the other way, through all steps whatever becomes of them.
"""

from __future__ import annotations

import os
from functools import partial

from rootlessnet.errors import Error, Failures
from rootlessnet.instance import containers
from rootlessnet.kernel import links, process
from rootlessnet.kernel.trace import trace
from rootlessnet.networks import (
    container_attach,
    container_detach,
    container_netns,
    container_runtime,
    container_session,
    published,
)
from rootlessnet.networks.container_session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.instance.paths import Instance
    from rootlessnet.networks.attachment import Attachment
    from rootlessnet.networks.container_netns import Wanted


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
            container_session.mark(instance, id)
            container_detach.tolerate(lambda: container_detach.take_down(instance, before))
        container_attach.check_bridges(instance, attachments)
        fd = container_netns.open_wanted(wanted)
        try:
            container_attach.name_interfaces(attachments, links.all_of(fd), set())
            items = {
                each.network.name: container_runtime.item_of(each, containers.SETUP)
                for each in attachments
            }
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
            container_session.mark(instance, id)
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
                container_attach.attach(instance, record, list(record["networks"]), attachments)
                published.check_reached(record)
                published.follow(record)
                record["phase"] = containers.READY
                containers.write(instance, record)
            except BaseException:
                container_detach.tolerate(lambda: container_detach.take_down(instance, record))
                container_session.unmark(instance)
                raise
        finally:
            os.close(fd)
        trace("container:complete")
        container_session.unmark(instance)
        return record


def teardown(instance: Instance, id: str) -> None:
    """Take a container down; one that is not there is no error. Raises Failures after all steps."""
    with Session(instance):
        record = containers.read(instance, id)
        if record is None:
            return
        # Without it on a full disk: that is no reason to keep what could be taken down.
        container_detach.tolerate(lambda: container_session.mark(instance, id))
        try:
            container_detach.take_down(instance, record)
        finally:
            container_session.unmark(instance)


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
        container_attach.check_bridges(instance, [attachment])
        fd = container_netns.open_again(record)
        if fd is None:
            raise Error(f"the network namespace of container {id} is gone")
        try:
            used = {item["interface"] for item in record["networks"].values()}
            container_attach.name_interfaces([attachment], links.all_of(fd), used)
        finally:
            os.close(fd)
        container_session.mark(instance, id)
        record["networks"][name] = container_runtime.item_of(attachment, containers.SETUP)
        try:
            containers.write(instance, record)
            trace("connect:recorded")
            container_attach.attach(instance, record, [name], [attachment])
            published.follow(record)
            containers.write(instance, record)
        except BaseException:
            container_detach.tolerate(lambda: container_detach.detach(instance, record, name))
            container_session.unmark(instance)
            raise
        trace("connect:complete")
        container_session.unmark(instance)
        return record


def disconnect(instance: Instance, id: str, name: str) -> None:
    """Detach a container from a network. Raises Error, or Failures after all steps."""
    with Session(instance):
        record = _existing(instance, id)
        if name not in record["networks"]:
            raise Error(f"container {id} is not connected to network {name}")
        container_session.mark(instance, id)
        try:
            container_detach.detach(instance, record, name)
        finally:
            container_session.unmark(instance)


# -- reload, check, and what is gone ---------------------------------------------------------------


def reload(instance: Instance, id: str) -> None:
    """Restore what belongs to a container outside its namespace; IP and MAC stay. Raises Error."""
    with Session(instance):
        record = _existing(instance, id)
        container_session.mark(instance, id)
        record["phase"] = containers.RELOAD
        try:
            containers.write(instance, record)
            trace("reload:recorded")
            container_attach.restore(instance, record)
        finally:
            container_session.unmark(instance)


def check(instance: Instance, id: str) -> list[str]:
    """What is not as it was set up about the networks of a container, in words. Raises Error."""
    from rootlessnet.networks import container_check

    with Session(instance):
        return container_check.check(instance, _existing(instance, id))


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
                container_detach.tolerate(partial(container_session.mark, instance, record["id"]))
                ended.append(record["id"])
                container_detach.take_down(instance, record)
            except (Error, OSError) as error:
                failed.append(error)
        container_session.unmark(instance)
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
