"""The forwarder: has the ports of the host that lead inside, and the processes that copy.

    forwarder ----- workers       accept, connect inside, copy (rootlessnet.ports.loop)
        |    `----- helper        makes the sockets inside (rootlessnet.ports.pool)
        |
    socket <--- enter -p, up -p, port, container      (rootlessnet.ports.control)

It is started by the supervisor (rootlessnet.instance.portkeeper) and lives in the host's
namespaces. Rules are recorded before they are reported as made, so its successor has them all; what
has an owner goes when the owner does: a lease's fifo hangs up, the record of a named lease or of a
container is removed.
"""

from __future__ import annotations

import mmap
import os
import resource
import select
import sys
import time
from functools import partial

from rootlessnet.errors import Error, hint, reason
from rootlessnet.instance import containers, named, paths, portkeeper, state
from rootlessnet.instance.logfile import say
from rootlessnet.kernel import inotify, libc, signals
from rootlessnet.kernel.namespaces import Pins
from rootlessnet.kernel.trace import trace
from rootlessnet.ports import (
    clients,
    control,
    files,
    inside,
    listeners,
    loop,
    machine,
    pool,
    rules,
    slirp,
)
from rootlessnet.ports.gate import Gate
from rootlessnet.ports.group import Group
from rootlessnet.ports.target import PRESERVE, SNAT, Target, from_dict

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

    from rootlessnet.instance.paths import Instance

_MOST_WORKERS = 4
_IDLE_SECONDS = 2.0
_RETRY = 0.25
_SECONDS = 10.0
_OWN = "the instance itself"


def main(directory: str) -> None:
    """The program; its end is the process's."""
    status = 1
    try:
        base, name = os.path.split(directory)
        instance = paths.Instance(base, "", name)
        os.umask(0o077)
        libc.set_process_name("rootlessnet")
        libc.set_command_line(f"rootlessnet: ports of {name}")
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        Forwarder(instance).run()
        status = 0
    except (Error, OSError) as error:
        say(f"ports: {reason(error)}")
    except BaseException:
        import traceback

        say("bug: " + traceback.format_exc())
    finally:
        os._exit(status)


class _Worker:
    """A process that copies, as the forwarder sees it."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.channel = channel

    def send(self, order: dict[str, Any], fds: list[int]) -> None:
        """Raises OSError when it is gone or stuck."""
        import json
        import socket

        socket.send_fds(self.channel, [json.dumps(order).encode()], fds)

    def close(self) -> None:
        os.close(self.pidfd)
        self.channel.close()


class Forwarder:
    """Rules, sockets and processes."""

    def __init__(self, instance: Instance) -> None:
        """Raises Error or OSError when there is nothing that it could forward to."""
        self.instance = instance
        holder = state.read_holder(instance)
        if holder is None:
            raise Error("the instance has no holder")
        self._pins = Pins(holder.pid)
        if os.fstat(self._pins.net).st_ino != holder.netns:
            raise Error("the holder is gone")
        self._groups: dict[int, Group] = {}
        self._next_group = 1
        self._next_listener = 1
        self._fifos: dict[int, str] = {}
        self._pending: list[dict[str, Any]] = []
        self._clients: dict[int, _Client] = {}
        self._warned: set[str] = set()
        self._stop = False
        self._unneeded_since = time.monotonic()
        self._retry_at = 0.0
        self._own_retry_at = 0.0
        self._driver = 0
        self._problems: dict[str, str] | None = None
        self._counts = mmap.mmap(-1, 4096)
        self._read_instance()
        self._number = min(_MOST_WORKERS, len(os.sched_getaffinity(0)))
        # Only the pages in use cost memory.
        self._open = [mmap.mmap(-1, 4 * loop.MOST_LISTENERS) for _ in range(self._number)]
        self._links = [_pair() for _ in range(self._number)]
        self._workers: list[_Worker | None] = [None] * self._number
        self._helper = self._helper_pidfd = -1
        self._gate = Gate(self._diag, self._gate_changed)
        self._server = control.listen(files.path(instance, files.SOCKET))
        self._leases = inotify.Watcher()
        self._leases_watch = self._leases.add(
            instance.path(state.LEASES), inotify.IN_DELETE | inotify.IN_MOVED_FROM
        )
        self._containers_watch = -1
        self._directory_watch = self._leases.add(instance.directory, inotify.IN_MOVED_TO | _IN_OPEN)
        self._slirp = slirp.Api(instance) if self._handler == "slirp4netns" else None
        for record in files.read(instance):
            self._pending.append(record)
        self._retry_pending(first=True)

    # -- the instance ------------------------------------------------------------------------------

    def _read_instance(self) -> None:
        record = state.read(self.instance)
        if record is None:
            raise Error("the state of the instance cannot be read")
        options = record["driver"]["options"]
        self._source_ip = str(options.get("source_ip", PRESERVE))
        self._from_inside = bool(options.get("allow_ports_from_inside", False))
        self._handler = str(options.get("port_handler", "rootlesskit"))
        self._own = Target(str(record["driver"]["address"]), self._address6(), local=True)
        if record["driver"]["ipv6"] and not self._own.v6:
            # The router tells it in a moment.
            self._own_retry_at = time.monotonic() + _RETRY
        self._driver = record["driver"]["pid"] or 0

    def _address6(self) -> str:
        """The IPv6 address of the driver's interface."""
        import _socket

        holder = state.read_holder(self.instance)
        try:
            with open(
                f"/proc/{holder.pid if holder else 0}/net/if_inet6", encoding="ascii"
            ) as file:
                for line in file:
                    digits, _, _, scope, flags, name = line.split()
                    if name == "tap0" and scope == "00" and not int(flags, 16) & 0x40:
                        return _socket.inet_ntop(_socket.AF_INET6, bytes.fromhex(digits))
        except (OSError, ValueError):
            pass
        return ""

    def _instance_changed(self) -> None:
        """state.json is a new one: the driver may have been started again."""
        before, driver = (self._own.v4, self._own.v6), self._driver
        self._own_retry_at = 0.0
        try:
            self._read_instance()
        except Error:
            return
        if (self._own.v4, self._own.v6) != before:
            for group in self._groups.values():
                if group.own:
                    group.target.v4, group.target.v6 = self._own.v4, self._own.v6
                    self._send_target(group)
            self._gate.update(self._groups.values())
        if self._slirp and self._driver and self._driver != driver:
            self._reconcile()

    def _reconcile(self) -> None:
        """Another slirp4netns has none of the forwards."""
        assert self._slirp is not None
        try:
            self._slirp.reconcile(list(self._groups.values()), self._own.v4)
        except (Error, OSError) as error:
            say(f"publish again after the driver's restart: {reason(error)}")

    # -- processes ---------------------------------------------------------------------------------

    def _start_processes(self) -> None:
        """What copies, once there is something to copy."""
        if self._problems is None:
            self._problems = inside.prepare(self._pins.user, self._pins.net)
        missing = [number for number, worker in enumerate(self._workers) if worker is None]
        for number in missing:
            self._start_worker(number)
        if self._helper < 0:
            self._start_helper()
            self._gate.forget()
        elif missing:
            # The helper serves the channels that it was started with.
            self._end_helper()
            self._start_helper()
            self._gate.forget()
        for number in missing:
            for group in self._groups.values():
                self._send_group(group, number)

    def _start_worker(self, number: int) -> None:
        import socket

        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        size = self._number + 2 * self._number * self._number
        counts = memoryview(self._counts).cast("I")[:size]
        # Those that were on their way to a worker that has died do not arrive any more.
        for one in range(self._number, size):
            counts[one] = 0
        opened = memoryview(self._open[number]).cast("I")
        for group in self._groups.values():
            if group.first + group.rule.count <= loop.MOST_LISTENERS:
                opened[group.first : group.first + group.rule.count] = memoryview(
                    bytes(4 * group.rule.count)
                ).cast("I")
        pid = os.fork()
        if pid == 0:
            # --- worker ---
            try:
                import signal

                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                channel = theirs.detach()
                links = [(rx.fileno(), tx.fileno()) for rx, tx in self._links]
                keep = {channel, portkeeper.EXIT_FD, *(fd for link in links for fd in link)}
                _close_all_but(keep)
                loop.main(number, counts, opened, links, channel, portkeeper.EXIT_FD)
            finally:
                os._exit(1)
        # --- forwarder ---
        theirs.close()
        ours.settimeout(_SECONDS)
        self._workers[number] = _Worker(pid, ours)

    def _start_helper(self) -> None:
        import socket

        pairs = [
            socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            for _ in range(1 + self._number)
        ]
        again = self._helper_generation > 0
        self._helper_generation += 1
        pid = os.fork()
        if pid == 0:
            # --- helper ---
            try:
                import signal

                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                channels = [theirs.detach() for _, theirs in pairs]
                _close_all_but({self._pins.user, self._pins.net, *channels})
                pool.serve(self._pins.user, self._pins.net, channels)
            finally:
                os._exit(1)
        # --- forwarder ---
        for _, theirs in pairs:
            theirs.close()
        self._helper = pid
        self._helper_pidfd = os.pidfd_open(pid)
        self._helper_channel = pairs[0][0]
        self._helper_channel.settimeout(_SECONDS)
        for (ours, _), worker in zip(pairs[1:], self._workers, strict=True):
            if worker:
                fresh = not again or worker not in self._served
                self._tell(worker, {"do": "pool", "again": not fresh}, [ours.fileno()])
                self._served.add(worker)
            ours.close()

    _helper_generation = 0
    _served: set[_Worker] = set()  # noqa: RUF012

    def _end_helper(self) -> None:
        os.kill(self._helper, signals.SIGKILL)
        self._helper_ended()

    def _helper_ended(self) -> None:
        os.waitpid(self._helper, 0)
        os.close(self._helper_pidfd)
        self._helper_channel.close()
        self._helper = self._helper_pidfd = -1

    def _tell(self, worker: _Worker, order: dict[str, Any], fds: list[int]) -> None:
        try:
            worker.send(order, fds)
        except OSError as error:
            say(f"a port worker does not answer: {error.strerror or error}")
            try:
                os.kill(worker.pid, signals.SIGKILL)
            except ProcessLookupError:
                pass

    def _diag(self, path: str) -> int:
        """A sock_diag socket of a namespace. Raises OSError."""
        import errno

        if path:
            # What is mounted inside is seen by whoever comes by way of a process inside.
            holder = state.read_holder(self.instance)
            path = f"/proc/{holder.pid if holder else 0}/root{path}"
        self._helper_channel.send(f"{pool.DIAG} 1 {path}".rstrip().encode())
        _, fds = pool.receive(self._helper_channel, 1)
        if not fds:
            raise OSError(errno.ENOENT, "it cannot be opened", path)
        return fds[0]

    # -- rules -------------------------------------------------------------------------------------

    def _live_workers(self) -> list[tuple[int, _Worker]]:
        return [(n, worker) for n, worker in enumerate(self._workers) if worker]

    def _send_group(self, group: Group, number: int) -> None:
        """Tell one worker of a rule."""
        worker = self._workers[number]
        if worker is None or not group.bound:
            return
        udp = group.rule.proto == "udp"
        items = [
            (group.number_of(index), group.rule.port + index)
            for index in range(group.rule.count)
            if not udp or (group.number_of(index)) % self._number == number
        ]
        for start in range(0, len(items), loop.MOST_DESCRIPTORS):
            some = items[start : start + loop.MOST_DESCRIPTORS]
            order = {
                "do": "listen",
                "group": group.number,
                "proto": group.rule.proto,
                "version": group.bound.version,
                "target": group.target.as_dict(),
                "items": some,
            }
            fds = [group.sockets[listener - group.first].fileno() for listener, _ in some]
            self._tell(worker, order, fds)
        opened = [group.number_of(index) for index in range(group.rule.count) if group.open[index]]
        self._send_gate(worker, opened, [])

    def _send_gate(self, worker: _Worker, opened: list[int], shut: list[int]) -> None:
        for start in range(0, max(len(opened), len(shut)), 4000):
            part = slice(start, start + 4000)
            self._tell(worker, {"do": "gate", "open": opened[part], "shut": shut[part]}, [])

    def _gate_changed(self, opened: list[tuple[Group, int]], shut: list[tuple[Group, int]]) -> None:
        for group, _ in opened:
            group.clients.forget_seen()
        for _, worker in self._live_workers():
            self._send_gate(
                worker,
                [group.number_of(index) for group, index in opened],
                [group.number_of(index) for group, index in shut],
            )

    def _send_target(self, group: Group) -> None:
        for _, worker in self._live_workers():
            order = {"do": "target", "group": group.number, "target": group.target.as_dict()}
            self._tell(worker, order, [])

    def _make(self, record: dict[str, Any], *, host_port: int = 0) -> Group:
        """Take a rule's ports. Raises Error, and has taken none then."""
        own = record["target"] is None
        target = self._own.copy() if own else from_dict(record["target"])
        rule = record["rule"]
        source_ip = record.get("source_ip") or self._source_ip
        group = Group(self._next_group, record["owner"], rule, target, own=own, source_ip=source_ip)
        if self._slirp:
            self._slirp.add(group, self._own.v4)
        else:
            group.bound = listeners.Bound(rule)
            if not rule.host_port and rule.count == 1:
                rule.host_port = group.bound.port()
        target.group = group.number
        if source_ip == SNAT:
            target.keep4 = target.keep6 = False
        group.first = self._next_listener
        self._next_group += 1
        self._next_listener += rule.count
        return group

    def _unmake(self, group: Group) -> None:
        """Undo `_make`."""
        if self._slirp:
            try:
                self._slirp.remove(group)
            except (Error, OSError) as error:
                say(f"withdraw {group.rule}: {reason(error)}")
        group.close()

    def _put_in_force(self, groups: list[Group]) -> list[str]:
        """Start forwarding; what there is to warn of."""
        if self._slirp:
            for group in groups:
                self._groups[group.number] = group
            return []
        self._start_processes()
        warnings = []
        for group in groups:
            warnings += self._choose_source(group)
            self._groups[group.number] = group
            for number, _ in self._live_workers():
                self._send_group(group, number)
            if group.rule.proto == "tcp" and not group.is_gated:
                self._open_all(group)
        self._gate.update(self._groups.values())
        return list(dict.fromkeys(warnings))

    def _open_all(self, group: Group) -> None:
        opened = [(group, n) for n in range(group.rule.count) if group.set_open(n, True)]
        self._gate_changed(opened, [])

    def _choose_source(self, group: Group) -> list[str]:
        """Keep the client's address where that can work; a warning where it cannot."""
        if not group.clients.is_wanted:
            return []
        if not (group.target.keep4 or group.target.keep6):
            why = clients.NO_WAY_BACK
            return [self._warning(why)] if group.clients.lose(why) else []
        assert self._problems is not None
        needed = [inside.LOCAL] if group.target.local else []
        if not group.target.local or group.rule.proto == "udp":
            needed.append(inside.FILTER)
        problem = next((self._problems[what] for what in needed if what in self._problems), "")
        if problem:
            group.target.keep4 = group.target.keep6 = False
            return [self._warning(problem)] if group.clients.lose(problem) else []
        group.clients.awaits_ipv6 = group.own and self._own_retry_at > 0
        warnings = group.clients.foreseen_warnings()
        for text in warnings:
            say(f"warning: {text}")
        return warnings

    def _warning(self, why: str) -> str:
        text = (
            f"the client's address is not kept ({why}): clients appear with an address of the "
            f"instance {clients.WANTED}"
        )
        if text not in self._warned:
            self._warned.add(text)
            say(f"warning: {text}")
        return text

    def _record(self) -> None:
        """Write down what is in force, and what waits to be. Raises OSError."""
        records = [
            {
                "owner": group.owner,
                "rule": group.rule,
                "target": None if group.own else group.asked,
                "source_ip": group.source_ip,
            }
            for group in self._groups.values()
        ]
        files.write(self.instance, records + self._pending)

    def _taken(self) -> list[tuple[str, rules.Rule]]:
        found = [(group.owner, group.rule) for group in self._groups.values()]
        return found + [(record["owner"], record["rule"]) for record in self._pending]

    def _retry_pending(self, *, first: bool = False) -> None:
        """Rules of an earlier forwarder, whose ports somebody else may have at the moment."""
        self._retry_at = 0.0
        left, made = [], []
        for record in self._pending:
            if not self._owner_lives(record["owner"]):
                continue
            try:
                made.append(self._make(record))
            except (Error, OSError, ValueError) as error:
                if not record.get("told"):
                    say(f"not published again yet: {reason(error)}")
                left.append({**record, "told": not first})
        changed = len(left) != len(self._pending) or made
        self._pending = left
        if made:
            self._put_in_force(made)
            for group in made:
                self._watch_owner(group.owner)
            say(f"published again: {', '.join(str(group.rule) for group in made[:20])}")
        if self._slirp and first:
            self._reconcile()
        if left:
            self._retry_at = time.monotonic() + (0.02 if first else _RETRY)
        if changed:
            self._record_or_say()

    def _record_or_say(self) -> None:
        try:
            self._record()
        except OSError as error:
            say(f"record the ports: {reason(error)}")

    # -- owners ------------------------------------------------------------------------------------

    def _owner_lives(self, owner: str) -> bool:
        kind, _, name = owner.partition(":")
        if kind == files.LEASE:
            return files.is_held(self.instance, owner)
        if kind == files.NAMED:
            return name in named.records(self.instance)
        if kind == files.CONTAINER:
            return os.path.lexists(containers.path(self.instance, name))
        return True

    def _watch_owner(self, owner: str) -> None:
        """Raises OSError."""
        if owner.startswith(files.LEASE + ":") and owner not in self._fifos.values():
            fd = os.open(
                files.fifo(self.instance, owner),
                os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC,
            )
            self._fifos[fd] = owner
        if owner.startswith(files.CONTAINER + ":") and self._containers_watch < 0:
            self._containers_watch = self._leases.add(
                self.instance.path(containers.DIRECTORY), inotify.IN_DELETE
            )

    def _drop_dead(self) -> None:
        """Withdraw what belongs to nobody any more."""
        for owner in {owner for owner, _ in self._taken()}:
            if not self._owner_lives(owner):
                self._remove(owner, None)

    def _remove(self, owner: str, which: list[rules.Rule] | None) -> int:
        """Withdraw rules of an owner; how many."""
        gone = [
            group
            for group in self._groups.values()
            if group.owner == owner and (which is None or group.rule in which)
        ]
        kept = [
            record
            for record in self._pending
            if record["owner"] != owner or (which is not None and record["rule"] not in which)
        ]
        count = len(gone) + len(self._pending) - len(kept)
        self._pending = kept
        for group in gone:
            del self._groups[group.number]
            for _, worker in self._live_workers():
                self._tell(worker, {"do": "close", "group": group.number}, [])
            # A worker has the socket too, for a moment; it is not to accept anybody.
            for index in range(group.rule.count):
                try:
                    group.set_open(index, False)
                except OSError:
                    pass
            self._withdraw_from_machine([group])
            self._unmake(group)
        if owner.startswith(files.LEASE + ":") and which is None:
            for fd, name in list(self._fifos.items()):
                if name == owner:
                    del self._fifos[fd]
                    os.close(fd)
            try:
                os.unlink(files.fifo(self.instance, owner))
            except OSError:
                pass
        if count:
            self._gate.update(self._groups.values())
            self._record_or_say()
        return count

    # -- requests ----------------------------------------------------------------------------------

    def answer(self, request: Any, peer: control.Peer) -> dict[str, Any]:
        """Do what a client asks. What is wrong with it is in the answer."""
        try:
            if not isinstance(request, dict):
                raise ValueError("not a request")
            what = request.get("do")
            if what == "list":
                return {"rules": self._list()}
            if what == "connections":
                return {"connections": self._connections(), "sources": self._sources()}
            if what not in ("add", "remove", "retarget"):
                raise ValueError(f"unknown request {what!r}")
            owner = request["owner"]
            if not isinstance(owner, str):
                raise ValueError("not an owner")
            files.check_owner(owner)
            # Who is inside can change where a container is anyway, and end it: the ports that it
            # has may follow.
            is_following = what != "add" and owner.startswith(files.CONTAINER + ":")
            if not (self._from_inside or is_following or peer.is_outside()):
                raise Error(
                    "change published ports: from inside the instance this is not allowed",
                    hint="do it outside, or start the instance with "
                    "-o allow_ports_from_inside=true",
                )
            if what == "add":
                return self._add(owner, request)
            if what == "remove":
                which = request.get("rules")
                chosen = None if which is None else [rules.from_list(one) for one in which]
                return {"removed": self._remove(owner, chosen)}
            return self._retarget(owner, request)
        except Error as error:
            return {"error": reason(error), "hint": hint(error)}
        except OSError as error:
            return {"error": f"change published ports: {reason(error)}", "hint": ""}
        except (ValueError, KeyError, TypeError) as error:
            return {"error": f"ask the port forwarder: {error}", "hint": ""}

    def _list(self) -> list[dict[str, Any]]:
        found = [
            {"owner": group.owner, "rule": group.rule.as_list(), "target": group.target.name}
            for group in self._groups.values()
        ]
        for record in self._pending:
            target = record["target"]
            name = target.get("name", "") if target else self._own.name
            found.append(
                {"owner": record["owner"], "rule": record["rule"].as_list(), "target": name}
            )
        return found

    def _connections(self) -> list[Any]:
        """[rule, open connections of each of its ports] where they are known: by TCP."""
        found = []
        tables = [memoryview(one).cast("I") for one in self._open]
        for group in self._groups.values():
            last = group.first + group.rule.count
            if group.bound and group.rule.proto == "tcp" and last <= loop.MOST_LISTENERS:
                columns = [table[group.first : last].tolist() for table in tables]
                found.append([group.rule.as_list(), list(map(sum, zip(*columns, strict=True)))])
        return found

    def _sources(self) -> list[Any]:
        """[rule, whose address is not kept though it should be, and why] of each."""
        return [
            [group.rule.as_list(), slirp.LOST if self._slirp else group.clients.exceptions()]
            for group in self._groups.values()
        ]

    def _add(self, owner: str, request: dict[str, Any]) -> dict[str, Any]:
        asked = _spread([rules.from_list(one) for one in request["rules"]])
        target = request.get("target")
        if target is not None:
            from_dict(target)
        source_ip = request.get("source_ip") or ""
        if source_ip not in ("", PRESERVE, SNAT):
            raise ValueError(f"unknown source_ip {source_ip!r}")
        self._drop_dead()
        rules.refuse_privileged(asked, "publish")
        for number, rule in enumerate(asked):
            found = rules.conflict(
                [rule], [*self._taken(), *((owner, other) for other in asked[:number])]
            )
            if found:
                raise Error(
                    f"publish {rule}: it is published already: {found[1]}",
                    hint="see them all: rootlessnet port ls",
                )
        made: list[Group] = []
        before = self._pending
        try:
            for rule in asked:
                record = {"owner": owner, "rule": rule, "target": target, "source_ip": source_ip}
                made.append(self._make(record))
            trace("ports:bound")
            self._watch_owner(owner)
            if not self._owner_lives(owner):
                raise Error(f"publish for {owner}: it has ended")
            self._pending = before + [
                {"owner": owner, "rule": one.rule, "target": target, "source_ip": source_ip}
                for one in made
            ]
            self._record()
            trace("ports:recorded")
        except BaseException:
            for group in made:
                self._unmake(group)
            raise
        finally:
            self._pending = before
        warnings = self._put_in_force(made)
        trace("ports:forwarding")
        warnings += self._announce_to_machine(made)
        return {"rules": [group.rule.as_list() for group in made], "warnings": warnings}

    def _retarget(self, owner: str, request: dict[str, Any]) -> dict[str, Any]:
        target = from_dict(request["target"])
        found = [group for group in self._groups.values() if group.owner == owner]
        if self._slirp and found:
            raise Error("port_handler=slirp4netns cannot lead a port elsewhere")
        warnings: list[str] = []
        for group in found:
            group.own = False
            group.asked = target.as_dict()
            group.target.update(target)
            group.clients.begin()
            if group.source_ip == SNAT:
                group.target.keep4 = group.target.keep6 = False
            warnings += self._choose_source(group)
            self._send_target(group)
            if group.rule.proto == "tcp" and not group.is_gated:
                self._open_all(group)
        for record in self._pending:
            if record["owner"] == owner:
                record["target"] = target.as_dict()
        self._gate.update(self._groups.values())
        self._record()
        return {"retargeted": len(found), "warnings": list(dict.fromkeys(warnings))}

    # -- podman machine ----------------------------------------------------------------------------

    def _announce_to_machine(self, groups: list[Group]) -> list[str]:
        """Tell the host of this virtual machine, if it is podman's."""
        if not machine.is_gvproxy():
            return []
        try:
            machine.expose([group.rule for group in groups])
        except (Error, OSError) as error:
            text = f"not announced to the host of this virtual machine: {reason(error)}"
            say(f"warning: {text}")
            return [text]
        for group in groups:
            group.exposed = True
        return []

    def _withdraw_from_machine(self, groups: list[Group]) -> None:
        chosen = [group.rule for group in groups if group.exposed]
        if chosen:
            try:
                machine.unexpose(chosen)
            except (Error, OSError) as error:
                say(f"withdraw ports from the host of this virtual machine: {reason(error)}")

    # -- the loop ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Until it is told to end, or is not needed any more."""
        import signal

        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        os.set_blocking(wake_read, False)

        def stop(number: int, frame: object) -> None:
            self._stop = True

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, stop)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        while not self._stop:
            self._wait(wake_read)
            if self._is_unneeded() and not self._accept():
                break
        self._end()

    def _wait(self, wake: int) -> None:
        poll = select.poll()
        handlers: dict[int, Callable[[], None]] = {}

        def watch(fd: int, action: Callable[[], None], events: int = select.POLLIN) -> None:
            if fd >= 0:
                poll.register(fd, events)
                handlers[fd] = action

        watch(wake, lambda: None)
        watch(portkeeper.EXIT_FD, self._instance_ended, 0)
        watch(self._server.fileno(), self._accept_all)
        watch(self._leases.fd, self._files_changed)
        watch(self._helper_pidfd, self._restart_helper)
        for number, worker in self._live_workers():
            watch(worker.pidfd, partial(self._worker_ended, number))
            watch(worker.channel.fileno(), partial(self._hear, worker))
        for fd, owner in self._fifos.items():
            watch(fd, partial(self._lease_changed, owner), 0)
        for fd, client in self._clients.items():
            watch(fd, client.ready, client.events)
        for fd in self._gate.descriptors:
            watch(fd, partial(self._gate.ended, {fd}))
        for fd, _ in poll.poll(self._timeout()):
            handlers[fd]()
        now = time.monotonic()
        if self._gate.due and now >= self._gate.due:
            self._gate.tick()
        if self._retry_at and now >= self._retry_at:
            self._retry_pending()
        if self._own_retry_at and now >= self._own_retry_at:
            self._instance_changed()
        for fd, client in list(self._clients.items()):
            if client.done or now > client.deadline:
                client.close()
                del self._clients[fd]

    def _timeout(self) -> float | None:
        now = time.monotonic()
        moments = [when for when in (self._gate.due, self._retry_at, self._own_retry_at) if when]
        moments += [client.deadline for client in self._clients.values()]
        if not self._groups and not self._pending:
            moments.append(max(self._unneeded_since + _IDLE_SECONDS, now + 1.0))
        # Rounded up, or the last millisecond is spent in turning round and round.
        return max(0.0, min(moments) - now) * 1000 + 0.5 if moments else None

    def _is_unneeded(self) -> bool:
        busy = any(memoryview(self._counts).cast("I")[: self._number])
        if self._groups or self._pending or self._clients or busy:
            self._unneeded_since = time.monotonic()
        return time.monotonic() - self._unneeded_since >= _IDLE_SECONDS

    def _end(self) -> None:
        self._withdraw_from_machine(list(self._groups.values()))
        for _, worker in self._live_workers():
            os.kill(worker.pid, signals.SIGKILL)
        if self._helper > 0:
            os.kill(self._helper, signals.SIGKILL)
        if not self._stop:
            # In this order: who connects from now on finds no socket and asks for a forwarder.
            try:
                os.unlink(files.path(self.instance, files.SOCKET))
            except OSError:
                pass

    def _instance_ended(self) -> None:
        self._stop = True

    def _files_changed(self) -> None:
        for watch, mask, name in self._leases.read():
            if watch in (self._leases_watch, self._containers_watch):
                self._drop_dead()
            elif mask & inotify.IN_MOVED_TO and name == state.STATE:
                self._instance_changed()
            elif mask & _IN_OPEN and name == _LEASE_FIFO:
                self._gate.stir()

    def _lease_changed(self, owner: str) -> None:
        if not files.is_held(self.instance, owner):
            self._remove(owner, None)

    def _worker_ended(self, number: int) -> None:
        worker = self._workers[number]
        assert worker is not None
        status = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
        say(f"a port worker has ended (status {status})")
        worker.close()
        self._served.discard(worker)
        self._workers[number] = None
        memoryview(self._counts).cast("I")[number] = 0
        self._start_processes()
        self._gate.update(self._groups.values())

    def _restart_helper(self) -> None:
        say("the helper that makes sockets inside has ended")
        self._helper_ended()
        self._start_processes()
        self._gate.update(self._groups.values())

    def _hear(self, worker: _Worker) -> None:
        import json

        try:
            data = worker.channel.recv(65536)
        except OSError:
            return
        if not data:
            return
        what, number, *rest = json.loads(data)
        group = self._groups.get(number)
        if group is None:
            return
        if what == "refused" and group.is_gated:
            self._gate.recheck(lambda one: one is group, rest)
        elif what == "lost":
            version, why = rest
            setattr(group.target, f"keep{version}", False)
            group.clients.lost[f"ipv{version}"] = why
            self._warning(why)
            self._send_target(group)
        elif what == "unkept":
            text = group.clients.seen(*rest)
            if text:
                say(f"warning: {text}")

    def _accept_all(self) -> None:
        self._accept()

    def _accept(self) -> bool:
        try:
            connection, _ = self._server.accept()
        except OSError:
            return False
        if len(self._clients) >= control.MAX_CLIENTS:
            connection.close()
            return True
        client = _Client(self, connection)
        self._clients[connection.fileno()] = client
        return True


_IN_OPEN = 0x20
_LEASE_FIFO = "lease.fifo"


class _Client:
    """Somebody who asks; it has a limit in time, size and number, and blocks nobody."""

    def __init__(self, forwarder: Forwarder, connection: socket.socket) -> None:
        self._forwarder = forwarder
        self._connection = connection
        connection.setblocking(False)
        self._peer = control.Peer(connection)
        self._data = bytearray()
        self._answer = b""
        self.events = select.POLLIN
        self.done = False
        self.deadline = time.monotonic() + control.SECONDS
        if not self._peer.is_ours():
            say(f"uid {self._peer.uid} asked for ports and was turned away")
            self._say({"error": "change published ports: not your instance", "hint": ""})

    def ready(self) -> None:
        """Read or write some more."""
        try:
            if self._answer:
                self._write()
            else:
                self._read()
        except BlockingIOError:
            pass
        except OSError:
            self.done = True

    def _read(self) -> None:
        import json

        chunk = self._connection.recv(1 << 16)
        self._data += chunk
        if b"\n" in self._data:
            line = bytes(self._data).partition(b"\n")[0]
            try:
                request = json.loads(line)
            except (ValueError, RecursionError):
                request = None
            self._say(self._forwarder.answer(request, self._peer))
        elif not chunk or len(self._data) > control.MAX_LINE:
            self.done = True

    def _say(self, answer: dict[str, Any]) -> None:
        import json

        self._answer = json.dumps(answer).encode() + b"\n"
        self.events = select.POLLOUT
        try:
            self._write()
        except BlockingIOError:
            pass
        except OSError:
            self.done = True

    def _write(self) -> None:
        sent = self._connection.send(self._answer)
        self._answer = self._answer[sent:]
        self.done = not self._answer

    def close(self) -> None:
        self._connection.close()


def _spread(asked: list[rules.Rule]) -> list[rules.Rule]:
    """A range whose host ports are free to choose is a rule for each port."""
    found = []
    for rule in asked:
        if rule.host_port or rule.count == 1:
            found.append(rule)
        else:
            found += [
                rules.Rule(rule.proto, rule.host_ip, 0, rule.port + number)
                for number in range(rule.count)
            ]
    return found


def _pair() -> tuple[socket.socket, socket.socket]:
    import socket

    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _close_all_but(keep: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd not in keep:
            try:
                os.close(fd)
            except OSError:
                pass  # that of the listing


if __name__ == "__main__":
    main(sys.argv[1])
