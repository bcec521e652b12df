"""Signals without the 3 ms that the signal module's enums cost: its built-in half alone."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found,unused-ignore]
import os

SIGPIPE: int = _signal.SIGPIPE
SIGXFSZ: int = _signal.SIGXFSZ
SIGINT: int = _signal.SIGINT
SIGTERM: int = _signal.SIGTERM
SIGKILL: int = _signal.SIGKILL


def send(pidfd: int, number: int) -> None:
    """Send a signal to the process of a pidfd; one that has ended is no error."""
    try:
        _signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass


def restore(number: int) -> None:
    """Give a signal its default action back."""
    _signal.signal(number, _signal.SIG_DFL)


_ENDING = (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP)


def hold_back() -> set[int]:
    """Let the signals that end a program wait, also for a child; the mask to restore."""
    before: set[int] = _signal.pthread_sigmask(_signal.SIG_BLOCK, _ENDING)
    return before


def restore_mask(mask: set[int]) -> None:
    """Put a mask back; what has waited is taken now."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)


def let_through() -> None:
    """Take no signal back from us, whatever the caller did: for a daemon and its helpers."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def die_of(number: int) -> int:
    """End as a program that does not catch the signal, so that a shell sees why."""
    restore(number)
    os.kill(os.getpid(), number)
    return 128 + number
