"""rootlessnet oci-hook: what OCI runtimes start, and the configuration that makes them do so."""

from __future__ import annotations

import os

from rootlessnet.cli import arguments
from rootlessnet.errors import Error, UsageError, hint, reason

Option = arguments.Option

HOOKS_DIR = Option("hooks-dir", "write it there, as rootlessnet.json", metavar="DIR")
BUNDLE = Option("bundle", "put it into DIR/config.json", metavar="DIR")
CONFIG = Option("config", "print `hooks` of a config.json")

USAGE = "oci-hook STAGE | generate [--config | --hooks-dir DIR | --bundle DIR]"
WHAT = (
    "Set up or take down the network of the container whose state an OCI runtime writes to stdin.\n"
    "STAGE: prestart, createRuntime, createContainer, startContainer, poststart, poststop, auto.\n"
    "generate prints a file for a hooks.d directory."
)


def main(argv: list[str]) -> int:
    """`rootlessnet oci-hook`: argv is everything but the word oci-hook."""
    options = (*arguments.COMMON, CONFIG, HOOKS_DIR, BUNDLE)
    values, words = arguments.parse(argv, options)
    if "help" in values:
        print(arguments.help_text(USAGE, WHAT, options))
        return 0
    from rootlessnet.tools import oci_hook

    if not words:
        raise UsageError(f"oci-hook: no stage is given: {USAGE}")
    arguments.no_words(words[1:])
    given = [name for name in ("config", "hooks-dir", "bundle") if name in values]
    if words[0] == "generate":
        if len(given) > 1:
            raise UsageError("oci-hook generate: --config, --hooks-dir or --bundle")
        _generate(values)
        return 0
    stage = words[0]
    if stage not in (*oci_hook.STAGES, oci_hook.AUTO):
        raise UsageError(f"oci-hook: there is no stage {stage}")
    if given:
        raise UsageError(f"oci-hook: --{given[0]} is for generate")
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


def _generate(values: arguments.Values) -> None:
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
    advice = hint(error)
    text = f"rootlessnet: {reason(error)}\n" + (f"  hint: {advice}\n" if advice else "")
    try:
        os.write(fd, text.encode(errors="surrogateescape"))
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
