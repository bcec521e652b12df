"""doctor and logs: what the user types when something is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

from support import PROGRAM, Net, both_drivers, kill, wait_for


def findings(net: Net, **options) -> dict[str, dict[str, str]]:
    done = net.run("doctor", "--json", check=False, **options)
    return {item["check"]: item for item in json.loads(done.stdout)}


@both_drivers
def test_good_machine(net: Net) -> None:
    done = net.run("doctor", check=False)
    assert done.returncode == 0, done.stdout
    assert "error" not in {line.split()[0] for line in done.stdout.splitlines()}
    found = findings(net)
    for check in ("runtime directory", "user namespaces", "subordinate ids", "tun device"):
        assert found[check]["level"] == "ok"
    assert "version" in found[net.driver]["text"]


def spoiled(net: Net, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["unshare", "-Urm", "sh", "-c", f"{script}; exec {PROGRAM} doctor"],
        env=net.environment, text=True, capture_output=True, check=False,
    )  # fmt: skip


def test_each_failing_check_names_the_command_that_mends_it(net: Net) -> None:
    done = spoiled(net, "mount -t tmpfs x /dev/net")
    assert done.returncode == 1
    lines = [line.split(None, 3) for line in done.stdout.splitlines()]
    at = next(n for n, words in enumerate(lines) if words[:3] == ["error", "tun", "device"])
    assert lines[at][3] == "/dev/net/tun is missing"
    assert " ".join(lines[at + 1]) == "mend it: sudo modprobe tun"


def test_no_driver(net: Net) -> None:
    done = spoiled(net, "mount --bind /dev/null /usr/bin/slirp4netns")
    assert done.returncode == 1
    assert "apt install slirp4netns" in done.stdout


def test_no_user_namespaces(net: Net) -> None:
    script = (
        "echo 0 > /proc/sys/user/max_user_namespaces;"
        f"exec setpriv --inh-caps=-all --bounding-set=-all {PROGRAM} doctor"
    )
    done = subprocess.run(
        ["unshare", "-Ur", "sh", "-c", script],
        env=net.environment, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "mend it: sudo sysctl -w user.max_user_namespaces=15000" in done.stdout


def test_no_newuidmap(net: Net, tmp_path: Path) -> None:
    for name in ("sleep", "slirp4netns"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    found = findings(net, env={"PATH": str(tmp_path)})["subordinate ids"]
    assert found["level"] == "warning"
    assert found["mend"] == "sudo apt install uidmap"


def configured(tmp_path: Path, text: str) -> dict[str, str]:
    conf = tmp_path / "containers.conf"
    conf.write_text(text)
    return {"CONTAINERS_CONF": str(conf)}


NETAVARK = '[network]\nnetwork_backend = "netavark"\n'
CNI = '[network]\nnetwork_backend = "cni"\n'


def test_programs_for_containers_and_published_ports(net: Net, tmp_path: Path) -> None:
    found = findings(net, env=configured(tmp_path, NETAVARK))
    assert found["network backend"]["text"].startswith("netavark: network_backend in ")
    for name, path in (
        ("netavark", "/usr/lib/podman/netavark"),
        ("aardvark-dns", "/usr/lib/podman/aardvark-dns"),
        ("iptables", "/usr/sbin/iptables"),
        ("nft", "/usr/sbin/nft"),
    ):
        assert found[name]["level"] == "ok"
        assert re.fullmatch(rf"{path}, version \d+\.\d+\.\d+", found[name]["text"])
    assert "CNI plugins" not in found

    found = findings(net, env=configured(tmp_path, CNI))
    assert found["CNI plugins"] == {
        "check": "CNI plugins",
        "level": "ok",
        "text": "bridge host-local portmap firewall tuning in /usr/lib/cni, specification 1.0.0",
        "mend": None,
    }
    assert "netavark" not in found


def test_missing_programs_for_containers_are_warnings(net: Net, tmp_path: Path) -> None:
    (tmp_path / "netavark").symlink_to("/usr/lib/podman/netavark")
    engine = f'[engine]\nhelper_binaries_dir = ["{tmp_path}"]\n'
    done = net.run("doctor", env=configured(tmp_path, NETAVARK + engine))
    assert (
        f"warning  aardvark-dns         not in {tmp_path}; needed for containers to find each "
        "other by name\n"
        "                              mend it: sudo apt install aardvark-dns\n"
    ) in done.stdout
    (tmp_path / "netavark").unlink()
    found = findings(net, env=configured(tmp_path, NETAVARK + engine))
    assert found["netavark"]["text"] == f"not in {tmp_path}; needed for container networks"
    assert found["netavark"]["mend"] == "sudo apt install netavark"
    (tmp_path / "netavark").write_text("#!/bin/sh\necho no such CPU; exit 3\n")
    (tmp_path / "netavark").chmod(0o755)
    found = findings(net, env=configured(tmp_path, NETAVARK + engine))
    assert found["netavark"]["text"] == (
        f"{tmp_path}/netavark does not run: no such CPU; needed for container networks"
    )


def test_missing_cni_plugins(net: Net, tmp_path: Path) -> None:
    for name in ("bridge", "portmap", "firewall", "tuning"):
        (tmp_path / name).symlink_to(f"/usr/lib/cni/{name}")
    env = configured(tmp_path, f'{CNI}cni_plugin_dirs = ["{tmp_path}"]\n')
    found = findings(net, env=env)["CNI plugins"]
    assert found == {
        "check": "CNI plugins",
        "level": "warning",
        "text": f"not usable: host-local; looked for in {tmp_path}; needed for container networks",
        "mend": "sudo apt install containernetworking-plugins",
    }
    (tmp_path / "host-local").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "host-local").chmod(0o755)
    assert findings(net, env=env)["CNI plugins"]["text"].startswith(
        "not usable: host-local (cni plugin host-local failed: exit status 3); looked for in "
    )


def test_no_nft(net: Net) -> None:
    done = spoiled(net, "mount --bind /dev/null /usr/sbin/nft")
    line = next(line for line in done.stdout.splitlines() if line.split()[1] == "nft")
    assert line.startswith("warning ") and "/usr/sbin" in line
    assert line.endswith("needed for servers in containers, or of UDP, to see the client's address")
    assert "mend it: sudo apt install nftables" in done.stdout


def test_unknown_network_backend(net: Net, tmp_path: Path) -> None:
    env = configured(tmp_path, '[network]\nnetwork_backend = "netavarkk"\n')
    found = findings(net, env=env)["network backend"]
    assert found["level"] == "warning"
    assert found["text"].startswith("no container networks: unsupported network backend")


def test_leftovers_of_a_crash_are_shown_and_mended(net: Net) -> None:
    child = net.hold()
    kill(net.pids()["supervisor"])
    found = findings(net)["leftovers"]
    assert found["level"] == "warning" and net.name in found["text"]
    subprocess.run(
        ["sh", "-c", found["mend"]], env=net.environment, check=True, capture_output=True
    )
    assert "leftovers" not in findings(net)
    net.release(child)


def test_bad_runtime_dir(net: Net) -> None:
    done = net.run("doctor", env={"XDG_RUNTIME_DIR": "/no/such"}, check=False)
    assert done.returncode == 1
    assert "error    runtime dir          use XDG_RUNTIME_DIR: /no/such" in done.stdout


def test_nothing_is_left_by_the_doctor(net: Net) -> None:
    net.run("doctor", check=False)
    assert not net.directory.exists()


# -- logs ---


def test_log_file_of_the_running_instance(net: Net) -> None:
    net.hold()
    text = net.run("logs", "--file").stdout
    assert "supervisor: running:" in text and "received tapfd" in text


def test_journal_keeps_the_log_after_the_end(net: Net) -> None:
    if not os.path.exists("/run/systemd/journal/socket"):
        return
    net.enter("true")
    net.wait_until_down()
    wait_for("the journal has it", lambda: "unused: ending" in net.run("logs").stdout)
    assert "received tapfd" in net.run("logs").stdout


def test_log_is_followed_to_the_end(net: Net) -> None:
    child = net.hold()
    follower = net.start("logs", "--file", "-f")
    assert follower.stdout is not None
    line = ""
    while "running:" not in line:
        line = follower.stdout.readline()
        assert line
    kill(net.pids()["driver"])
    while "restarted as" not in line:
        line = follower.stdout.readline()
        assert line
    net.release(child)
    assert "unused: ending" in follower.communicate(timeout=20)[0]
    assert follower.returncode == 0


def test_no_log(net: Net) -> None:
    done = net.run("logs", "--file", check=False)
    assert (done.returncode, done.stderr) == (
        125,
        "rootlessnet: show the log: there is no journal, and no instance runs\n",
    )


def test_log_file_is_bounded(net: Net) -> None:
    net.hold()
    log = net.directory / "log"
    with log.open("a") as file:
        for _ in range(40):
            file.write("x" * 9999 + "\n")
            file.flush()
    wait_for("it is cut", lambda: log.stat().st_size < 300 * 1024)
    assert net.status()["state"] == "running"
