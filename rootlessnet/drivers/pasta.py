"""The pasta driver: what it can do, how it is called, when it is ready.

It runs in the foreground, so that it is a child of the supervisor, and joins the holder's user
namespace by pid as slirp4netns does. The addresses are those that slirp4netns gives; all of pasta's
ways to the host's loopback are closed unless they are asked for. Two things tie it to us:

    ready   its pid file is a fifo, which it writes once the network works
    exit    its stdin is the exit pipe, whose writing end is held by supervisor and holder. pasta
            never looks at it, and does not end by itself. But the pipe is in asynchronous mode with
            pasta as its owner (fcntl(2), F_SETOWN), so when the last writing end is closed the
            kernel itself sends it SIGKILL.

Where the network namespace belongs to our own user namespace (we are root, or inside `podman
unshare`), pasta cannot open /proc/PID/ns/net, as it has dropped the capabilities for that. There
the namespace is bound to a file in mounts of pasta's own, which end with it.
"""

from __future__ import annotations

import os

from rootlessnet.drivers.target import Features
from rootlessnet.errors import Error
from rootlessnet.kernel import files, libc, signals, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootlessnet.drivers.options import Options
    from rootlessnet.drivers.target import Target

NAME = "pasta"
TAP = "tap0"
INSTALL = "install passt 2023-03-09 or newer (Debian: apt install passt)"
ESSENTIAL: tuple[str, ...] = ()

HINTS: tuple[tuple[str, str], ...] = (
    ("tun socket", "as root: modprobe tun; chmod 0666 /dev/net/tun"),
    (
        "xternal interface not usable",
        "a passt older than 2024-11 does not start while the host has no default route: "
        "connect the host, or use --driver slirp4netns",
    ),
)
NOISE: tuple[str, ...] = (
    "Failed to send ",
    "No routable interface for IPv6",
    "No external routable",
)
"""An old one complains with each line that there is no syslog; and IPv6 may be missing."""

FOLLOWS_RESOLV_CONF = False
"""It reads the host's resolv.conf at its start, and asks the first server of then for ever."""

CONGESTION_CONTROL = ""
"""The system's choice. A pasta of 2023 drops segments, which BBR minds less than others."""

FIFO = "driver.ready"
NETNS = "driver.netns"

GATEWAY6 = "fd00::2"
ADDRESS6 = "fd00::100"
"""slirp4netns has the same network; there the guest chooses its address in it."""

_CLOSED = ("-t", "none", "-u", "none", "-T", "none", "-U", "none")
"""No ports either way: -T and -U are `auto` by default, which opens all of the host's loopback."""

# Asked for together, `pasta FLAG... --version`: one that knows them all ends with 0. Its version
# tells nothing, as distributions' builds are of "unknown version".
_NEEDED = ("--foreground", "--quiet", "--config-net", "--no-map-gw", "--no-netns-quit", *_CLOSED)
_OPTIONAL = {
    "--outbound": ("--outbound", "192.0.2.1"),
    "--outbound-if4": ("--outbound-if4", "lo"),
    "--outbound-if6": ("--outbound-if6", "lo"),
}
_IF_WANTED = "2023-03-09 and newer can do all"


class Probe:
    """Asks the program once for its features and version, while the caller does other things."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._running: dict[str, spawn.Output] = {}
        try:
            self._ask("version")
            self._ask("needed", *_NEEDED)
            for name, words in _OPTIONAL.items():
                self._ask(name, *words)
        except OSError as error:
            self.cancel()
            raise Error(f"start {NAME}: {path}: {error.strerror}", hint=INSTALL) from error

    def _ask(self, name: str, *words: str) -> None:
        self._running[name] = spawn.Output([self.path, *words, "--version"])

    def cancel(self) -> None:
        """End what is still running of it."""
        for output in self._running.values():
            output.cancel()

    def finish(self, seconds: float) -> Features:
        """Raises Error when the program gives no answer in time or is none that we know."""
        try:
            answers = {name: output.finish(seconds) for name, output in self._running.items()}
        finally:
            self.cancel()
        status, text = answers["needed"]
        version = answers["version"][1].split()
        if status != 0 or version[:1] not in (["pasta"], ["passt"]):
            first = (text.strip() or "no output").splitlines()[0]
            raise Error(f"ask {self.path} for its features: {first}", hint=INSTALL)
        known = frozenset(name for name in _OPTIONAL if answers[name][0] == 0)
        return Features(self.path, known, _version(version[1:]))


def _version(words: list[str]) -> str:
    """`2024_11_27.c0fbc7e`, or `unknown`, out of what follows the name."""
    return words[0] if words else "unknown"


def find(configured: str = "") -> str:
    """The path of the program: as configured (in a helper_binaries_dir), else on PATH."""
    path = spawn.find(configured or NAME)
    if path is None:
        raise Error(f"start {NAME}: {configured or NAME} not found", hint=INSTALL)
    return path


def arguments(options: Options, features: Features, target: list[str], fifo: str) -> list[str]:
    """The whole command line. Raises Error for an option it cannot do.

    target names the namespaces: a pid, or `--netns PATH`.
    """
    from rootlessnet.drivers.options import Addressing

    addressing = Addressing(str(options["cidr"]))
    line = [features.path, "--foreground", "--quiet", "--config-net", "--pid", fifo, "-I", TAP]
    line += ["-m", str(options["mtu"]), "-a", addressing.address, "-n", str(addressing.prefix)]
    line += ["-g", addressing.gateway, "--dns-forward", addressing.dns]
    if options["enable_ipv6"]:
        line += ["-a", ADDRESS6, "-g", GATEWAY6]
    else:
        line.append("-4")
    for key, interface in (
        ("outbound_addr", "--outbound-if4"),
        ("outbound_addr6", "--outbound-if6"),
    ):
        value = str(options[key])
        if not value:
            continue
        flag = "--outbound" if ":" in value or value[0].isdecimal() else interface
        if flag not in features.flags:
            raise Error(
                f"start {NAME}: {key} not supported",
                hint=f"{features.path} is version {features.version}; {_IF_WANTED}",
            )
        line += [flag, value]
    # It would end with the holder, which may be replaced, and look for it every second.
    line += [*_CLOSED, "--no-netns-quit"]
    if not options["allow_host_loopback"]:
        line.append("--no-map-gw")
    return [*line, *target]


def start(
    options: Options, features: Features, target: Target, exit_pipe: int, log: int
) -> tuple[int, int]:
    """Start it; its pid, and the reading end of its pid file, which the caller owns.

    exit_pipe is the reading end of the exit pipe; log takes stdout and stderr.
    """
    fifo = f"{target.directory}/{FIFO}"
    netns = f"{target.directory}/{NETNS}"
    where = [str(target.pid)]
    if target.same_userns:
        where = ["--netns", netns]
        if os.geteuid() == 0:
            where = ["--runas", "0", *where]  # it would become nobody
        os.close(files.open_regular(netns, os.O_CREAT | os.O_WRONLY))
    line = arguments(options, features, where, fifo)

    def prepare() -> None:
        _end_with_pipe(0)
        if target.same_userns:
            libc.mount(f"/proc/{target.pid}/ns/net", netns, flags=libc.MS_BIND)

    _remove(fifo)
    os.mkfifo(fifo, 0o600)
    ready = own_exit = -1
    try:
        ready = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        # Opened anew, as owner and mode belong to the open file and every driver has its own.
        own_exit = os.open(f"/proc/self/fd/{exit_pipe}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        pid = spawn.start(
            line,
            descriptors={0: own_exit, 1: log, 2: log},
            private_mounts=target.same_userns,
            prepare=prepare,
        )
    except BaseException:
        if ready >= 0:
            os.close(ready)
        raise
    finally:
        if own_exit >= 0:
            os.close(own_exit)
    return pid, ready


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _end_with_pipe(fd: int) -> None:
    """Have the kernel kill this process, whatever it executes, when the pipe is hung up."""
    import fcntl

    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETSIG, signals.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    # Nobody can hang up unseen before this: we have a copy of the writing end until exec.


def is_for(words: list[str], target: Target) -> bool:
    """Whether a process with this command line connects the target."""
    return "--config-net" in words and f"{target.directory}/{FIFO}" in words


def from_own_options(words: list[str], source: str) -> list[str]:
    """containers.conf's pasta_options, which are pasta's own, as KEY=VALUE. Raises Error.

    What cannot be said that way is refused: much of it would undo what the instance is.
    """
    pairs = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        key = _OWN_FLAGS.get(word)
        if key is not None:
            pairs += [key] if key else []
            continue
        if name not in _OWN_VALUES or not (equals or left):
            raise Error(
                f"{source}: {word} cannot be used for a shared network",
                hint=f"what can: {', '.join([*_OWN_VALUES, *_OWN_FLAGS])}",
            )
        if not equals:
            value = left.pop(0)
        key = _OWN_VALUES[name]
        if not key:
            if value != _OWN_FIXED[name]:
                raise Error(
                    f"{source}: {name} {value}: a shared network has {name} {_OWN_FIXED[name]}"
                )
            continue
        six = "6" if key == "outbound_addr" and ":" in value else ""
        pairs.append(f"{key}{six}={value}")
    return pairs


# Where there is nothing after the option it is what we do anyway.
_OWN_FLAGS = {
    "--map-gw": "allow_host_loopback=true",
    "--no-map-gw": "allow_host_loopback=false",
    "-4": "enable_ipv6=false",
    "--ipv4-only": "enable_ipv6=false",
    "--config-net": "",
    "-q": "",
    "--quiet": "",
    "-f": "",
    "--foreground": "",
}
_OWN_VALUES = {
    "-m": "mtu",
    "--mtu": "mtu",
    "-o": "outbound_addr",
    "--outbound": "outbound_addr",
    "--outbound-if4": "outbound_addr",
    "--outbound-if6": "outbound_addr6",
    **dict.fromkeys(("-t", "-u", "-T", "-U", "-I"), ""),
    **dict.fromkeys(("--tcp-ports", "--udp-ports", "--tcp-ns", "--udp-ns", "--ns-ifname"), ""),
}
_OWN_FIXED = dict.fromkeys(_OWN_VALUES, "none") | {"-I": TAP, "--ns-ifname": TAP}
