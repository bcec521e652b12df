"""The executable rootlessnet-slirp4netns: reads the command line, and runs the real slirp4netns.

Supervised, in this very process (rootlessnet.tools.slirp4netns_wrapper), or executed in place of it
where there is nothing to supervise: --help, --version, a line that is wrong, a target that is no
network namespace.
"""

from __future__ import annotations

import os
import sys

from rootlessnet import errors
from rootlessnet.drivers import slirp4netns
from rootlessnet.errors import Error
from rootlessnet.kernel import spawn
from rootlessnet.tools.slirp4netns_line import Line, NotUnderstood

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

NAME = "rootlessnet-slirp4netns"

_PROGRAM = "ROOTLESSNET_SLIRP4NETNS"
_INNER = "ROOTLESSNET_SLIRP4NETNS_STARTED"

# First version that knows the kind of target, by the option that asks for it.
_KINDS = {("target-type", "bess"): (1, 2, 0), ("netns-type", "tapfd"): (1, 3, 0)}


def main() -> int:
    """Run sys.argv; the exit status."""
    arguments = sys.argv[1:]
    for number in range(3):
        # No file of ours may become one of these. What the caller closed stays without a reader.
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    try:
        program = find()
        try:
            line = Line(arguments)
            if "help" in line or "version" in line:
                _become(program, arguments)
            for option, kind in _KINDS:
                if line.values.get(option) == kind:
                    _require(program, option, kind)
                    _become(program, arguments)
            from rootlessnet.tools import slirp4netns_wrapper

            return slirp4netns_wrapper.run(program, line)
        except NotUnderstood:
            # Its own words are what the caller expects; or it is newer than we are.
            _become(program, arguments)
    except Error as error:
        report(error)
        return error.status


def find() -> str:
    """The real slirp4netns: $ROOTLESSNET_SLIRP4NETNS, else on PATH. Raises Error."""
    if _INNER in os.environ:
        raise Error(
            f"start slirp4netns: {sys.argv[0]} was started by itself, as a slirp4netns",
            hint=f"{_PROGRAM}=PATH names the real one",
        )
    named = os.environ.get(_PROGRAM, "")
    if not named:
        return slirp4netns.find()
    path = spawn.find(named)
    if path is None or slirp4netns.is_wrapper(path):
        reason = "not an executable file" if path is None else f"{NAME} itself"
        raise Error(f"start slirp4netns: {_PROGRAM}={named}: {reason}", hint=slirp4netns.INSTALL)
    return path


def environment() -> dict[str, str]:
    """For the real one: should it be us after all, we shall know."""
    return {**os.environ, _INNER: "1"}


def _become(program: str, arguments: list[str]) -> NoReturn:
    from rootlessnet.kernel import signals

    # Python ignores these two, and an ignored signal stays ignored over exec.
    signals.restore(signals.SIGPIPE)
    signals.restore(signals.SIGXFSZ)
    try:
        os.execve(program, [slirp4netns.NAME, *arguments], environment())
    except OSError as error:
        raise Error(f"start {program}", hint=slirp4netns.INSTALL) from error


def _require(program: str, option: str, kind: str) -> None:
    """Raise Error when the program is too old for this kind of target."""
    _, text = spawn.run([program, "--version"])
    words = text.split()
    numbers = words[2].partition("+")[0].partition("-")[0].split(".") if len(words) > 2 else []
    first = _KINDS[option, kind]
    if all(map(str.isdecimal, numbers)) and numbers and tuple(map(int, numbers)) < first:
        raise Error(
            f"start slirp4netns: --{option}={kind} not supported",
            hint=f"{program} is version {words[2]}; {'.'.join(map(str, first))} and newer have it",
        )


def report(error: BaseException) -> None:
    """Print the error line and its hint, under the name of this program."""
    say(errors.reason(error))
    if advice := errors.hint(error):
        say(f"hint: {advice}")


def say(text: str) -> None:
    """A line on stderr; a reader that does not read must not hold us up."""
    import select

    poll = select.poll()
    poll.register(2, select.POLLOUT)
    try:
        if any(events & select.POLLOUT for _, events in poll.poll(0)):
            os.write(2, f"{NAME}: {text}\n".encode(errors="surrogateescape"))
    except OSError:
        pass


if __name__ == "__main__":
    sys.exit(main())
