"""What the forwarder knows of its instance: its addresses, options and driver."""

from __future__ import annotations

import time

from rootlessnet.errors import Error
from rootlessnet.instance import state
from rootlessnet.ports.target import PRESERVE, Target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.instance.paths import Instance

_RETRY = 0.25


class Running:
    """The running instance. own is where rules lead that have no other target; driver is the pid,
    0 while there is none. due is when to `read` again, by the monotonic clock; 0 for not."""

    def __init__(self, instance: Instance) -> None:
        """Raises Error when its state cannot be read."""
        self._instance = instance
        self.due = 0.0
        self.read()

    def read(self) -> None:
        """Look again. Raises Error, and all is as it was then."""
        self.due = 0.0
        record = state.read(self._instance)
        if record is None:
            raise Error("the state of the instance cannot be read")
        driver = record["driver"]
        self.source_ip = str(driver["options"].get("source_ip", PRESERVE))
        self.from_inside = bool(driver["options"].get("allow_ports_from_inside", False))
        self.port_handler = str(driver["options"].get("port_handler", "rootlesskit"))
        self.own = Target(str(driver["address"]), self._address6(), local=True)
        self.driver = int(driver["pid"] or 0)
        if driver["ipv6"] and not self.own.v6:
            # The router tells it in a moment.
            self.due = time.monotonic() + _RETRY

    def _address6(self) -> str:
        """The IPv6 address of the driver's interface."""
        import _socket

        holder = state.read_holder(self._instance)
        try:
            with open(
                f"/proc/{holder.pid if holder else 0}/net/if_inet6", encoding="ascii"
            ) as file:
                for line in file:
                    digits, _, _, scope, flags, name = line.split()
                    if name == "tap0" and scope == "00" and not int(flags, 16) & 0x40:
                        return _socket.inet_ntop(_socket.AF_INET6, bytes.fromhex(digits))
        except (OSError, ValueError):
            pass
        return ""
