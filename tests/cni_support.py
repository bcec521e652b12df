"""A CNI runtime with plugins that say what a test wants, and one that runs where it is told to."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from rootlessnet.networks import cni_list
from rootlessnet.networks.cni_list import NetworkList
from rootlessnet.networks.cni_runtime import Runtime

REAL = "/usr/lib/cni"
OWN = "/proc/self/ns/net"


class Call:
    """One call of a plugin that a test wrote."""

    def __init__(self, path: Path) -> None:
        head, _, stdin = path.read_text().partition("\n\n")
        self.command, self.plugin = path.name.split("-")[1:]
        self.environment = dict(line.split("=", 1) for line in head.splitlines())
        self.config: dict[str, Any] = json.loads(stdin) if stdin.strip() else {}


class Bench:
    """A runtime, its cache, and shell scripts as its plugins; they record how they are called."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.plugins = directory / "plugins"
        self.calls_dir = directory / "calls"
        self.cache = directory / "cache"
        for path in (self.plugins, self.calls_dir):
            path.mkdir(exist_ok=True)
        self.runtime = Runtime([str(self.plugins), REAL], str(self.cache), **options)

    def plugin(self, name: str, script: str = "", result: dict[str, Any] | None = None) -> Path:
        """Make a plugin: it records the call, runs the script, and gives the result to ADD."""
        text = textwrap.dedent(
            f"""\
            #!/bin/sh
            n=$(ls {shlex.quote(str(self.calls_dir))} | wc -l)
            input=$(cat)
            {{ env | grep ^CNI_; echo; echo "$input"; }} \\
                > {shlex.quote(str(self.calls_dir))}/$(printf %03d $n)-$CNI_COMMAND-{name}
            """
        )
        given = shlex.quote(json.dumps(result or {"cniVersion": "1.0.0"}))
        text += f'{script}\n[ "$CNI_COMMAND" != ADD ] || echo {given}\n'
        path = self.plugins / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def calls(self) -> list[Call]:
        """The calls since the last look."""
        paths = sorted(self.calls_dir.iterdir())
        found = [Call(path) for path in paths]
        for path in paths:
            path.unlink()
        return found

    def commands(self) -> list[str]:
        """The calls since the last look, as `ADD name`."""
        return [f"{call.command} {call.plugin}" for call in self.calls()]

    def entry(self, key: str) -> Path:
        return self.cache / "results" / key


def network(*plugins: Any, version: str = "1.0.0", name: str = "lab", **keys: Any) -> NetworkList:
    """A list of plugins, each its type or its whole configuration."""
    configs = [{"type": plugin} if isinstance(plugin, str) else plugin for plugin in plugins]
    document = {"cniVersion": version, "name": name, "plugins": configs, **keys}
    return cni_list.parse(json.dumps(document).encode())


_HEAD = """
import json, os, sys
from rootlessnet.errors import Error, reason
from rootlessnet.networks import cni_list
from rootlessnet.networks.cni_runtime import Runtime
def answer(function, *arguments, **options):
    try:
        print(json.dumps({"result": function(*arguments, **options)}))
    except Error as error:
        print(json.dumps({"error": reason(error)}))
"""


def script(code: str) -> list[str]:
    """The command that runs a Python program, which may use `answer(function, arguments...)`."""
    return [sys.executable, "-c", _HEAD + textwrap.dedent(code)]


def answers(done: subprocess.CompletedProcess[str] | str) -> list[Any]:
    """What `answer` printed: results, and errors as strings that begin with `error: `."""
    output = done if isinstance(done, str) else done.stdout
    found = []
    for line in output.splitlines():
        if line.startswith("{"):
            document = json.loads(line)
            error = document.get("error")
            found.append(document.get("result") if error is None else f"error: {error}")
    return found
