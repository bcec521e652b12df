"""rootlessnet logs: what supervisor and driver said."""

from __future__ import annotations

import os
import sys

from rootlessnet.cli import arguments
from rootlessnet.errors import Error
from rootlessnet.instance import paths, state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.instance.paths import Instance

OPTIONS = (
    *arguments.COMMON,
    arguments.Option("follow", "go on showing what is added", short="f"),
    arguments.Option("file", "the running instance's own file, also where there is a journal"),
)
WHAT = "Show what supervisor and driver said: the journal, or the running instance's log file."


def main(argv: list[str]) -> int:
    given = arguments.read(argv, "logs [OPTIONS]", WHAT, OPTIONS)
    if given is None:
        return 0
    values, _ = given
    instance = paths.find(arguments.last(values, "static-dir"))
    follow = "follow" in values
    if "file" not in values and _journal_is_readable(instance):
        _exec_journalctl(instance, follow)
    _show_file(instance.path(state.LOG), follow)
    return 0


def _command(instance: Instance) -> list[str]:
    from rootlessnet.systemd import journal

    match = f"{journal.FIELD}={instance.name}"
    return ["journalctl", "--no-pager", "--output=short-iso", "--quiet", match]


def _journal_is_readable(instance: Instance) -> bool:
    """Whether there is a journal and it has something of this instance for us."""
    import subprocess

    from rootlessnet.systemd import journal

    if not journal.available():
        return False
    try:
        done = subprocess.run(
            [*_command(instance), "--lines=1"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and bool(done.stdout.strip())


def _exec_journalctl(instance: Instance, follow: bool) -> None:
    sys.stdout.flush()
    command = _command(instance)
    os.execvp(command[0], [*command, *(["--follow", "--lines=all"] if follow else [])])


def _show_file(path: str, follow: bool) -> None:
    import select

    from rootlessnet.kernel import files, inotify

    try:
        file = open(path, "rb", buffering=0, opener=files.open_regular)
    except FileNotFoundError:
        raise Error("show the log: there is no journal, and no instance runs") from None
    except OSError as error:
        raise Error("show the log") from error
    with file:
        watcher = inotify.Watcher()
        mask = inotify.IN_MODIFY | inotify.IN_DELETE_SELF | _IN_ATTRIB
        watcher.add(path, mask)
        while True:
            while chunk := file.read(65536):
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            # A deleted file that is open here has no name left: the instance has ended.
            if not follow or os.fstat(file.fileno()).st_nlink == 0:
                return
            # Without a watcher look now and then.
            select.select([watcher.fd] if watcher.fd >= 0 else [], [], [], _LOOK_SECONDS)
            watcher.read()
            if file.tell() > os.fstat(file.fileno()).st_size:
                file.seek(0)  # it was cut


_IN_ATTRIB = 0x4
_LOOK_SECONDS = 1.0
