"""The program: find the command, run it, turn a failure into one line and an exit status."""

from __future__ import annotations

import errno
import os
import sys

from rootlessnet import errors

COMMANDS = {
    "enter": "run a command inside",
    "up": "keep the instance running, by a named lease",
    "down": "give a named lease back",
    "status": "show the instance, or with --all every one",
    "ps": "show who uses it",
    "path": "print the path of its network namespace",
    "port": "publish ports of the host: add, remove, list",
    "container": "connect containers: set up, tear down, inspect, list",
    "network": "manage podman's networks: create, connect, list, remove",
    "device": "give network devices away, count, list",
    "top": "watch its traffic, live",
    "graph": "draw it",
    "metrics": "print its figures for Prometheus",
    "events": "tell what happens to it, as it happens",
    "logs": "show what supervisor and driver said",
    "doctor": "check this machine",
    "config": "show what containers.conf and storage.conf say",
    "oci-hook": "connect the containers of an OCI runtime (runc, crun)",
    "install-cni": "link the CNI plugin host-device into a directory",
    "install-units": "put the systemd user units in place",
    "completion": "print the completions for a shell",
}


def main() -> int:
    """Run sys.argv; returns the exit status (125 for every failure of ours)."""
    _open_standard_streams()
    try:
        status = _run(sys.argv[1:])
        sys.stdout.flush()
        return status
    except errors.UsageError as error:
        errors.report(error)
        if not errors.hint(error):
            errors.complain_hint("rootlessnet --help shows the commands and their options")
        return error.status
    except errors.Error as error:
        errors.report(error)
        return error.status
    except OSError as error:
        if error.errno == errno.EPIPE:
            return _die(interrupted=False)
        # No file, no process, no space, no memory left, or the like.
        if errors.is_debugging():
            raise
        errors.report(error)
        _drop_output()
        return errors.EXIT_FAILURE
    except KeyboardInterrupt:
        return _die(interrupted=True)


def _die(*, interrupted: bool) -> int:
    from rootlessnet.kernel import signals

    _drop_output()
    return signals.die_of(signals.SIGINT if interrupted else signals.SIGPIPE)


def _open_standard_streams() -> None:
    """Put /dev/null where a standard stream is closed: no file of ours may become number 0 to 2."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
    if sys.stdout.errors == "strict":
        # A name of others may be no text in the encoding of this locale.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _drop_output() -> None:
    """Forget what could not be written, or Python tries again at its end and complains."""
    os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)


def _run(argv: list[str]) -> int:
    from rootlessnet.cli import arguments

    # Options may also stand before the name of the command.
    before, rest = arguments.split(argv)
    if before and before[-1] == "--version":
        from importlib.metadata import version

        print(f"rootlessnet {version('rootlessnet')}")
        return 0
    if not rest:
        if not argv or argv[-1] in ("-h", "--help"):
            _print_help()
            return 0 if argv else errors.EXIT_FAILURE
        arguments.parse(before, arguments.COMMON)
        raise errors.UsageError("no command")
    name = rest[0]
    if name not in COMMANDS:
        raise errors.UsageError(f"unknown command {name}")
    if name == "enter":
        from rootlessnet.cli import enter as module
    else:
        from importlib import import_module

        module = import_module(f"rootlessnet.cli.{name.replace('-', '_')}")
    return module.main([*before, *rest[1:]])


def _print_help() -> None:
    print("usage: rootlessnet [--static-dir DIR] [--debug] COMMAND [OPTIONS]\n\ncommands:")
    for name, text in COMMANDS.items():
        print(f"  {name:<15}{text}")
    print("\nrootlessnet COMMAND --help shows the options of one; man rootlessnet explains all.")


if __name__ == "__main__":
    sys.exit(main())
