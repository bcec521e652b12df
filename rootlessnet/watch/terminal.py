"""The user's terminal while a program shows one screen after the other, and its state before.

Whatever ends the program, but SIGKILL, gives the terminal back as it was: the alternate screen is
left, the cursor is shown, and keys are echoed again.
"""

from __future__ import annotations

import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rich.console import Console


class Ended(BaseException):
    """A signal that ends the program has come."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Terminal:
    """The alternate screen, and keys as they are pressed. To be used by `with`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._saved: list[Any] | None = None
        self._handlers: dict[int, Any] = {}
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._is_stopped = False
        self._wakeup_before = -1
        self._ended_by = 0

    def __enter__(self) -> Terminal:
        import signal

        for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._handlers[ending] = signal.signal(ending, self._end)
        for waking in (signal.SIGWINCH, signal.SIGTSTP):
            self._handlers[waking] = signal.signal(waking, self._wake)
        # A signal that comes just before the wait begins would not end it otherwise.
        self._wakeup_before = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        try:
            self._take()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        import signal

        # No signal may cut this short; the first one has ended the program already.
        for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(ending, signal.SIG_IGN)
        try:
            self._give_back()
        except OSError:
            pass  # the terminal is gone
        finally:
            signal.set_wakeup_fd(self._wakeup_before)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _end(self, number: int, frame: object) -> None:
        # An exception out of a handler is lost where Python cannot raise it, as in __del__.
        self._ended_by = number
        raise Ended(number)

    def _wake(self, number: int, frame: object) -> None:
        import signal

        # The wait ends by itself, as every signal is told through the pipe.
        if number == signal.SIGTSTP:
            self._is_stopped = True

    def _take(self) -> None:
        import termios
        import tty

        if os.isatty(0):
            self._saved = termios.tcgetattr(0)
            tty.setcbreak(0, termios.TCSADRAIN)
        self._console.set_alt_screen(True)
        self._console.show_cursor(False)

    def _give_back(self) -> None:
        import termios

        if self._saved is not None:
            saved, self._saved = self._saved, None
            try:
                termios.tcsetattr(0, termios.TCSADRAIN, saved)
            except termios.error:
                pass  # it has been hung up
        self._console.show_cursor(True)
        self._console.set_alt_screen(False)

    def show(self, renderable: Any) -> None:
        """Show it in place of what is there, cut to the size of the terminal."""
        from rich.control import Control
        from rich.screen import Screen

        self._console.control(Control.home())
        self._console.print(Screen(renderable), end="")

    def wait(self, seconds: float) -> str:
        """Wait for a key, a new size or the time to be over; the keys pressed, often none."""
        deadline = time.monotonic() + seconds
        watched = [self._wake_read, *([0] if self._saved is not None else [])]
        left = seconds
        while left > 0:
            ready, _, _ = select.select(watched, [], [], left)
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
                if self._ended_by:
                    raise Ended(self._ended_by)
                if self._is_stopped:
                    self._stop()
                return ""
            if 0 in ready:
                keys = os.read(0, 64)
                if not keys:
                    watched.remove(0)  # hung up: the signal that tells it is on its way
                    continue
                return keys.decode(errors="replace")
            left = deadline - time.monotonic()
        return ""

    def _stop(self) -> None:
        """Ctrl-Z: to the shell with a terminal in order, and back."""
        import signal

        self._is_stopped = False
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()
