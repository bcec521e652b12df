"""The resolv.conf inside: the driver's DNS server first, then the host's own, as podman writes it.

Of the host's servers those on loopback addresses are left out, as they do not exist inside; when
the host names only the stub of systemd-resolved or NetworkManager, their real lists are read.
Unlike podman we add public servers only when asked to.
"""

from __future__ import annotations

import os

from rootlessnet.errors import Error

HOST_FILE = "/etc/resolv.conf"
_RESOLVED_FILE = "/run/systemd/resolve/resolv.conf"
_NETWORK_MANAGER_FILE = "/run/NetworkManager/no-stub-resolv.conf"
_MAX_LINKS = 40
_FALLBACK = ("8.8.8.8", "8.8.4.4")
_FALLBACK6 = ("2001:4860:4860::8888", "2001:4860:4860::8844")


class Content:
    """What a resolv.conf(5) says: the last `search` (or `domain`) and `options` line win."""

    def __init__(self, text: str) -> None:
        self.nameservers: list[str] = []
        self.search: list[str] = []
        self.options: list[str] = []
        for line in text.splitlines():
            words = line.partition("#")[0].partition(";")[0].split()
            if len(words) < 2:
                continue
            if words[0] == "nameserver":
                self.nameservers.append(words[1])
            elif words[0] in ("search", "domain"):
                self.search = words[1:]
            elif words[0] == "options":
                self.options = words[1:]


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise Error("read the host's resolv.conf") from error


def host_content(root: str = "") -> Content:
    """The host's settings, from behind its stub resolver if it uses one."""
    content = Content(_read(root + HOST_FILE))
    better = {"127.0.0.53": _RESOLVED_FILE, "127.0.0.1": _NETWORK_MANAGER_FILE}
    if len(content.nameservers) == 1 and content.nameservers[0] in better:
        behind = _read(root + better[content.nameservers[0]])
        if behind:
            content = Content(behind)
    return content


def sources() -> list[str]:
    """The files on which the content depends, whether they exist or not: every name on the way from
    /etc/resolv.conf to the file, and the lists behind the stubs."""
    found = []
    path = HOST_FILE
    for _ in range(_MAX_LINKS):
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        found.append(path)
        try:
            path = os.path.join(os.path.dirname(path), os.readlink(path))
        except OSError:
            break
    return [*found, _RESOLVED_FILE, _NETWORK_MANAGER_FILE]


def usable(servers: list[str], ipv6: bool) -> list[str]:
    """The servers that can be reached from inside: no loopback, no zone, IPv6 only when on."""
    import ipaddress

    kept = []
    for server in servers:
        try:
            address = ipaddress.ip_address(server.partition("%")[0])
        except ValueError:
            continue
        if address.is_loopback or (address.version == 6 and (not ipv6 or "%" in server)):
            continue
        kept.append(server)
    return kept


def first_server() -> str:
    """The first IPv4 server that the host's file names, stub or not: a driver that reads the file
    once asks it for ever. Empty when there is none."""
    return next((name for name in Content(_read(HOST_FILE)).nameservers if ":" not in name), "")


def compose(
    host: Content, driver_dns: str, *, ipv6: bool, fallback: bool, outdated: bool = False
) -> str:
    """The text of the file inside. With outdated the driver asks a server that the host does not
    name any more, so it comes last."""
    servers = usable(host.nameservers, ipv6)
    if not servers and fallback:
        servers = [*_FALLBACK, *(_FALLBACK6 if ipv6 else ())]
    lines = []
    if host.search and host.search != ["."]:
        lines.append(f"search {' '.join(host.search)}")
    order = [*servers, driver_dns] if outdated else [driver_dns, *servers]
    lines += [f"nameserver {server}" for server in dict.fromkeys(order)]
    if host.options:
        lines.append(f"options {' '.join(host.options)}")
    return "\n".join(lines) + "\n"
