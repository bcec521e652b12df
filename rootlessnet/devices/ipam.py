"""IPAM plugins: another plugin decides about addresses, ours applies them.

The delegate gets our standard input and environment whole, with CNI_COMMAND replaced. How long it
may take is the runtime's to decide: a DHCP server needs its time. When we are killed meanwhile it
runs on, and what it gives is released by the next ADD or DEL.
"""

from __future__ import annotations

import errno
import os
import stat

from rootlessnet.devices.cni_plugin import INTERNAL, CniError, Request, go_text, quote, unexpected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_BUSY_ATTEMPTS = 5
_BUSY_SECONDS = 1.0


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
    for directory in directories:
        path = os.path.join(directory, plugin)
        try:
            if stat.S_ISREG(os.stat(path).st_mode):
                return path
        except OSError:
            continue
    shown = " ".join(directories)
    raise CniError(INTERNAL, f"failed to find plugin {quote(plugin)} in path [{shown}]")


def delegate(request: Request, plugin: str, command: str) -> Any:
    """Run the plugin; what it printed as JSON, None for nothing. Raises CniError."""
    import json

    path = find(request, plugin)
    status, output, complaint = _execute(path, {**os.environ, "CNI_COMMAND": command}, request)
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


def _execute(path: str, environment: dict[str, str], request: Request) -> tuple[int, bytes, bytes]:
    import time

    from rootlessnet.kernel import spawn

    # Files in memory rather than pipes: nothing to read while the plugin runs, whatever it prints.
    stdin, stdout, stderr = (os.memfd_create(name) for name in ("stdin", "stdout", "stderr"))
    try:
        os.write(stdin, request.stdin)
        os.lseek(stdin, 0, os.SEEK_SET)
        for attempt in range(_BUSY_ATTEMPTS + 1):
            try:
                pid = spawn.start(
                    [path],
                    descriptors={0: stdin, 1: stdout, 2: stderr},
                    environment=environment,
                )
                break
            except OSError as e:
                # It is being replaced at this moment.
                if e.errno != errno.ETXTBSY or attempt == _BUSY_ATTEMPTS:
                    message = f"fork/exec {path}: {go_text(e)}"
                    raise CniError(INTERNAL, message) from e
                time.sleep(_BUSY_SECONDS)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return status, _read(stdout), _read(stderr)
    finally:
        for fd in (stdin, stdout, stderr):
            os.close(fd)


def _read(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


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
