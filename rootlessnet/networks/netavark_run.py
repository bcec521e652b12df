"""Attach containers to networks with netavark, and detach them.

netavark runs inside the instance, with its files in `work`. What this module knows about it (1.4 to
2.1):

- A failed setup leaves things behind, so a teardown follows it always.
- It takes a container's id out of aardvark's file by looking for it as a part of a line. So it gets
  a hash instead of the id; the names that are served stay the user's.
- A teardown gives up half way where the namespace or the interface is gone: bridge and firewall
  rules would stay. Then it gets a new namespace with an interface of that name in it, to remove
  that instead.
- aardvark-dns inherits its descriptors, so it gets none.
- Where systemd-run is on PATH, aardvark-dns is started as a unit of its own, and slowly; so PATH
  has what netavark itself needs, and networks.aardvark moves the server to the instance's scope.
- Before 2.0 several networks are set up in any order. So it is called for each, and the first one
  is the first in the container too. (2.0 brought lists with an order; all versions take the map.)
"""

from __future__ import annotations

import os

from rootlessnet.config import network as config
from rootlessnet.errors import Error, Failures, debug
from rootlessnet.kernel import links, netns, process, spawn
from rootlessnet.networks import bridge
from rootlessnet.networks.attachment import hashed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from rootlessnet.networks.attachment import Attachment, Container, Status

NAME = "netavark"
_AARDVARK = "aardvark-dns"
_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
_PATIENCE = 60.0


def setup(container: Container, work: str) -> dict[str, Status]:
    """Attach the container to all its networks; nothing is left attached when it raises."""
    _prepare(work)
    try:
        found: dict[str, Status] = {}
        for attachment in container.attachments:
            text = _run("setup", container, [attachment], container.netns, work)
            found[attachment.network.name] = _parse(text, attachment.network.name)
        return found
    except BaseException:
        _clear(container, work)
        raise


def teardown(container: Container, work: str) -> None:
    """Detach it from all its networks, also where namespace or interface is gone.

    Every step is done; raises Failures for those in vain.
    """
    _prepare(work)
    present: dict[str, links.Interface] = {}
    failed: list[BaseException] = []
    if container.netns:
        try:
            present = _interfaces(container.netns)
        except OSError as error:
            failed.append(error)
    here = [each for each in container.attachments if each.interface in present]
    gone = [each for each in container.attachments if each.interface not in present]
    if here:
        try:
            _run("teardown", container, here, container.netns, work)
        except (Error, OSError) as error:
            failed.append(error)
    if gone:
        try:
            _with_stand_in(container, gone, work)
        except (Error, OSError) as error:
            failed.append(error)
    if failed:
        raise Failures(f"detach container {container.id}", failed)


def reload(container: Container, work: str) -> dict[str, Status]:
    """Attach it anew, so that firewall rules are there again: with the addresses that it has, and
    with the MAC addresses in static_mac.

    netavark has no other way, nor has podman. What cannot be taken down may be missing already.
    """
    try:
        teardown(container, work)
    except Error as error:
        debug(str(error))
    return setup(container, work)


def _clear(container: Container, work: str) -> None:
    try:
        teardown(container, work)
    except (Error, OSError) as error:
        debug(str(error))


def _prepare(work: str) -> None:
    from rootlessnet.networks import aardvark

    os.makedirs(work, mode=0o700, exist_ok=True)
    aardvark.forget_dead(work)


def _interfaces(path: str) -> dict[str, links.Interface]:
    fd = netns.open_path(path)
    try:
        return links.all_of(fd)
    finally:
        os.close(fd)


def _with_stand_in(container: Container, attachments: list[Attachment], work: str) -> None:
    """Tear down by means of a namespace made for it."""
    from rootlessnet.devices import netlink

    fd = netns.make()
    try:
        with netlink.Netlink(fd) as inside:
            for attachment in attachments:
                message = netlink.messages().ifinfmsg()
                message["attrs"] = [
                    ("IFLA_IFNAME", attachment.interface),
                    ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "veth")]}),
                ]
                inside.request(
                    message, netlink.RTM_NEWLINK, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
                )
        _run("teardown", container, attachments, f"/proc/{os.getpid()}/fd/{fd}", work)
    finally:
        os.close(fd)


def options(container: Container, attachments: Iterable[Attachment]) -> dict[str, Any]:
    """What netavark reads: podman's NetworkOptions."""
    networks: dict[str, Any] = {}
    info: dict[str, Any] = {}
    for attachment in attachments:
        network = attachment.network
        wanted: dict[str, Any] = {"interface_name": attachment.interface}
        if attachment.addresses:
            # By position: one for each subnet.
            wanted["static_ips"] = attachment.addresses
        if attachment.static_mac:
            wanted["static_mac"] = attachment.static_mac
        aliases = list(attachment.aliases)
        if container.hostname and container.hostname not in (container.name, *aliases):
            aliases.append(container.hostname)
        if aliases:
            wanted["aliases"] = aliases
        networks[network.name] = wanted
        info[network.name] = network.document()
        mtu = bridge.chosen_mtu(network)
        if mtu:
            info[network.name]["options"] = {**network.options, "mtu": str(mtu)}
    found: dict[str, Any] = {
        "container_id": hashed(container.id),
        "container_name": container.name,
        "networks": networks,
        "network_info": info,
    }
    if container.hostname:
        found["container_hostname"] = container.hostname
    if container.dns_servers:
        found["dns_servers"] = container.dns_servers
    mappings = [each for item in container.port_mappings for each in _single(item)]
    if mappings:
        found["port_mappings"] = mappings
    return found


def _single(mapping: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """A mapping for each of its protocols: netavark takes one, and none is an error."""
    for protocol in str(mapping.get("protocol") or "tcp").split(","):
        yield {
            "container_port": mapping["container_port"],
            "host_ip": mapping.get("host_ip") or "",
            "host_port": mapping["host_port"],
            "protocol": protocol.strip(),
            "range": mapping.get("range") or 1,
        }


def _run(
    action: str,
    container: Container,
    attachments: list[Attachment],
    path: str,
    work: str,
) -> str:
    """Run netavark to its end; what it printed. Raises Error."""
    import json

    program = config.find_helper(NAME)
    if not program:
        raise Error(f"{action} networks: {NAME} is not in {' '.join(config.helper_dirs())}")
    argv = [program, "--config", work, "--rootless=true"]
    server = config.find_helper(_AARDVARK)
    if server:
        argv.append(f"--aardvark-binary={server}")
    environment = {**os.environ, "PATH": _PATH, "RUST_LOG": f"{NAME}=error"}
    question = json.dumps(options(container, attachments)).encode()
    status, answer, complaint = _call([*argv, action, path], environment, question)
    debug(f"{NAME} {action} {container.id}: status {status}")
    if status:
        raise Error(f"{NAME}{_code(status)}: {_reason(answer, complaint)}")
    return answer


def _code(status: int) -> str:
    return f" (exit code {status})" if status > 0 else f" (signal {-status})"


def _call(argv: list[str], environment: dict[str, str], question: bytes) -> tuple[int, str, str]:
    """Status, stdout and stderr. All three are files: nobody who inherited one can hold us up."""
    files = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("in", "out", "err")]
    try:
        os.write(files[0], question)
        os.lseek(files[0], 0, os.SEEK_SET)
        pid = spawn.start(argv, descriptors=dict(enumerate(files)), environment=environment)
        pidfd = os.pidfd_open(pid)
        try:
            if not process.wait_for(pidfd, _PATIENCE):
                os.kill(pid, 9)
                os.waitpid(pid, 0)
                raise Error(f"run {argv[0]}: it did not end within {_PATIENCE:g} s")
        finally:
            os.close(pidfd)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out, err = (os.pread(fd, 1 << 20, 0).decode(errors="replace") for fd in files[1:])
        return status, out, err
    except OSError as error:
        raise Error(f"run {argv[0]}") from error
    finally:
        for fd in files:
            os.close(fd)


def _reason(answer: str, complaint: str) -> str:
    """Its own words: JSON on stdout, or, after a panic or a wrong option, lines on stderr."""
    import json

    try:
        return str(json.loads(answer)["error"])
    except (ValueError, KeyError, TypeError):
        lines = [line.strip() for line in complaint.splitlines() if line.strip()]
        return "; ".join(lines[:3]) or "it said nothing"


def _parse(text: str, network: str) -> Status:
    import json

    try:
        return dict(json.loads(text)[network])
    except (ValueError, TypeError, KeyError):
        shown = f"{NAME}: its answer about network {network} makes no sense: {text[:200]!r}"
        raise Error(shown) from None
