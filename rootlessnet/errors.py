"""What a user is told when something fails.

`Error` is for what a user can act on: it names the attempt and is raised `from` the reason.
Anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_FAILURE = 125
"""Exit status of everything of ours that failed (the contract of env(1), chroot(1), podman)."""


class Error(Exception):
    """A failed attempt, in words for the user; the reason is its `__cause__`.

    hint is the next step, if there is one; status the exit status of the program.
    """

    def __init__(self, attempt: str, *, hint: str = "", status: int = EXIT_FAILURE) -> None:
        super().__init__(attempt)
        self.hint = hint
        self.status = status


class UsageError(Error):
    """The command line cannot be understood; nothing was attempted."""


class Failures(Error):
    """Several steps of a teardown failed; every other step was done."""

    def __init__(self, attempt: str, failures: Sequence[BaseException]) -> None:
        super().__init__(f"{attempt}: {'; '.join(map(reason, failures))}")


def reason(error: BaseException | None) -> str:
    """One line for a chain of errors: attempt, its reason, the reason of that."""
    parts: list[str] = []
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            name = error.filename
            if isinstance(name, bytes):
                name = os.fsdecode(name)
            text = f"{name}: {error.strerror}" if name is not None else str(error.strerror)
        else:
            text = str(error) or type(error).__name__
        if not parts or parts[-1] != text:
            parts.append(text)
        error = error.__cause__
    return ": ".join(parts).replace("\n", " ")


def hint(error: BaseException | None) -> str:
    """The innermost hint of the chain, or an empty string: the closer to the cause, the better."""
    found = ""
    while error is not None:
        found = getattr(error, "hint", "") or found
        error = error.__cause__
    return found


def encoded(text: str) -> bytes:
    """A message as it is written: names in it are others' and may hold anything, so what would
    steer a terminal is spelled out, and so is what is no text in any encoding."""
    return "".join(map(_spelled, text)).encode(errors="surrogateescape")


def _spelled(character: str) -> str:
    # The surrogates are the bytes of a file's name that is not UTF-8.
    if character.isprintable() or character in "\n\t" or "\udc80" <= character <= "\udcff":
        return character
    return repr(character)[1:-1]


def complain(text: str) -> None:
    """Write one message line, and nothing else, to stderr; a closed stderr is no failure."""
    try:
        os.write(2, encoded(f"rootlessnet: {text}\n"))
    except OSError:
        pass


def lines(error: BaseException) -> str:
    """The error line and its hint, as they are told."""
    advice = hint(error).replace("\n", " ")
    return reason(error) + (f"\n  hint: {advice}" if advice else "")


def report(error: BaseException) -> None:
    """Print the error line and its hint."""
    complain(lines(error))


def complain_hint(text: str) -> None:
    """Print a next step after an error line."""
    try:
        os.write(2, encoded(f"  hint: {text}\n"))
    except OSError:
        pass


def warn(text: str) -> None:
    """Say what will not work, and go on."""
    complain(f"warning: {text}")


_debugging = False


def set_debug() -> None:
    """Let `debug` print."""
    global _debugging
    _debugging = True


def is_debugging() -> bool:
    """Whether --debug was given."""
    return _debugging


def debug(text: str) -> None:
    """Say what is being done, when --debug asks for it."""
    if _debugging:
        complain(f"debug: {text}")
