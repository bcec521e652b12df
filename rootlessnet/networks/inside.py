"""Do something inside the instance on behalf of a program that stays where it is.

A child joins user, mount and network namespace, does the work and sends back what came of it. It
shares the caller's lease, so the instance is there until it is done. Signals that end a program
wait meanwhile: what the child has begun it finishes or undoes.

Ports of the host are not published from inside. So the child asks its parent, which has stayed
where it was, to do that (`outside`), and is answered when it is done.
"""

from __future__ import annotations

import errno
import os

from rootlessnet.errors import Error, hint, reason
from rootlessnet.instance import lock, start
from rootlessnet.kernel import namespaces, signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from rootlessnet.instance.paths import Instance
    from rootlessnet.instance.request import Requested

_CAP_NET_ADMIN = 12


def run(
    instance: Instance,
    action: Callable[[], Any],
    *,
    undo: Callable[[], None] | None = None,
    requested: Requested | None = None,
) -> Any:
    """What the action returns, as it is after a way through JSON; its Error is raised here.

    The instance is made if need be; without `requested` it has to be there already. With undo
    nothing is left of the work when its caller has gone before the result could be told.
    """
    if requested is None:
        taken = _lease(instance)
    else:
        taken = start.use(instance, requested)
    try:
        return _run(instance, action, undo)
    finally:
        os.close(taken)


def _lease(instance: Instance) -> int:
    """A lease of an instance that runs, or has been left running by a dead supervisor."""
    from rootlessnet.instance import lease
    from rootlessnet.instance.request import DEFAULT_TIMEOUT

    start.heal(instance)
    fd = lock.open_file(instance)
    try:
        lock.acquire(fd, lock.SHARED, DEFAULT_TIMEOUT)
        taken = lease.take(instance)
    finally:
        os.close(fd)
    if taken is None:
        raise Error(f"use {instance.name}: the instance does not run")
    return taken


_parent: tuple[int, int] | None = None
"""In the child: where the parent is asked, and where it answers."""

_QUESTION = b"?"


def outside(request: dict[str, Any]) -> Any:
    """What `published.answer` returns for a request in the process outside. Raises its Error; also
    when that process has gone."""
    import json

    assert _parent is not None
    ask, hear = _parent
    try:
        _write_all(ask, _QUESTION + json.dumps(request).encode() + b"\n")
        text = bytearray()
        while not text.endswith(b"\n"):
            chunk = os.read(hear, 1 << 16)
            if not chunk:
                raise BrokenPipeError
            text += chunk
    except BrokenPipeError:
        raise Error("publish ports: the command that asked for it has gone") from None
    answer = json.loads(text)
    if "error" in answer:
        raise Error(answer["error"], hint=answer["hint"])
    return answer["result"]


def _answer(instance: Instance, request: bytes) -> bytes:
    import json

    from rootlessnet.networks import published

    answer: dict[str, Any]
    try:
        answer = {"result": published.answer(instance, json.loads(request))}
    except (Error, OSError) as error:
        answer = {"error": reason(error), "hint": hint(error)}
    return json.dumps(answer).encode() + b"\n"


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _run(instance: Instance, action: Callable[[], Any], undo: Callable[[], None] | None) -> Any:
    global _parent
    import json

    read, write = os.pipe()
    hear, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        # --- child ---
        try:
            os.close(read)
            os.close(tell)
            signals.hold_back()
            # What is made here is read outside, too, where it is not root that reads.
            os.umask(0o077)
            _parent = (write, hear)
            _serve(instance, action, undo, write)
        finally:
            os._exit(1)
    # --- parent ---
    os.close(write)
    os.close(hear)
    try:
        text = bytearray()
        while chunk := os.read(read, 1 << 16):
            text += chunk
            if text.startswith(_QUESTION) and text.endswith(b"\n"):
                answer_text = _answer(instance, bytes(text[1:]))
                text.clear()
                try:
                    _write_all(tell, answer_text)
                except BrokenPipeError:
                    continue  # it is dead, as the next read tells
    finally:
        # After an interrupt nobody reads or answers: then the child undoes what it has done.
        os.close(read)
        os.close(tell)
    os.waitpid(pid, 0)
    if not text:
        raise Error("work inside the instance: the process that did it has died")
    answer = json.loads(text)
    if "error" in answer:
        raise Error(answer["error"], hint=answer["hint"])
    if "bug" in answer:
        raise RuntimeError(answer["bug"])
    return answer["result"]


def _serve(
    instance: Instance, action: Callable[[], Any], undo: Callable[[], None] | None, write: int
) -> None:
    import json

    answer: dict[str, Any]
    try:
        _join(instance)
        answer = {"result": action()}
    except (Error, OSError) as error:
        undo = None
        answer = {"error": reason(error), "hint": hint(error)}
    except Exception:
        import traceback

        undo = None
        answer = {"bug": traceback.format_exc()}
    try:
        _write_all(write, json.dumps(answer).encode())
    except BrokenPipeError:
        if undo:
            undo()
    os._exit(0)


def _join(instance: Instance) -> None:
    import time

    uid, gid, userns = os.geteuid(), os.getegid(), namespaces.inode("self", "user")
    # A holder that was killed is replaced within milliseconds.
    deadline = time.monotonic() + start.JOIN_SECONDS
    while True:
        try:
            start.join(instance)
            break
        except ProcessLookupError:
            if time.monotonic() > deadline:
                raise Error("join the instance: its holder is gone") from None
            time.sleep(0.01)
    if namespaces.inode("self", "user") != userns:
        # Here the user is root, but podman's configuration is the user's still.
        os.environ["_CONTAINERS_ROOTLESS_UID"] = str(uid)
        os.environ["_CONTAINERS_ROOTLESS_GID"] = str(gid)
    if not namespaces.effective_capabilities() >> _CAP_NET_ADMIN & 1:
        raise Error(
            "change networks from here",
            hint="after enter --keep-id only an enter without it has the right to",
        ) from OSError(errno.EPERM, os.strerror(errno.EPERM))
