"""CNI plugins as a runtime calls them: command and configuration in, result or PluginError out.

The words of a failure are podman's: `cni plugin NAME failed: MESSAGE: DETAILS`.
"""

from __future__ import annotations

import os

from rootlessnet.devices import cni_exec
from rootlessnet.errors import Error
from rootlessnet.networks import gojson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from rootlessnet.networks.cni_cache import Endpoint

_VERSION_SECONDS = 10.0


class PluginError(Error):
    """A plugin has failed. code is the specification's, 0 when the plugin did not say one."""

    def __init__(self, plugin: str, message: str, *, code: int = 0, details: str = "") -> None:
        text = f"cni plugin {plugin} failed"
        if message:
            text += f": {message}"
        elif code > 0:
            text += f" with error code {code}"
        if details:
            text += f": {details}"
        super().__init__(text)
        self.plugin = plugin
        self.code = code
        self.message = message
        self.details = details


class Plugins:
    """The plugins in some directories, and how long each may take."""

    def __init__(
        self, directories: Sequence[str], environment: Mapping[str, str], seconds: float
    ) -> None:
        self.directories = list(directories)
        self._environment = environment
        self._seconds = seconds
        self._versions: dict[str, list[str]] = {}

    def find(self, kind: str) -> str:
        """The path of a plugin. Raises Error."""
        if "/" in kind:
            raise Error(f"invalid plugin name: {kind}")
        path = cni_exec.find(kind, self.directories)
        if path is None:
            listed = " ".join(self.directories)
            raise Error(
                f"failed to find plugin {gojson.quote(kind)} in path [{listed}]",
                hint="install it, or name its directory in containers.conf: cni_plugin_dirs",
            )
        return path

    def call(
        self, command: str, config: Mapping[str, Any], endpoint: Endpoint | None, inherit: int = -1
    ) -> Any:
        """Call the plugin that the configuration names: what it printed, None for nothing.

        Raises PluginError; Error when there is no such plugin.
        """
        import json

        kind = str(config["type"])
        path = self.find(kind)
        stdin = json.dumps(config, ensure_ascii=False).encode(errors="surrogateescape")
        status, stdout, stderr = self._run(path, command, stdin, endpoint, self._seconds, inherit)
        if status:
            raise _failure(kind, status, stdout, stderr)
        if stderr:
            _forward(stderr)
        if not stdout.strip():
            return None
        try:
            return json.loads(stdout)
        except (ValueError, RecursionError) as error:
            shown = gojson.quote(stdout[:400].decode(errors="replace"))
            raise PluginError(kind, f"the result is not JSON: {shown}") from error

    def versions(self, kind: str) -> list[str]:
        """The versions of the specification that a plugin says it speaks; it is asked once."""
        import json

        if kind not in self._versions:
            path = self.find(kind)
            status, stdout, stderr = self._run(
                path, "VERSION", b"{}", None, min(self._seconds, _VERSION_SECONDS), -1
            )
            if status:
                raise _failure(kind, status, stdout, stderr)
            try:
                found = json.loads(stdout)["supportedVersions"]
                if not isinstance(found, list):
                    raise ValueError("supportedVersions is not a list")
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise PluginError(kind, f"it does not tell its versions: {error}") from error
            self._versions[kind] = found
        return self._versions[kind]

    def _run(
        self,
        path: str,
        command: str,
        stdin: bytes,
        endpoint: Endpoint | None,
        seconds: float,
        inherit: int,
    ) -> tuple[int, bytes, bytes]:
        dummy = "dummy" if command == "VERSION" else ""
        environment = {
            **self._environment,
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": endpoint.container if endpoint else "",
            "CNI_NETNS": endpoint.netns if endpoint else dummy,
            "CNI_ARGS": ";".join(f"{k}={v}" for k, v in endpoint.args) if endpoint else "",
            "CNI_IFNAME": endpoint.interface if endpoint else dummy,
            "CNI_PATH": dummy or ":".join(self.directories),
        }
        try:
            return cni_exec.execute(path, environment, stdin, seconds=seconds, inherit=inherit)
        except TimeoutError as error:
            raise PluginError(os.path.basename(path), str(error.strerror)) from None
        except OSError as error:
            text = os.strerror(error.errno).lower() if error.errno else str(error)
            raise PluginError(os.path.basename(path), f"fork/exec {path}: {text}") from None


def _failure(kind: str, status: int, stdout: bytes, stderr: bytes) -> PluginError:
    import json
    import signal

    if not stdout.strip():
        text = stderr.decode(errors="replace").strip()
        if not text and status < 0:
            text = f"signal: {(signal.strsignal(-status) or str(-status)).lower()}"
        return PluginError(kind, text or f"exit status {status}")
    try:
        document = json.loads(stdout)
        code, message = document.get("code") or 0, document.get("msg") or ""
        details = document.get("details") or ""
        if isinstance(code, int) and isinstance(message, str) and isinstance(details, str):
            return PluginError(kind, message, code=code, details=details)
        reason = "a field has the wrong type"
    except (ValueError, AttributeError, RecursionError) as error:
        reason = str(error)
    shown = gojson.quote(stdout.decode(errors="replace"))
    return PluginError(kind, f"failed to unmarshal error message {shown}: {reason}")


def _forward(text: bytes) -> None:
    try:
        os.write(2, text)
    except OSError:
        pass  # a closed stderr is no failure
