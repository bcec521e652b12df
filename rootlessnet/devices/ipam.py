"""IPAM plugins: another plugin decides about addresses, ours applies them.

The delegate gets our standard input and environment whole, with CNI_COMMAND replaced. How long it
may take is the runtime's to decide: a DHCP server needs its time. When we are killed meanwhile it
runs on, and what it gives is released by the next ADD or DEL.
"""

from __future__ import annotations

import os

from rootlessnet.devices import cni_exec
from rootlessnet.devices.cni_plugin import INTERNAL, CniError, Request, go_text, quote, unexpected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def kind(config: dict[str, Any]) -> str:
    """The type of the IPAM plugin; empty when there is none."""
    ipam = config.get("ipam")
    if ipam is None:
        return ""
    if not isinstance(ipam, dict):
        what = unexpected(ipam, "Go struct field NetConf.ipam", "types.IPAM")
        raise CniError(INTERNAL, f"failed to load netconf: {what}")
    value = ipam.get("type")
    if value is not None and not isinstance(value, str):
        what = unexpected(value, "Go struct field IPAM.ipam.type", "string")
        raise CniError(INTERNAL, f"failed to load netconf: {what}")
    return value or ""


def find(request: Request, plugin: str) -> str:
    """Where the plugin is; raises CniError."""
    directories = [each for each in request.path.split(":") if each]
    if "/" in plugin:
        raise CniError(INTERNAL, f"invalid plugin name: {plugin}")
    path = cni_exec.find(plugin, directories)
    if path is not None:
        return path
    shown = " ".join(directories)
    raise CniError(INTERNAL, f"failed to find plugin {quote(plugin)} in path [{shown}]")


def delegate(request: Request, plugin: str, command: str) -> Any:
    """Run the plugin; what it printed as JSON, None for nothing. Raises CniError."""
    import json

    path = find(request, plugin)
    environment = {**os.environ, "CNI_COMMAND": command}
    try:
        status, output, complaint = cni_exec.execute(path, environment, request.stdin)
    except OSError as e:
        raise CniError(INTERNAL, f"fork/exec {path}: {go_text(e)}") from e
    if status != 0:
        raise _failure(status, output, complaint)
    if complaint:
        os.write(2, complaint)
    if not output.strip():
        return None
    try:
        return json.loads(output)
    except ValueError as e:
        text = output.decode(errors="replace")
        raise CniError(INTERNAL, f"the result of {plugin} is not JSON: {quote(text)}") from e


def _failure(status: int, output: bytes, complaint: bytes) -> CniError:
    import json

    if not output:
        if complaint:
            text = quote(complaint.decode(errors="replace"))
            return CniError(INTERNAL, f"netplugin failed: {text}")
        how = f"exit status {status}" if status > 0 else f"signal {-status}"
        return CniError(INTERNAL, f"netplugin failed with no error message: {how}")
    try:
        document = json.loads(output)
        code, message = document.get("code") or INTERNAL, document["msg"]
        details = document.get("details") or ""
        if isinstance(code, int) and isinstance(message, str) and isinstance(details, str):
            return CniError(code, message, details)
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    text = quote(output.decode(errors="replace"))
    return CniError(INTERNAL, f"netplugin failed but error parsing its diagnostic message {text}")
