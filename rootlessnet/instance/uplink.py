"""The uplink: an instance's driver, started, adopted, and started again with back-off when it dies.

The supervisor watches `pidfd` and calls `ended`; when `retry_at` has come it calls `restart`.
"""

from __future__ import annotations

import os
import time

from rootlessnet.drivers import choice, launch
from rootlessnet.drivers.options import Addressing
from rootlessnet.errors import Error, reason
from rootlessnet.instance import resolvconf
from rootlessnet.instance.logfile import say
from rootlessnet.kernel import process, signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from rootlessnet.drivers.target import Features, Target
    from rootlessnet.instance.settings import Settings

_BACK_OFF = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_STABLE_SECONDS = 10.0
_END_SECONDS = 0.5
_STRAY_SECONDS = 1.0


class Uplink:
    """One driver at a time; pid is 0 and pidfd -1 while there is none."""

    def __init__(self, settings: Settings, log: int) -> None:
        self.driver = choice.get(settings.driver)
        self.addressing = Addressing(str(settings.options["cidr"]))
        self.pid = 0
        self.pidfd = -1
        self.asks = ""
        self.retry_at = 0.0
        self._settings = settings
        self._log = log
        self._version = "unknown"
        self._restarts = 0
        self._last_exit: str | None = None
        self._since = 0.0
        self._attempt = 0

    def connect(
        self,
        features: Features,
        target: Target,
        exit_pipe: int,
        seconds: float,
        waiting: int = -1,
        started: Callable[[int], None] = lambda pid: None,
    ) -> None:
        """Start the driver and wait until it is ready; started is told its pid in between.

        Raises Error, also when the other end of waiting hangs up.
        """
        self._version = features.version
        asks = resolvconf.first_server()
        self.pid = launch.connect(
            self.driver,
            self._settings.options,
            features,
            target,
            exit_pipe,
            self._log,
            seconds,
            waiting,
            started,
        )
        self.asks = asks
        self.pidfd = os.pidfd_open(self.pid)
        self._since = time.monotonic()

    def adopt(
        self,
        record: dict[str, Any],
        target: Target,
        exit_pipe: int,
        former: Target | None,
    ) -> None:
        """Take over the driver that a record of state.json names, or start another.

        former is the target with a holder that has gone, if it has. Then the driver has lost its
        exit pipe, and is about to end, if it is still there.
        """
        self._restarts = int(record["restarts"])
        self._last_exit = record.get("last_exit")
        self._version = str(record["version"])
        self.asks = str(record.get("asks", ""))
        try:
            self.pidfd = process.open_process(record["pid"], record["started"])
            if former is None:
                self.pid = int(record["pid"])
                return
            signals.send(self.pidfd, signals.SIGKILL)
            process.wait_for(self.pidfd, _STRAY_SECONDS)
            os.close(self.pidfd)
            self.pidfd = -1
            self._last_exit = "ended with supervisor and holder"
        except (ProcessLookupError, FileNotFoundError, TypeError):
            if record["pid"] is not None:
                self._last_exit = "ended while there was no supervisor"
        self._end_stray(former or target)
        self.restart(target, exit_pipe)

    def _end_stray(self, target: Target) -> None:
        """End a driver that is in no record, as the last supervisor was killed before it wrote one:
        it has tap0, so there cannot be another. Its command line tells."""
        for pid in process.all_pids():
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                continue
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    words = file.read().decode(errors="replace").split("\0")[:-1]
                if self.driver.is_for(words, target):
                    say(f"ending a {self.driver.NAME} that is in no record: {pid}")
                    signals.send(pidfd, signals.SIGKILL)
                    process.wait_for(pidfd, _STRAY_SECONDS)
            except OSError:
                continue
            finally:
                os.close(pidfd)

    def ended(self) -> None:
        """The driver has ended: take note, and say when the next one is due."""
        self._last_exit = process.reap(self.pid)
        say(f"{self.driver.NAME} {self.pid} {self._last_exit}")
        os.close(self.pidfd)
        self.pid, self.pidfd = 0, -1
        if time.monotonic() - self._since > _STABLE_SECONDS:
            self._attempt = 0
        self._schedule()

    def _schedule(self) -> None:
        pause = _BACK_OFF[min(self._attempt, len(_BACK_OFF) - 1)]
        self._attempt += 1
        self.retry_at = time.monotonic() + pause

    def restart(self, target: Target, exit_pipe: int) -> bool:
        """Start the driver again; False when it did not work, and is to be tried once more."""
        self.retry_at = 0.0
        self._restarts += 1
        try:
            probe = self.driver.Probe(self._settings.program)
            features = probe.finish(self._settings.timeout)
            self.connect(features, target, exit_pipe, self._settings.timeout)
        except (Error, OSError) as error:
            say(f"restart: {reason(error)}")
            self._schedule()
            return False
        say(f"{self.driver.NAME} restarted as {self.pid}")
        return True

    def asks_another(self) -> bool:
        """Whether the driver asks a name server that is not the host's any more."""
        return not self.driver.FOLLOWS_RESOLV_CONF and self.asks != resolvconf.first_server()

    def begin_again(self, why: str) -> None:
        """End the driver, so that a new one takes its place."""
        if self.pid:
            say(f"{self.driver.NAME} {why}: starting it again")
            signals.send(self.pidfd, signals.SIGTERM)

    def end(self) -> None:
        """End the driver for good."""
        if self.pid:
            signals.send(self.pidfd, signals.SIGTERM)
            if not process.wait_for(self.pidfd, _END_SECONDS):
                signals.send(self.pidfd, signals.SIGKILL)

    def record(self) -> dict[str, Any]:
        """What state.json says of it."""
        options = self._settings.options
        return {
            "name": self._settings.driver,
            "version": self._version,
            "program": self._settings.program,
            "pid": self.pid or None,
            "started": process.start_time(self.pid) if self.pid else None,
            "restarts": self._restarts,
            "asks": self.asks,
            "last_exit": self._last_exit,
            "options": options,
            "cidr": self.addressing.cidr,
            "gateway": self.addressing.gateway,
            "dns": self.addressing.dns,
            "address": self.addressing.address,
            "mtu": options["mtu"],
            "ipv6": options["enable_ipv6"],
        }
