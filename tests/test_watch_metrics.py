"""metrics: what node_exporter's textfile collector reads."""

from __future__ import annotations

import os
import re
import stat
import threading
from pathlib import Path

import pytest
from support import Net, kill, wait_for
from watch_support import HOSTILE, attachment, container, crowd, document, interfaces, port

from rootlessnet.watch import exposition
from rootlessnet.watch.snapshot import Snapshot

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(,|$)')
SAMPLE = re.compile(rf"({NAME})\{{(.*)\}} (-?\d+)")
UNITS = ("bytes", "total", "info", "up", "state")
PLURALS = ("leases", "processes", "containers", "ports", "packets", "connections")

Samples = dict[tuple[str, frozenset[tuple[str, str]]], int]


def parse(text: str) -> Samples:
    """The samples, after the checks that `promtool check metrics` makes, and the collector."""
    samples: Samples = {}
    families: dict[str, str] = {}
    helped: set[str] = set()
    current = ""
    assert text == "" or text.endswith("\n")
    for line in text.splitlines():
        if found := re.fullmatch(rf"# HELP ({NAME}) (\S.*)", line):
            current = found[1]
            assert current not in helped, "HELP twice"
            helped.add(current)
        elif found := re.fullmatch(rf"# TYPE ({NAME}) (counter|gauge)", line):
            assert found[1] == current and current not in families
            families[current] = found[2]
        else:
            found = SAMPLE.fullmatch(line)
            assert found, f"not a sample: {line!r}"
            assert found[1] == current and current in families, "a sample outside its family"
            labels: dict[str, str] = {}
            rest = found[2]
            while rest:
                label = LABEL.match(rest)
                assert label, f"not a label: {rest!r}"
                assert label[1] not in labels, "a label twice"
                plain = label[2].replace("\\\\", "\0").replace('\\"', '"').replace("\\n", "\n")
                labels[label[1]] = plain.replace("\0", "\\")
                rest = rest[label.end() :]
            key = found[1], frozenset(labels.items())
            assert key not in samples, f"twice: {line}"
            samples[key] = int(found[3])
    for name, kind in families.items():
        assert name.startswith("rootlessnet_")
        assert name.endswith("_total") == (kind == "counter"), name
        assert name.rsplit("_", 1)[1] in UNITS + PLURALS, name
        assert any(key[0] == name for key in samples), "a family without a sample"
    return samples


def value(samples: Samples, name: str, **labels: str) -> int:
    """The one sample with (at least) these labels."""
    wanted = set(labels.items())
    (found,) = [
        number for (key, have), number in samples.items()
        if key == f"rootlessnet_{name}" and wanted <= have
    ]  # fmt: skip
    return found


def test_metrics_of_a_running_instance(net: Net) -> None:
    net.hold()
    samples = parse(net.run("metrics").stdout)
    assert {dict(labels)["instance"] for _, labels in samples} == {net.name}
    assert value(samples, "instance_state", state="running") == 1
    assert value(samples, "instance_state", state="degraded") == 0
    assert value(samples, "instance_state", state="down") == 0
    assert value(samples, "instance_info", static_dir=str(net.static_dir)) == 1
    assert value(samples, "driver_up") == value(samples, "supervisor_up") == 1
    assert value(samples, "driver_restarts_total") == 0
    assert value(samples, "leases", kind="process") == 1
    assert value(samples, "leases", kind="named") == 0
    assert value(samples, "processes") == 1
    assert value(samples, "supervisor_resident_memory_bytes") > 1 << 20
    assert value(samples, "interface_up", interface="tap0") == 1
    assert value(samples, "interface_mtu_bytes", interface="tap0") == 20000


SEND = (
    "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
    "[s.sendto(bytes(1000), ('127.0.0.1', 9)) for _ in range(6)]"
)


def test_bytes_are_those_that_went_through(net: Net) -> None:
    net.hold()
    before = parse(net.run("metrics").stdout)
    net.inside("python3", "-c", SEND)
    after = parse(net.run("metrics").stdout)
    for name in ("interface_receive_bytes_total", "interface_transmit_bytes_total"):
        grown = value(after, name, interface="lo") - value(before, name, interface="lo")
        assert grown >= 6000
    packets = "interface_receive_packets_total"
    assert value(after, packets, interface="lo") >= value(before, packets, interface="lo") + 6


def test_restarts_are_counted(net: Net) -> None:
    net.hold()
    kill(net.pids()["driver"])

    def restarted() -> bool:
        samples = parse(net.run("metrics").stdout)
        up = value(samples, "driver_up")
        assert value(samples, "instance_state", state="degraded") == 1 - up
        return up == 1 and value(samples, "driver_restarts_total") == 1

    wait_for("the driver was restarted", restarted)


def test_an_instance_that_is_down_says_so_and_is_not_started(net: Net) -> None:
    samples = parse(net.run("metrics").stdout)
    assert value(samples, "instance_state", state="down") == 1
    assert len(samples) == 3
    assert not net.directory.exists()


def test_all_instances_are_in_one_text(net: Net, tmp_path: Path) -> None:
    other = Net(tmp_path / "other")
    net.hold()
    other.hold()
    try:
        samples = parse(net.run("metrics", "--all").stdout)
        instances = {dict(labels)["instance"] for _, labels in samples}
        assert {net.name, other.name} <= instances
    finally:
        other.end()
        other.wait_until_down(20)


def test_a_damaged_instance_does_not_hide_the_others(net: Net, tmp_path: Path) -> None:
    other = Net(tmp_path / "other")
    net.hold()
    other.hold()
    try:
        record = other.directory / "state.json"
        content = record.read_bytes()
        record.write_text("{")
        done = net.run("metrics", "--all", check=False)
        record.write_bytes(content)
        assert done.returncode == 125
        assert done.stderr.startswith("rootlessnet: look at every instance: ")
        assert value(parse(done.stdout), "driver_up", instance=net.name) == 1
    finally:
        other.end()
        other.wait_until_down(20)


# -- the file --------------------------------------------------------------------------------------


def test_output_is_for_the_collector_to_read_and_leaves_nothing_else(
    net: Net, tmp_path: Path
) -> None:
    directory = tmp_path / "textfile"
    directory.mkdir()
    file = directory / "rootlessnet.prom"
    done = net.run("metrics", "--output", str(file))
    assert (done.stdout, done.stderr) == ("", "")
    assert value(parse(file.read_text()), "instance_state", state="down") == 1
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o644 & ~mask
    assert os.listdir(directory) == [file.name]


def test_a_reader_sees_the_old_file_or_the_new_one_whole(tmp_path: Path) -> None:
    file = tmp_path / "x.prom"
    texts = [exposition.text([crowd(20, 3)]), exposition.text([crowd(1)])]
    exposition.write_file(str(file), texts[0])
    done = threading.Event()

    def write() -> None:
        for number in range(200):
            exposition.write_file(str(file), texts[number % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while not done.is_set():
            assert file.read_text() in texts
            # The collector takes whatever ends in .prom.
            assert [name for name in os.listdir(tmp_path) if name.endswith(".prom")] == ["x.prom"]
    finally:
        writer.join()


def test_a_directory_that_cannot_be_written_to(net: Net, tmp_path: Path) -> None:
    file = tmp_path / "missing" / "x.prom"
    done = net.run("metrics", "--output", str(file), check=False)
    assert done.returncode == 125
    assert done.stderr == f"rootlessnet: write the metrics: {file}: No such file or directory\n"


def test_a_full_disk_leaves_the_old_file(net: Net, tmp_path: Path) -> None:
    file = tmp_path / "x.prom"
    file.write_text("old\n")
    limited = ["sh", "-c", 'ulimit -f 0; trap "" XFSZ; exec "$@"', "sh"]
    done = net.run("metrics", "--output", str(file), check=False, prefix=limited)
    assert done.returncode == 125
    assert done.stderr == f"rootlessnet: write the metrics: {file}: File too large\n"
    assert file.read_text() == "old\n"
    assert os.listdir(tmp_path) == ["x.prom"]


# -- containers and ports --------------------------------------------------------------------------


def test_a_container_counts_from_its_own_side() -> None:
    joined = container("web", attachment("podman", "podman0", "10.89.0.2/24", 100))
    snapshot = Snapshot(document(containers=[joined]), interfaces(1), 1, 1.0)
    samples = parse(exposition.text([snapshot]))
    labels = {"container": "web", "network": "podman", "interface": "eth0"}
    # What the other end, veth0, has received, the container has sent.
    assert value(samples, "interface_receive_bytes_total", interface="veth0") == 1000
    assert value(samples, "container_transmit_bytes_total", **labels) == 1000
    assert value(samples, "container_receive_bytes_total", **labels) == 5


def test_a_container_whose_other_end_is_unknown_has_no_counters() -> None:
    joined = container("web", attachment("podman", "podman0", "10.89.0.2/24", 0))
    snapshot = Snapshot(document(containers=[joined]), interfaces(1), 1, 1.0)
    samples = parse(exposition.text([snapshot]))
    assert value(samples, "containers") == 1
    assert value(samples, "container_info", container="web", state="ready") == 1
    assert not any(name.startswith("rootlessnet_container_receive") for name, _ in samples)


def test_connections_are_there_when_the_forwarder_tells_them() -> None:
    ports = [port("web", 8080, connections=3), port("web", 8081)]
    samples = parse(exposition.text([Snapshot(document(ports=ports), interfaces(0), 1, 1.0)]))
    assert value(samples, "ports") == 2
    assert value(samples, "port_info", host_port="8081", target="web", proto="tcp") == 1
    assert value(samples, "port_connections", host_port="8080") == 3
    assert not any(
        name == "rootlessnet_port_connections" and ("host_port", "8081") in labels
        for name, labels in samples
    )


@pytest.mark.parametrize("name", [HOSTILE, 'a"b', "a\\n\nb", "\udc80", ""])
def test_any_name_is_a_label(name: str) -> None:
    joined = container(name, attachment(name, "podman0", "10.89.0.2/24", 100))
    snapshot = Snapshot(document(containers=[joined]), interfaces(1), 1, 1.0)
    text = exposition.text([snapshot])
    text.encode()
    shown = name if name != "\udc80" else "\ufffd"
    assert value(parse(text), "container_info", container=shown) == 1


def test_the_same_port_twice_is_one_sample() -> None:
    snapshot = Snapshot(document(ports=[port("a"), port("a")]), interfaces(0), 1, 1.0)
    assert value(parse(exposition.text([snapshot])), "port_info", target="a") == 1


def test_twenty_containers_on_three_networks() -> None:
    assert len(parse(exposition.text([crowd(20, 3)]))) > 500
