"""Inside a podman-machine virtual machine: its gvproxy forwards a port of the real host only when
it is told to.

Which machine this is podman leaves in a file, as its images do: empty or the name of the
hypervisor. WSL has no gvproxy; a containers.conf with machine_enabled is an image that is older
than the file.
"""

from __future__ import annotations

from rootlessnet.errors import Error, reason
from rootlessnet.instance.logfile import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from rootlessnet.ports.publication import Publication
    from rootlessnet.ports.rules import Rule

MARKER = "/etc/containers/podman-machine"
GATEWAY = "gateway.containers.internal"
_SECONDS = 3.0
_WITHOUT = ("wsl",)


def is_gvproxy() -> bool:
    """Whether published ports have to be announced."""
    try:
        with open(MARKER, encoding="utf-8") as file:
            return file.readline().strip() not in _WITHOUT
    except OSError:
        pass
    from rootlessnet.config import containers, toml

    value, _ = toml.last_string(containers.conf_files(), "engine", "machine_enabled")
    return value == "true"


def announce(publications: Sequence[Publication]) -> list[str]:
    """Tell the host of this virtual machine, if it is podman's; what there is to warn of."""
    if not is_gvproxy():
        return []
    try:
        expose([publication.rule for publication in publications])
    except (Error, OSError) as error:
        text = f"not announced to the host of this virtual machine: {reason(error)}"
        say(f"warning: {text}")
        return [text]
    for publication in publications:
        publication.exposed = True
    return []


def withdraw(publications: Sequence[Publication]) -> None:
    """Tell it that those that were announced are no more."""
    chosen = [publication.rule for publication in publications if publication.exposed]
    if chosen:
        try:
            unexpose(chosen)
        except (Error, OSError) as error:
            say(f"withdraw ports from the host of this virtual machine: {reason(error)}")


def expose(rules: Sequence[Rule]) -> None:
    """Announce all of them, or none. Raises Error or OSError."""
    done: list[tuple[Rule, int]] = []
    try:
        for rule in rules:
            for number in range(rule.count):
                _post("expose", rule, number)
                done.append((rule, number))
    except (Error, OSError):
        for rule, number in done:
            _post("unexpose", rule, number)
        raise


def unexpose(rules: Sequence[Rule]) -> None:
    """Withdraw them; one failure does not keep the others. Raises the last."""
    failed: BaseException | None = None
    for rule in rules:
        for number in range(rule.count):
            try:
                _post("unexpose", rule, number)
            except (Error, OSError) as error:
                failed = error
    if failed:
        raise failed


def _post(what: str, rule: Rule, number: int) -> None:
    import http.client
    import json

    port = rule.host_port + number
    address = rule.host_ip or "0.0.0.0"
    if rule.version == 6:
        address = f"[{address}]"
    body = {"local": f"{address}:{port}", "protocol": rule.proto}
    connection = http.client.HTTPConnection(GATEWAY, 80, timeout=_SECONDS)
    try:
        connection.connect()
        if what == "expose":
            # Our own address on the way to it is the one by which it reaches us.
            own = connection.sock.getsockname()[0]
            body["remote"] = f"[{own}]:{port}" if ":" in own else f"{own}:{port}"
        connection.request(
            "POST",
            f"/services/forwarder/{what}",
            json.dumps(body),
            {"Content-Type": "application/json"},
        )
        answer = connection.getresponse()
        text = answer.read(4096).decode(errors="replace").strip()
        if answer.status != 200:
            raise Error(f"gvproxy: {what} {body['local']}: {text or answer.reason}")
    except http.client.HTTPException as error:
        raise Error(f"gvproxy gives no sensible answer: {error}") from None
    finally:
        connection.close()
