"""resolv.conf inside follows the host's, and is never seen torn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from host_support import PREPARE, WRITE_RESOLV_CONF, Shell
from support import Net, wait_for

CHANGES = {
    "rewritten": "cat > /etc/resolv.conf",
    "replaced": "cat > /etc/new && mv /etc/new /etc/resolv.conf",
    "link switched": "cat > /etc/other && ln -s other /etc/l && mv -T /etc/l /etc/resolv.conf",
    "removed and made again": "rm /etc/resolv.conf && cat > /etc/resolv.conf",
    "target of a link rewritten": "cat > /opt/real",
    "target of a link replaced": "cat > /opt/new && mv /opt/new /opt/real",
}


@pytest.mark.parametrize("change", CHANGES)
def test_change_on_the_host_is_seen_inside(net: Net, tmp_path: Path, change: str) -> None:
    make = WRITE_RESOLV_CONF
    if "target" in change:
        make = (
            "open('/opt/real', 'w').write('nameserver 203.0.113.77\\n');"
            "os.symlink('/opt/real', '/etc/resolv.conf')"
        )
    # From it everything is done: the supervisor is there.
    with Shell(net, tmp_path / "stage", make) as shell:
        run, inside = shell.run, shell.inside
        run("rootlessnet up")
        running = run("rootlessnet enter sleep 1000 >/dev/null & echo $!").strip()
        wait_for("it is inside", lambda: running in run("rootlessnet ps"))
        assert inside() == "nameserver 10.0.2.3\nnameserver 203.0.113.77\n"
        run(f"echo 'nameserver 203.0.113.88' | ({CHANGES[change]})")
        new = "nameserver 10.0.2.3\nnameserver 203.0.113.88\n"
        wait_for("the change is seen inside", lambda: inside() == new, 1)
        assert "203.0.113.88" in run(f"nsenter -t {running} -m cat /etc/resolv.conf")
        run("printf 'search a.test\\nnameserver 203.0.113.99\\n' > /etc/resolv.conf")
        newest = "search a.test\nnameserver 10.0.2.3\nnameserver 203.0.113.99\n"
        wait_for("and the next one", lambda: inside() == newest, 1)
        wait_for(
            "and by what was running already",
            lambda: newest in run(f"nsenter -t {running} -m cat /etc/resolv.conf"),
            1,
        )
        run(f"kill {running}; rootlessnet down")


READER = """
import os, sys
seen = set()
print("in", flush=True)
while b"last.test" not in b"".join(seen):
    try:
        with open("/etc/resolv.conf", "rb", buffering=0) as file:
            seen.add(file.read(65536))
    except FileNotFoundError:
        pass
sys.stdout.write(repr(sorted(seen)))
"""


@pytest.mark.parametrize("place", ["/etc", "/run"])
def test_reader_inside_never_sees_a_torn_file(net: Net, tmp_path: Path, place: str) -> None:
    stage = tmp_path / "stage"
    stage.mkdir()
    make = "open('/etc/resolv.conf', 'w').write('nameserver 203.0.113.1\\n')"
    if place == "/run":
        make = (
            "os.makedirs('/run/x'); open('/run/x/r', 'w').write('nameserver 203.0.113.1\\n');"
            "os.symlink('/run/x/r', '/etc/resolv.conf')"
        )
    long = "".join(f"nameserver 203.0.113.{n}\n" for n in range(2, 9))
    search = "search " + " ".join(f"domain{n}.example.test" for n in range(12)) + "\n"
    versions = ["nameserver 203.0.113.1\n", long, search + long]
    final = "search last.test\nnameserver 203.0.113.1\n"
    (tmp_path / "reader.py").write_text(READER)
    for n, version in enumerate([*versions, final]):
        (tmp_path / f"v{n}").write_text(version)
    script = (
        f"rootlessnet enter python3 {tmp_path}/reader.py > {tmp_path}/seen & "
        f"until [ -s {tmp_path}/seen ]; do sleep 0.01; done; "
        f"for i in 1 2 3 4 5; do for n in 0 1 2; do cat {tmp_path}/v$n > {place}/new; "
        f"mv {place}/new $(readlink -f /etc/resolv.conf); sleep 0.1; done; done; "
        f"cat {tmp_path}/v3 > /etc/resolv.conf; wait"
    )
    done = subprocess.run(
        ["unshare", "-Urm", sys.executable, "-c", PREPARE, str(stage), make, "sh", "-c", script],
        env=net.environment, text=True, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    host = {version.encode() for version in [*versions, final]}
    inside = set()
    for text in host:
        lines = text.decode().splitlines(True)
        at = next(n for n, line in enumerate(lines) if line.startswith("nameserver"))
        inside.add("".join([*lines[:at], "nameserver 10.0.2.3\n", *lines[at:]]).encode())
    seen = set(eval((tmp_path / "seen").read_text().removeprefix("in\n")))
    if place == "/etc":
        # For the moment in which the kernel has dropped the mount, the host's own.
        seen -= host
    assert seen <= inside, seen - inside
    assert len(seen) >= 3, "it did change under the reader"
