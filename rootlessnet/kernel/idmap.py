"""User and group id maps of a new user namespace, through newuidmap and newgidmap.

The map is podman's: root inside is the caller, and 1, 2, 3 ... are the caller's subordinate ids in
the order of /etc/subuid and /etc/subgid. Without subordinate ids, or without the setuid helpers,
only the caller's own id is mapped: programs that change owner or user will then fail.
"""

from __future__ import annotations

import os

from rootlessnet.errors import Error
from rootlessnet.kernel import libc, spawn

_SINGLE = "only one id is mapped, chown and su will fail inside"

Range = tuple[int, int, int]
"""First id inside, first id outside, how many: a line of /proc/PID/uid_map."""


def subordinate_ids(path: str, names: tuple[str, ...]) -> list[tuple[int, int]]:
    """(first id, count) of each range that the file (subuid(5)) gives to one of the names.

    A missing file gives nothing; lines that are no entries are passed over, as newuidmap does.
    """
    ranges = []
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                fields = line.strip().split(":")
                if len(fields) == 3 and fields[0] in names:
                    if fields[1].isdecimal() and fields[2].isdecimal() and int(fields[2]):
                        ranges.append((int(fields[1]), int(fields[2])))
    except FileNotFoundError:
        pass
    return ranges


def build(own: int, ranges: list[tuple[int, int]]) -> list[Range]:
    """The id map with our own id as root and the ranges after it."""
    result = [(0, own, 1)]
    inside = 1
    for first, count in ranges:
        result.append((inside, first, count))
        inside += count
    return result


def caller_maps() -> tuple[list[Range], list[Range]]:
    """The uid and the gid map for a user namespace of the calling user."""
    import pwd

    uid, gid = os.getuid(), os.getgid()
    names: tuple[str, ...] = (str(uid),)
    try:
        names = (pwd.getpwuid(uid).pw_name, str(uid))
    except KeyError:
        pass
    return (
        build(uid, subordinate_ids("/etc/subuid", names)),
        build(gid, subordinate_ids("/etc/subgid", names)),
    )


def apply(pid: int) -> str:
    """Map the ids of the user namespace that the child pid has just unshared.

    Returns an empty string, or a warning when only a single id could be mapped. Raises Error when
    not even that is possible.
    """
    uids, gids = caller_maps()
    warning = ""
    if len(uids) > 1 and len(gids) > 1:
        warning = _with_helpers(pid, uids, gids)
        if not warning:
            return ""
    else:
        warning = f"no subordinate ids in /etc/subuid and /etc/subgid: {_SINGLE}"
    _single(pid, uids[0], gids[0])
    return warning


def _with_helpers(pid: int, uids: list[Range], gids: list[Range]) -> str:
    """Run both helpers at once; an empty string, or why they could not."""
    runs: list[spawn.Output] = []
    for program, ranges in (("newuidmap", uids), ("newgidmap", gids)):
        path = spawn.find(program)
        if path is None:
            for other in runs:
                other.finish()
            return f"{program} is not installed: {_SINGLE}"
        numbers = [str(number) for line in ranges for number in line]
        runs.append(spawn.Output([path, str(pid), *numbers]))
    problem = ""
    for run in runs:
        status, text = run.finish()
        if status:
            problem = problem or f"{text.strip() or run.argv[0] + ' failed'}: {_SINGLE}"
    return problem


def _single(pid: int, uid: Range, gid: Range) -> None:
    """Map our own ids only, which needs no privilege (user_namespaces(7))."""
    try:
        if not _is_mapped(pid, "gid"):
            # Without privilege a gid map may only be written when setgroups is given up.
            _write(pid, "setgroups", "deny")
            _write(pid, "gid_map", _line(gid))
        if not _is_mapped(pid, "uid"):
            _write(pid, "uid_map", _line(uid))
    except OSError as error:
        raise Error(
            "map the caller's id into a user namespace",
            hint="run rootlessnet doctor: a security module may restrict user namespaces",
        ) from error


def _line(ids: Range) -> str:
    return f"{ids[0]} {ids[1]} {ids[2]}"


def _is_mapped(pid: int, kind: str) -> bool:
    with open(f"/proc/{pid}/{kind}_map", "rb") as file:
        return bool(file.read())


def _write(pid: int, name: str, text: str) -> None:
    # One write(2) call: the kernel takes a map only whole.
    fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def become(uid: int, gid: int) -> None:
    """As root of a user namespace, go on as uid and gid, in a user namespace below it.

    Its map is podman's --userns=keep-id: uid is our present root, and the ids before and after it
    are the remaining ids of the present namespace, so everything that is mapped stays so. This
    process keeps no privilege over the namespaces of the present one. Raises Error.
    """
    total_uids = _mapped("uid")
    total_gids = _mapped("gid")
    ready_read, ready_write = os.pipe()
    parent = os.getpid()
    # The map has to be written by a process that has stayed in the present namespace.
    pid = os.fork()
    if pid == 0:
        # --- child ---
        status = 1
        try:
            os.close(ready_write)
            if os.read(ready_read, 1):
                _write(parent, "uid_map", keep_id(uid, total_uids))
                _write(parent, "gid_map", keep_id(gid, total_gids))
                status = 0
        finally:
            os._exit(status)
    # --- parent ---
    try:
        os.close(ready_read)
        libc.unshare(libc.CLONE_NEWUSER)
        os.write(ready_write, b"1")
    except OSError as error:
        raise Error("make the user namespace for --keep-id") from error
    finally:
        os.close(ready_write)
        status = os.waitpid(pid, 0)[1]
    if status:
        raise Error(f"map uid {uid} for --keep-id")
    # Until now we were root here by the map of the outer namespace; the ids follow by themselves.


def keep_id(own: int, total: int) -> str:
    """The map in which the parent namespace's 0 is own, and its 1 to total - 1 fill up the rest."""
    lines = [(own, 0, 1)]
    before = min(own, total - 1)
    if before:
        lines.insert(0, (0, 1, before))
    after = total - 1 - before
    if after > 0:
        lines.append((own + 1, before + 1, after))
    return "".join(_line(line) + "\n" for line in lines)


def _mapped(kind: str) -> int:
    """How many ids the present namespace has without a gap from 0 on."""
    total = 0
    with open(f"/proc/self/{kind}_map", encoding="ascii") as file:
        for line in file:
            first, _, count = map(int, line.split())
            if first == total:
                total += count
    return total
