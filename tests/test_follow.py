"""resolv.conf inside follows the host's, and is never seen torn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support import Net, wait_for
from test_resolvconf import PREPARE

from rootlessnet.instance import follow, resolvconf

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
    stage = tmp_path / "stage"
    stage.mkdir()
    make = "open('/etc/resolv.conf', 'w').write('nameserver 203.0.113.77\\n')"
    if "target" in change:
        make = (
            "open('/opt/real', 'w').write('nameserver 203.0.113.77\\n');"
            "os.symlink('/opt/real', '/etc/resolv.conf')"
        )
    # A shell in the machine of the test, from which everything is done: the supervisor is there.
    shell = subprocess.Popen(
        ["unshare", "-Urm", sys.executable, "-c", PREPARE, str(stage), make, "sh"],
        env=net.environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert shell.stdin is not None and shell.stdout is not None

    def run(command: str) -> str:
        shell.stdin.write(f"{command}\necho =END=\n")
        shell.stdin.flush()
        lines = []
        while (line := shell.stdout.readline()) != "=END=\n":
            assert line, "the shell has ended"
            lines.append(line)
        return "".join(lines)

    def inside() -> str:
        text = run("rootlessnet enter cat /etc/resolv.conf")
        return "".join(line for line in text.splitlines(True) if not line.startswith("#"))

    try:
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
    finally:
        shell.communicate("exit\n", timeout=20)


def test_reader_never_sees_a_torn_file(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    short = "nameserver 10.0.2.3\n"
    long = short + "".join(f"nameserver 203.0.113.{n}\n" for n in range(1, 9))
    longer = "search " + " ".join(f"domain{n}.example.test" for n in range(12)) + f"\n{long}"
    path.write_bytes(resolvconf.fill_up(short))
    whole = {short, long, longer}
    code = (
        "import sys\n"
        "seen = set()\n"
        "while True:\n"
        f"    with open({str(path)!r}, 'rb', buffering=0) as file: data = file.read(65536)\n"
        "    seen.add(b''.join(l for l in data.splitlines(True) if l.strip(b' #\\n')))\n"
        "    if b'domain0' in data and len(seen) > 2: break\n"
        "sys.stdout.write(repr(sorted(seen)))\n"
    )
    readers = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for n in range(3000):
        follow.write_in_place(str(path), (short, long)[n % 2])
    for _ in range(200):
        follow.write_in_place(str(path), long)
        follow.write_in_place(str(path), longer)
        if all(reader.poll() is not None for reader in readers):
            break
    for reader in readers:
        seen = {text.decode() for text in eval(reader.communicate(timeout=20)[0])}
        assert seen <= whole, seen - whole


def test_file_grows_but_never_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_bytes(resolvconf.fill_up("nameserver 10.0.2.3\n"))
    assert len(path.read_bytes()) == 256
    assert follow.write_in_place(str(path), "search x.test\n" * 30)
    size = len(path.read_bytes())
    assert size == 512
    assert follow.write_in_place(str(path), "nameserver 10.0.2.3\n")
    assert len(path.read_bytes()) == size
    assert not follow.write_in_place(str(path), "nameserver 10.0.2.3\n"), "nothing to change"
