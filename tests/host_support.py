"""A machine of the test's own: /etc, /run, /opt and /var can be changed in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support import Net

PREPARE = """
import os, sys
from rootlessnet.kernel import libc
from rootlessnet.instance import mounts
stage = sys.argv[1]
libc.mount("tmpfs", stage, "tmpfs")
for directory in ("/etc", "/run", "/opt", "/var"):
    os.makedirs(stage + directory)
    mounts.open_up(directory, f"{stage}/m{directory}", leave_out="resolv.conf")
if os.path.isdir("/run/systemd"):
    mounts.open_up("/run/systemd", f"{stage}/run-systemd", leave_out="resolve")
exec(sys.argv[2])
os.execvp(sys.argv[3], sys.argv[3:])
"""
"""Arguments: an empty directory, Python to run in the new place, and a command to go on with."""

WRITE_RESOLV_CONF = "open('/etc/resolv.conf', 'w').write('nameserver 203.0.113.77\\n')"


class Shell:
    """A shell in there, as a context; its rootlessnet is for the instance of net."""

    def __init__(self, net: Net, stage: Path, make: str = WRITE_RESOLV_CONF) -> None:
        stage.mkdir()
        self._child = subprocess.Popen(
            ["unshare", "-Urm", sys.executable, "-c", PREPARE, str(stage), make, "sh"],
            env=net.environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.communicate("exit\n", timeout=20)

    def run(self, command: str) -> str:
        """What a command prints, when it has ended."""
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(f"{command}\necho =END=\n")
        self._child.stdin.flush()
        lines = []
        while (line := self._child.stdout.readline()) != "=END=\n":
            assert line, "the shell has ended"
            lines.append(line)
        return "".join(lines)

    def inside(self) -> str:
        """resolv.conf as a command inside sees it."""
        return self.run("rootlessnet enter cat /etc/resolv.conf")
