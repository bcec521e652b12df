"""The part of the doctor that is about container networks and published ports: other programs.

None of them is needed for `enter`, so what is missing is a warning that says what will not work.
"""

from __future__ import annotations

from rootlessnet.cli.finding import OK, WARNING, Finding
from rootlessnet.errors import Error, hint, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_PLUGINS = ("bridge", "host-local", "portmap", "firewall", "tuning")
"""What a network that podman or we make with CNI is set up by."""


def network_backend() -> Iterator[Finding]:
    """Which of podman's backends sets networks up, and its programs."""
    from rootlessnet.networks import backend, netavark

    name = "network backend"
    try:
        choice = backend.choose()
    except Error as error:
        advice = hint(error)
        if f'could not find "{netavark.NAME}"' in reason(error):
            yield from _netavark()
        else:
            yield Finding(name, WARNING, f"no container networks: {reason(error)}", advice)
        return
    yield Finding(name, OK, f"{choice.name}: {choice.reason}")
    if choice.name == netavark.NAME:
        yield from _netavark()
    else:
        yield from _cni()


def _netavark() -> Iterator[Finding]:
    yield _helper("netavark", "container networks")
    yield _helper("aardvark-dns", "containers to find each other by name")
    yield _program("iptables", "container networks (netavark before 2.0)", "iptables")


def _cni() -> Iterator[Finding]:
    from rootlessnet.config import network
    from rootlessnet.networks.cni_plugins import PluginError, Plugins

    name = "CNI plugins"
    directories = network.cni_plugin_dirs()
    where = " ".join(directories)
    plugins = Plugins(directories, {}, 5)
    paths, missing, spoken = [], [], []
    for kind in _PLUGINS:
        try:
            paths.append(plugins.find(kind))
            spoken.append(max(plugins.versions(kind), key=_version))
        except PluginError as error:
            missing.append(f"{kind} ({reason(error)})")
        except (Error, ValueError):
            missing.append(kind)
    if missing:
        text = f"not usable: {', '.join(missing)}; looked for in {where}; needed for "
        yield Finding(
            name, WARNING, f"{text}container networks", _install("containernetworking-plugins")
        )
    else:
        found = dict.fromkeys(path.rpartition("/")[0] for path in paths)
        least = min(spoken, key=_version)
        text = f"{' '.join(_PLUGINS)} in {' '.join(found)}, specification {least}"
        yield Finding(name, OK, text)
    yield _program("iptables", "container networks", "iptables")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdecimal())


def published_ports() -> Iterator[Finding]:
    """What keeps the client's address where the kernel alone cannot."""
    yield _program(
        "nft", "servers in containers, or of UDP, to see the client's address", "nftables"
    )


def _helper(name: str, needed: str) -> Finding:
    from rootlessnet.config import network

    path = network.find_helper(name)
    if path:
        return _asked(name, path, needed, name)
    return _missing(name, network.helper_dirs(), needed, name)


def _program(name: str, needed: str, package: str) -> Finding:
    import os

    from rootlessnet.kernel import spawn

    path = spawn.find(name)
    if path:
        return _asked(name, path, needed, package)
    directories = os.environ.get("PATH", os.defpath).split(":")
    return _missing(name, dict.fromkeys([*directories, "/usr/sbin", "/sbin"]), needed, package)


def _asked(name: str, path: str, needed: str, package: str) -> Finding:
    """Whether it runs, and its version, as it says it itself."""
    from rootlessnet.kernel import spawn

    try:
        status, text = spawn.run([path, "--version"])
    except (Error, OSError) as error:
        status, text = 1, reason(error)
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if status:
        said = " ".join(lines[0]) if lines else f"status {status}"
        text = f"{path} does not run: {said}; needed for {needed}"
        return Finding(name, WARNING, text, _install(package))
    # "netavark 1.4.0", "nftables v1.0.6 (Lester Gooch #5)", after what else it has to say.
    version = next((words[1] for words in lines if words[0].startswith(name)), "unknown")
    return Finding(name, OK, f"{path}, version {version.removeprefix('v')}")


def _missing(name: str, where: Iterable[str], needed: str, package: str) -> Finding:
    text = f"not in {' '.join(where)}; needed for {needed}"
    return Finding(name, WARNING, text, _install(package))


def _install(package: str) -> str:
    return f"sudo apt install {package}"


CHECKS = (network_backend, published_ports)
