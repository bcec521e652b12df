"""The slirp4netns driver: what it can do, how it is called, when it is ready.

It runs in the caller's own namespaces and joins the holder's by pid for as long as it takes to
make tap0. Two pipes tie it to us:

    ready   it writes "1" once the network works, and closes; so does its death, at once, because
            we keep no copy of the writing end.
    exit    the writing end is held by supervisor and holder; when both are gone slirp4netns ends.
            Without this it would never end by itself, since its tap keeps the namespace alive.
"""

from __future__ import annotations

import os

from rootlessnet.drivers.target import Features
from rootlessnet.errors import Error
from rootlessnet.kernel import spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.drivers.options import Options
    from rootlessnet.drivers.target import Target

NAME = "slirp4netns"
TAP = "tap0"
INSTALL = "install slirp4netns 0.4.0 or newer (Debian: apt install slirp4netns)"

ESSENTIAL: tuple[str, ...] = ("--enable-sandbox", "--enable-seccomp")
"""Options without which it is less safe than it should be."""

HINTS: tuple[tuple[str, str], ...] = (
    ("/dev/net/tun", "as root: modprobe tun; chmod 0666 /dev/net/tun"),
    ("Device or resource busy", "another driver is already connected: rootlessnet status"),
)
"""What helps, by what it says when it cannot start."""

NOISE: tuple[str, ...] = (
    "sent tapfd",
    "received tapfd",
    "WARNING: Support for ",
    "Starting slirp",
    "* ",
)
"""How the lines begin that it writes at every start."""

FOLLOWS_RESOLV_CONF = True
"""It asks whatever server the host's resolv.conf names at the moment."""

CONGESTION_CONTROL = "reno"
"""TCP from the namespace ends at slirp4netns, on the same machine, and nothing is lost in between.
BBR, where it is the system's choice, would pace it, to half of the throughput."""

API_SOCKET = "slirp4netns.sock"
"""Where it is asked to forward ports, in the instance's directory, which is private: whoever can
connect can stop all traffic."""

_READY_FD = 3
_EXIT_FD = 4

# Substrings of `slirp4netns --help`, by which podman and RootlessKit tell what a version can do.
_FEATURES = (
    "--disable-host-loopback",
    "--mtu",
    "--enable-sandbox",
    "--enable-seccomp",
    "--cidr",
    "--outbound-addr",
    "--enable-ipv6",
    "--exit-fd",
    "--ready-fd",
    "--api-socket",
)


class Probe:
    """Asks the program once for its features and version, while the caller does other things."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._help = spawn.Output([path, "--help"])
            self._version = spawn.Output([path, "--version"])
        except OSError as error:
            raise Error(f"start {NAME}: {path}: {error.strerror}", hint=INSTALL) from error

    def cancel(self) -> None:
        """End what is still running of it."""
        self._help.cancel()
        self._version.cancel()

    def finish(self, seconds: float) -> Features:
        """Raises Error when the program gives no answer in time or is none that we know."""
        try:
            _, text = self._help.finish(seconds)
            _, version = self._version.finish(seconds)
        finally:
            self.cancel()
        found = frozenset(name for name in _FEATURES if name in text)
        if "--ready-fd" not in found:
            first = (text.strip() or "no output").splitlines()[0]
            raise Error(f"ask {self.path} for its features: {first}", hint=INSTALL)
        words = version.split()
        return Features(self.path, found, words[2] if len(words) > 2 else "unknown")


_OURS = b"rootlessnet.tools"


def is_wrapper(path: str) -> bool:
    """Whether the program is rootlessnet-slirp4netns, under whatever name it is installed."""
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError:
        return False
    return head.startswith(b"#!") and _OURS in head


def find(configured: str = "") -> str:
    """The path of the program: as configured (containers.conf network_cmd_path), else on PATH.

    rootlessnet-slirp4netns is never the answer: it is for podman and the like, and looks for the
    real one itself.
    """
    if configured and is_wrapper(spawn.find(configured) or ""):
        configured = ""
    path = next((one for one in spawn.find_all(configured or NAME) if not is_wrapper(one)), None)
    if "/" in configured and os.path.exists(configured) and (path is None or os.path.isdir(path)):
        raise Error(
            f"start {NAME}: network_cmd_path {configured} is not an executable file",
            hint="mend network_cmd_path in containers.conf",
        )
    if path is None:
        raise Error(f"start {NAME}: {configured or NAME} not found", hint=INSTALL)
    return path


def arguments(options: Options, features: Features, target: list[str]) -> list[str]:
    """The whole command line, in podman's order. Raises Error for an option it cannot do.

    target names the namespaces: a pid, or `--netns-type=path PATH`.
    """
    has = features.flags
    line = [features.path]
    if not options["allow_host_loopback"] and "--disable-host-loopback" in has:
        line.append("--disable-host-loopback")
    if "--mtu" in has:
        line.append(f"--mtu={options['mtu']}")
    if "--enable-sandbox" in has:
        line.append("--enable-sandbox")
    if "--enable-seccomp" in has:
        line.append("--enable-seccomp")
    if options["cidr"] != "10.0.2.0/24":
        _require("--cidr" in has, "cidr not supported", features)
        line.append(f"--cidr={options['cidr']}")
    if options["enable_ipv6"]:
        _require("--enable-ipv6" in has, "enable_ipv6 not supported", features)
        line.append("--enable-ipv6")
    if options["outbound_addr"]:
        _require("--outbound-addr" in has, "outbound_addr not supported", features)
        line.append(f"--outbound-addr={options['outbound_addr']}")
    if options["outbound_addr6"]:
        _require("--outbound-addr" in has, "outbound_addr6 not supported", features)
        _require(
            bool(options["enable_ipv6"]),
            "enable_ipv6=true is required for outbound_addr6",
            features,
        )
        line.append(f"--outbound-addr6={options['outbound_addr6']}")
    line += ["-c", "-r", str(_READY_FD)]
    if "--exit-fd" in has:
        line += ["-e", str(_EXIT_FD)]
    return [*line, *target, TAP]


_SUN_PATH = 108


def api_socket(path: str, features: Features) -> list[str]:
    """The arguments for an API socket. Raises Error when there cannot be one."""
    _require("--api-socket" in features.flags, "port_handler=slirp4netns not supported", features)
    if len(os.fsencode(path)) >= _SUN_PATH:
        raise Error(
            f"-o port_handler=slirp4netns: the path of its socket is too long: {path}",
            hint="set XDG_RUNTIME_DIR to a shorter one, or leave port_handler away",
        )
    return ["--api-socket", path]


def _require(supported: bool, message: str, features: Features) -> None:
    if not supported:
        raise Error(
            f"start {NAME}: {message}",
            hint=f"{features.path} is version {features.version}; 1.1.0 and newer can do all",
        )


def start(
    options: Options, features: Features, target: Target, exit_pipe: int, log: int
) -> tuple[int, int]:
    """Start it; its pid, and the reading end of the ready pipe, which the caller owns.

    exit_pipe is the reading end of the exit pipe; log takes stdout and stderr. Its sandbox mounts a
    tmpfs on /tmp: private mounts are needed where it does not get a mount namespace by joining
    another user namespace (slirp4netns pull request 153).
    """
    where = _where(target)
    if options["port_handler"] == NAME:
        where = [*api_socket(f"{target.directory}/{API_SOCKET}", features), *where]
    line = arguments(options, features, where)
    ready, write = os.pipe()
    try:
        pid = spawn.start(
            line,
            descriptors={1: log, 2: log, _READY_FD: write, _EXIT_FD: exit_pipe},
            private_mounts=target.same_userns,
        )
    except OSError as error:
        os.close(ready)
        raise Error(f"start {NAME}: {line[0]}", hint=INSTALL) from error
    except BaseException:
        os.close(ready)
        raise
    finally:
        os.close(write)
    return pid, ready


def _where(target: Target) -> list[str]:
    if target.same_userns:
        return ["--netns-type=path", f"/proc/{target.pid}/ns/net"]
    return [str(target.pid)]


def is_for(words: list[str], target: Target) -> bool:
    """Whether a process with this command line connects the target."""
    names = (str(target.pid), f"/proc/{target.pid}/ns/net")
    return len(words) > 2 and words[-1] == TAP and words[-2] in names
