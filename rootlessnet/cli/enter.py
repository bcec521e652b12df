"""rootlessnet enter: run a command inside.

The warm path, an instance that runs already, is one lock, one open, one setns, one unshare and
exec, without a message to the supervisor. What costs a millisecond to import is not imported here:
only what makes a new instance needs it, and imports it there.
"""

from __future__ import annotations

import os

from rootlessnet.cli import arguments
from rootlessnet.errors import Error, UsageError, debug
from rootlessnet.instance import lease, paths, request, start
from rootlessnet.kernel import namespaces, signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from rootlessnet.instance.paths import Instance

OPTIONS = (
    *arguments.COMMON,
    *arguments.CREATE,
    arguments.PUBLISH,
    arguments.Option("keep-id", "run as your own uid instead of root inside"),
    arguments.Option(
        "listen", "hand over a listening host socket (LISTEN_FDS)", metavar="[IP:]PORT[/udp]"
    ),
    arguments.Option("chdir", "change to this directory first", metavar="DIR", short="C"),
)

USAGE = "enter [OPTIONS] [--] [COMMAND [ARGUMENT...]]"
WHAT = "Run COMMAND (default: $SHELL) in the shared network namespace; make it if need be."


def main(argv: list[str]) -> int:
    values, command = arguments.parse(argv, OPTIONS, stop_at_word=True)
    if "help" in values:
        print(arguments.help_text(USAGE, WHAT, OPTIONS))
        return 0
    requested = read_request(values)
    directory = _working_directory(arguments.last(values, "chdir"))
    command = command or [_shell()]
    if not command[0]:
        raise UsageError("the command is an empty word")
    sockets = []
    if "listen" in values:
        from rootlessnet.systemd import activation

        # The name of a socket is what it was asked for by, without the separator of the names.
        sockets = [(text.replace(":", "_"), activation.listen(text)) for text in values["listen"]]
    publish = None
    if "publish" in values:
        publish = _publisher(values["publish"])
    instance = paths.find(arguments.last(values, "static-dir"))
    ids = (os.geteuid(), os.getegid())
    userns = namespaces.inode("self", "user")
    taken, holder = start.use_and_join(instance, requested, publish)
    taken = lease.keep_across_exec(taken)
    debug(f"instance {instance.name}, lease on descriptor {taken}")
    environment = _environment(instance, ids, holder.userns != userns, "keep-id" in values)
    try:
        os.chdir(directory)
    except OSError as error:
        advice = "inside, /run is another one; try -C /" if directory.startswith("/run") else ""
        raise Error("change the directory inside", hint=advice) from error
    if sockets:
        environment.update(activation.hand_over(activation.inherited(), sockets))
    _exec(command, environment)


def read_request(values: arguments.Values) -> request.Requested:
    """What the options ask of the instance. Raises Error."""
    requested = request.Requested()
    requested.driver = arguments.last(values, "driver")
    requested.options = values.get("option", [])
    if "linger" in values:
        requested.linger = request.seconds("--linger", arguments.last(values, "linger"))
    if "timeout" in values:
        requested.timeout = request.seconds(
            "--timeout", arguments.last(values, "timeout"), minimum=0.1, maximum=_MAX_TIMEOUT
        )
    return requested


_MAX_TIMEOUT = 1e6
"""Seconds: eleven days, well below what poll(2) takes."""


def _working_directory(given: str) -> str:
    """The directory in which the command will be run: its path, as namespaces change under it."""
    try:
        here = os.getcwd()
    except OSError as error:
        if given.startswith("/"):
            return given
        raise Error("find the working directory", hint="cd to one that exists") from error
    return os.path.join(here, given)


def _shell() -> str:
    shell = os.environ.get("SHELL", "")
    if not shell:
        import pwd

        try:
            shell = pwd.getpwuid(os.getuid()).pw_shell
        except KeyError:
            pass
    return shell or "/bin/sh"


def _publisher(texts: list[str]) -> Callable[[Instance], None]:
    """What publishes ports until the last process that has our descriptors has ended."""
    from rootlessnet.ports import api, rules

    wanted = rules.parse_all(texts)
    held = -1

    def publish(instance: Instance) -> None:
        nonlocal held
        if held < 0:
            held = lease.keep_across_exec(api.hold(instance, wanted))

    return publish


def _environment(
    instance: Instance, ids: tuple[int, int], new_userns: bool, keep_id: bool
) -> dict[str, str]:
    """The environment for the command; with keep_id its user namespace too."""
    uid, gid = ids
    environment = dict(os.environ)
    environment["ROOTLESSNET"] = instance.name
    # A rootlessnet inside means the same instance.
    environment["ROOTLESSNET_STATIC_DIR"] = instance.static_dir
    path = environment.get("PATH", os.defpath)
    if "/usr/sbin" not in path.split(":"):
        environment["PATH"] = f"{path}:/usr/sbin"
    if new_userns:
        # By these podman and buildah know that they need no user namespace of their own.
        environment["_CONTAINERS_USERNS_CONFIGURED"] = "done"
        environment["_CONTAINERS_ROOTLESS_UID"] = str(uid)
        environment["_CONTAINERS_ROOTLESS_GID"] = str(gid)
    if keep_id:
        for name in ("USERNS_CONFIGURED", "ROOTLESS_UID", "ROOTLESS_GID"):
            environment.pop(f"_CONTAINERS_{name}", None)
        if uid != os.geteuid():
            from rootlessnet.kernel import idmap

            idmap.become(uid, gid)
    return environment


def _exec(command: list[str], environment: dict[str, str]) -> NoReturn:
    # Python ignores these two, and an ignored signal stays ignored in the command.
    signals.restore(signals.SIGPIPE)
    signals.restore(signals.SIGXFSZ)
    os.environ["PATH"] = environment["PATH"]
    try:
        os.execvpe(command[0], command, environment)
    except FileNotFoundError as error:
        if "/" in command[0] and os.path.exists(command[0]):
            raise Error(f"run {command[0]}: its interpreter is not found", status=127) from error
        raise Error(f"run {command[0]}: command not found", status=127) from None
    except ValueError as error:
        raise UsageError(f"run {command[0]!r}: {error}") from None
    except OSError as error:
        raise Error(f"run {command[0]}: {error.strerror}", status=126) from None
