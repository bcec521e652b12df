"""A container loses its interfaces, addresses and ports: all steps, whatever becomes of the others.

Called with the right to change containers (rootlessnet.networks.container_session).
"""

from __future__ import annotations

import os

from rootlessnet.errors import Error, Failures, debug, reason
from rootlessnet.instance import cni_results, containers
from rootlessnet.kernel.trace import trace
from rootlessnet.networks import addresses, cni, container_netns, container_runtime, published

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from rootlessnet.instance.paths import Instance


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


def detach(instance: Instance, record: dict[str, Any], name: str) -> None:
    """Detach a container from one of its networks. Raises Failures after all steps."""
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


def tolerate(action: Callable[[], None]) -> None:
    """Undo, when there is a first error to be told already."""
    try:
        action()
    except (Error, OSError) as error:
        debug(reason(error))


def _teardown_results(instance: Instance, id: str) -> None:
    """Detach a container from CNI networks that only the plugins' results tell of."""
    if not cni_results.names(instance):
        return
    from rootlessnet.networks import cni_run

    path = containers.pin(instance, id)
    record = {"id": id, "backend": cni.NAME, "hostname": ""}
    known = container_runtime.as_container(record, path if os.path.lexists(path) else "", [])
    cni_run.teardown(known, container_runtime.work(instance))


def _run_teardown(instance: Instance, record: dict[str, Any], names: list[str]) -> None:
    names = [name for name in names if not record["networks"][name].get("undone")]
    if not names:
        return
    with container_runtime.Namespace(record) as path:
        container_runtime.module(record).teardown(
            container_runtime.of_record(record, path, names), container_runtime.work(instance)
        )
