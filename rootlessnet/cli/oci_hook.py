"""rootlessnet oci-hook: what OCI runtimes start, and the configuration that makes them do so."""

from __future__ import annotations

import os

from rootlessnet.cli import arguments, group
from rootlessnet.errors import Error, UsageError, encoded, lines

Option = arguments.Option

HOOKS_DIR = Option("hooks-dir", "write it there, as rootlessnet.json", metavar="DIR")
BUNDLE = Option("bundle", "put the hooks into DIR/config.json", metavar="DIR")
CONFIG = Option("config", "print the hooks as config.json has them")

COMMANDS = {
    "createRuntime": "set devices, networks and ports of a container up",
    "prestart": "the same, for old runtimes",
    "createContainer": "mount the resolv.conf of its networks",
    "startContainer": "nothing is left to do",
    "poststart": "nothing is left to do",
    "poststop": "take everything down",
    "auto": "what the state is of; for hooks that are not told their stage",
    "generate": "print the hook for a hooks.d directory, or write it",
}


def main(argv: list[str]) -> int:
    """`rootlessnet oci-hook`: argv is everything but the word oci-hook."""
    chosen = group.choose(argv, "oci-hook", COMMANDS, usage="STAGE <STATE", noun="stage")
    if isinstance(chosen, int):
        return chosen
    stage, argv = chosen
    return _generate(argv) if stage == "generate" else _run(stage, argv)


def _run(stage: str, argv: list[str]) -> int:
    what = f"Hook of an OCI runtime, the state on stdin: {COMMANDS[stage]}."
    given = arguments.read(argv, f"oci-hook {stage}", what)
    if given is None:
        return 0
    values, _ = given
    from rootlessnet.tools import oci_hook

    attempt = f"oci-hook {stage}"
    try:
        current = oci_hook.read_state()
        attempt += f": container {current.id}"
        oci_hook.complete_environment()
        oci_hook.run(stage, current, arguments.last(values, "static-dir"))
    except (Error, OSError) as error:
        failure = Error(attempt)
        failure.__cause__ = error
        _tell_runtime(failure)
        raise failure from error
    return 0


def _generate(argv: list[str]) -> int:
    usage = "oci-hook generate [--config | --hooks-dir DIR | --bundle DIR]"
    options = (*arguments.COMMON, CONFIG, HOOKS_DIR, BUNDLE)
    given = arguments.read(argv, usage, group.sentence(COMMANDS["generate"]), options)
    if given is None:
        return 0
    values, _ = given
    if sum(name in values for name in ("config", "hooks-dir", "bundle")) > 1:
        raise UsageError("oci-hook generate: --config, --hooks-dir or --bundle")
    import json

    from rootlessnet.tools import oci_hook_config

    static_dir = arguments.last(values, "static-dir")
    if static_dir:
        static_dir = os.path.abspath(static_dir)
    if "hooks-dir" in values:
        print(oci_hook_config.install(arguments.last(values, "hooks-dir"), static_dir))
    elif "bundle" in values:
        print(oci_hook_config.add(arguments.last(values, "bundle"), static_dir))
    else:
        make = oci_hook_config.hooks if "config" in values else oci_hook_config.document
        print(json.dumps(make(static_dir), indent=4))
    return 0


def _tell_runtime(error: Error) -> None:
    """Where a runtime throws a hook's messages away, as crun does, its own stderr gets them."""
    try:
        if os.fstat(2).st_rdev != os.stat(os.devnull).st_rdev:
            return
        if os.readlink("/proc/self") != str(os.getpid()):
            return  # in another pid namespace, where numbers mean nothing
        fd = _stderr_of(os.getppid())
    except OSError:
        return
    try:
        os.write(fd, encoded(f"rootlessnet: {lines(error)}\n"))
    except OSError:
        pass
    finally:
        os.close(fd)


def _stderr_of(pid: int) -> int:
    """Raises OSError."""
    from rootlessnet.kernel import libc

    pidfd = os.pidfd_open(pid)
    try:
        return libc.pidfd_getfd(pidfd, 2)
    except OSError:
        # Not allowed everywhere (kernel.yama.ptrace_scope). By its path it is another open file,
        # so in a regular one the runtime may write over what we have written.
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_NONBLOCK
        return os.open(f"/proc/{pid}/fd/2", flags)
    finally:
        os.close(pidfd)
