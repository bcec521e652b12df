"""Which device a host-device configuration means, and whether it is one for user space (DPDK).

A device is named by the first of these that is there: device, hwaddr, kernelpath, pciBusID. The
runtime's deviceID outranks pciBusID; it is a device on the PCI bus or on the auxiliary bus.
"""

from __future__ import annotations

import os

from rootlessnet.devices.cni_plugin import INTERNAL, CniError, go_text, quote, unexpected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.devices.links import Link, Links

_PCI = "/sys/bus/pci/devices"
_AUXILIARY = "/sys/bus/auxiliary/devices"
_USER_SPACE_DRIVERS = ("vfio-pci", "uio_pci_generic", "igb_uio")
_MAC_LENGTHS = (6, 8, 20)
_MAC_CHARACTERS = frozenset("0123456789abcdefABCDEF:-.")


class Selector:
    """The device that a configuration asks for."""

    def __init__(self, config: dict[str, Any], *, lenient: bool = False) -> None:
        """Read the configuration; raises CniError.

        When lenient, a device that sysfs does not know any more is no failure: for DEL, which has
        to work when the device is gone.
        """
        self.device = _string(config, "device")
        self.hwaddr = _string(config, "hwaddr")
        self.kernelpath = _string(config, "kernelpath")
        self.pci = _string(config, "pciBusID")
        self.auxiliary = ""
        self.is_for_user_space = False
        runtime = config.get("runtimeConfig")
        if runtime is not None and not isinstance(runtime, dict):
            what = unexpected(runtime, "Go struct field NetConf.runtimeConfig", "object")
            raise CniError(INTERNAL, f"failed to load netconf: {what}")
        device_id = _string(runtime or {}, "deviceID", "runtimeConfig.deviceID")
        if device_id:
            self._use_device_id(device_id, lenient)
        if not any((self.device, self.hwaddr, self.kernelpath, self.pci, self.auxiliary)):
            raise CniError(
                INTERNAL, 'specify either "device", "hwaddr", "kernelpath" or "pciBusID"'
            )
        if self.pci:
            self._look_at_driver(lenient)

    def _use_device_id(self, device_id: str, lenient: bool) -> None:
        if os.path.exists(_join(_PCI, device_id)):
            self.pci = device_id
        elif os.path.exists(_join(_AUXILIARY, device_id)):
            self.pci = ""
            self.auxiliary = device_id
        elif lenient:
            # It names the parent of the link still, on whichever bus it was.
            self.auxiliary = device_id
        else:
            raise CniError(
                INTERNAL, f"runtime config DeviceID {device_id} not found or unsupported"
            )

    def _look_at_driver(self, lenient: bool) -> None:
        try:
            driver = os.path.realpath(f"{_join(_PCI, self.pci)}/driver", strict=True)
        except OSError as e:
            if lenient:
                return
            path = os.fsdecode(e.filename)
            message = f"error with host device: lstat {path}: {go_text(e)}"
            raise CniError(INTERNAL, message) from e
        self.is_for_user_space = os.path.basename(driver) in _USER_SPACE_DRIVERS

    def find(self, links: Links) -> Link:
        """The device on the host; raises CniError."""
        try:
            if self.device:
                link = links.get(self.device)
            elif self.hwaddr:
                return self._find_hwaddr(links)
            else:
                link = links.get(_first(self._directory()))
            if link is None:
                raise CniError(INTERNAL, "Link not found")
        except CniError as e:
            raise CniError(INTERNAL, f"failed to find host device: {e.message}") from e
        return link

    def means(self, link: Link, name: str) -> bool:
        """Whether a link, wherever it is, is the device; name is what it was called on the host."""
        if self.device:
            return self.device == name or self.device in link.altnames
        if self.hwaddr:
            return parse_mac(self.hwaddr) == parse_mac(link.mac)
        if link.parent and link.parent == os.path.basename(
            self.kernelpath or self.pci or self.auxiliary
        ):
            return True
        try:
            return name in os.listdir(self._directory())
        except (OSError, CniError):
            return False

    def _find_hwaddr(self, links: Links) -> Link:
        wanted = parse_mac(self.hwaddr)
        if wanted is None:
            text = f"address {self.hwaddr}: invalid MAC address"
            raise CniError(INTERNAL, f"failed to parse MAC address {quote(self.hwaddr)}: {text}")
        for link in links.all():
            if parse_mac(link.mac) == wanted:
                return link
        raise CniError(INTERNAL, "failed to find physical interface")

    def _directory(self) -> str:
        """Where sysfs has the names of the device's links; raises CniError."""
        if self.kernelpath:
            # Normal first: /sys/devices/../../etc does not begin with /sys/devices.
            path = os.path.normpath(self.kernelpath)
            if not path.startswith("/sys/devices/"):
                text = "must be absolute and begin with /sys/devices/"
                raise CniError(INTERNAL, f"kernel device path {quote(self.kernelpath)} {text}")
            return f"{path}/net"
        if self.auxiliary:
            return f"{_join(_AUXILIARY, self.auxiliary)}/net"
        device = _join(_PCI, self.pci)
        if os.path.lexists(f"{device}/net"):
            return f"{device}/net"
        try:
            below = sorted(os.listdir(device))
        except OSError:
            below = []
        for name in below:
            if name.startswith("virtio") and os.path.lexists(f"{device}/{name}/net"):
                return f"{device}/{name}/net"
        raise CniError(INTERNAL, f"no net directory under pci device {self.pci}")


def parse_mac(text: str) -> bytes | None:
    """The bytes of a hardware address in any of the usual spellings; None for anything else."""
    if not text or not _MAC_CHARACTERS.issuperset(text):
        return None
    separator, digits = (".", 4) if "." in text else ("-", 2) if "-" in text else (":", 2)
    parts = text.split(separator)
    if any(len(part) != digits or ":" in part or "-" in part for part in parts):
        return None
    packed = bytes.fromhex("".join(parts))
    return packed if len(packed) in _MAC_LENGTHS else None


def _join(directory: str, name: str) -> str:
    """The path of a device on a bus; a name with a slash in it is one that does not exist."""
    return f"{directory}/{name if '/' not in name and name not in ('.', '..') else '-'}"


def _first(directory: str) -> str:
    try:
        entries = sorted(os.listdir(directory))
    except OSError as e:
        reason = quote(f"open {directory}: {go_text(e)}")
        raise CniError(INTERNAL, f"failed to read directory {directory}: {reason}") from e
    if not entries:
        raise CniError(INTERNAL, f"failed to find network device in path {directory}")
    return entries[0]


def _string(config: dict[str, Any], key: str, shown: str = "") -> str:
    value = config.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        what = unexpected(value, f"Go struct field NetConf.{shown or key}", "string")
        raise CniError(INTERNAL, f"failed to load netconf: {what}")
    return value
