"""top: on a real terminal, and without one."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import PROGRAM, Net, kill, wait_for
from watch_support import HOSTILE, crowd, document, interfaces, lease, port

from rootlessnet.watch import rates, screen
from rootlessnet.watch.snapshot import Interface, Snapshot

ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
HOME = "\x1b[H"
SEND = (
    "import socket, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
    "print('in', flush=True)\n"
    "while True: s.sendto(bytes(10000), ('127.0.0.1', 9)); time.sleep(0.01)"
)


class Terminal:
    """`rootlessnet top` on a terminal of its own, as its session's leader."""

    def __init__(self, net: Net, *arguments: str, size: tuple[int, int] = (30, 120)) -> None:
        self.output = ""
        environment = {**net.environment, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        read, write = os.pipe()
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.read(read, 1)  # the terminal has its size
            os.execve(PROGRAM, [PROGRAM, "top", *arguments], environment)
        os.close(read)
        self.resize(*size)
        self.before = termios.tcgetattr(self.fd)
        os.write(write, b"x")
        os.close(write)
        self.status: int | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                select.select([self.fd], [], [])
                data = os.read(self.fd, 65536)
            except OSError:
                return
            if not data:
                return
            self.output += data.decode(errors="replace")

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def frame(self) -> list[str]:
        """The lines of the last screen that was shown as a whole."""
        frames = self.output.split(HOME)
        if len(frames) < 2:
            return []
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", frames[-1])
        return text.replace("\r", "").split("\n")

    def shows(self, text: str) -> None:
        wait_for(f"{text!r} is shown", lambda: any(text in line for line in self.frame()))

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """How it ended, as subprocess tells it; the terminal is as it was before."""

        def ended() -> bool:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            return bool(pid)

        wait_for("it ends", ended)
        assert self.status is not None
        return self.status

    def assert_in_order(self) -> None:
        """The terminal is as it was, once the output has been read."""
        wait_for("the cursor is shown", lambda: self.output.rfind(SHOW) > self.output.rfind(HIDE))
        wait_for(
            "the other screen is left", lambda: self.output.rfind(LEAVE) > self.output.rfind(ENTER)
        )
        assert self.output.count(ENTER) == self.output.count(LEAVE) >= 1
        after = termios.tcgetattr(self.fd)
        assert after == self.before, "the terminal's settings"


@pytest.fixture
def started(net: Net) -> Iterator[list[Terminal]]:
    """Terminals that the test starts, which are ended with it."""
    terminals: list[Terminal] = []
    yield terminals
    for terminal in terminals:
        if terminal.status is None:
            os.kill(terminal.pid, signal.SIGKILL)
            os.waitpid(terminal.pid, 0)
        os.close(terminal.fd)


def test_live_until_q(net: Net, started: list[Terminal]) -> None:
    child = net.hold()
    top = Terminal(net, "--interval", "0.1")
    started.append(top)
    top.shows(f"{net.name}: running")
    top.shows("driver slirp4netns")
    top.shows("tap0")
    top.shows(str(child.pid))
    assert ENTER in top.output and HIDE in top.output
    assert not termios.tcgetattr(top.fd)[3] & termios.ECHO
    top.type("x")
    top.type("q")
    assert top.wait() == 0
    top.assert_in_order()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(
    net: Net, started: list[Terminal], number: int
) -> None:
    top = Terminal(net, "--interval", "3600")
    started.append(top)
    top.shows(f"{net.name}: down")
    if number == signal.SIGINT:
        top.type("\x03")  # as a user sends it
    else:
        top.send(number)
    assert top.wait() == -number
    top.assert_in_order()
    assert "Traceback" not in top.output


def test_another_size_is_drawn_at_once(net: Net, started: list[Terminal]) -> None:
    net.hold()
    top = Terminal(net, "--interval", "3600", size=(40, 150))
    started.append(top)
    top.shows("ADDRESS")
    top.resize(12, 60)
    wait_for("it is drawn smaller", lambda: len(top.frame()) == 12)
    wait_for("it is drawn narrower", lambda: all(len(line) <= 60 for line in top.frame()))
    assert not any("ADDRESS" in line for line in top.frame())
    top.type("q")
    assert top.wait() == 0


def test_stopped_and_continued(net: Net, started: list[Terminal]) -> None:
    top = Terminal(net, "--interval", "0.1")
    started.append(top)
    top.shows(f"{net.name}: down")
    top.type("\x1a")

    def stopped() -> bool:
        return bool(os.waitpid(top.pid, os.WNOHANG | os.WUNTRACED)[0])

    wait_for("it is stopped", stopped)
    top.assert_in_order()
    top.send(signal.SIGCONT)
    wait_for("it is back", lambda: top.output.count(ENTER) == 2)
    top.type("q")
    assert top.wait() == 0
    top.assert_in_order()


def test_an_instance_that_goes_and_comes(net: Net, started: list[Terminal]) -> None:
    top = Terminal(net, "--interval", "0.1")
    started.append(top)
    top.shows("Waiting for it to start")
    child = net.hold()
    top.shows(f"{net.name}: running")
    kill(net.pids()["driver"])
    top.shows("restarts 1")
    net.release(child)
    top.shows("Waiting for it to start")
    top.type("q")
    assert top.wait() == 0


# -- once ------------------------------------------------------------------------------------------


def test_without_a_terminal_it_prints_once_and_ends(net: Net) -> None:
    sender = net.start("enter", "python3", "-c", SEND)
    assert sender.stdout is not None and sender.stdout.readline() == "in\n"
    for arguments in ((), ("--once",)):
        text = net.run("top", "--interval", "0.2", *arguments).stdout
        assert "\x1b" not in text
        first, traffic, leases = text.rstrip().split("\n\n")
        assert first.startswith(f"{net.name}: running\ndriver slirp4netns ")
        heads, *rows = [line.split() for line in traffic.splitlines()]
        assert heads[:5] == ["NAME", "RX/s", "TX/s", "RX", "TX"]
        assert rows[0][0] == "lo", "the fastest is first"
        assert "tap0" in [row[0] for row in rows]
        assert re.fullmatch(r"lo +[\d.]+ [kM]B +[\d.]+ [kM]B .*", traffic.splitlines()[1])
        assert f"{sender.pid}" in leases


def test_once_of_an_instance_that_is_down(net: Net) -> None:
    assert net.run("top", "--once").stdout.startswith(f"{net.name}: down\n")


@pytest.mark.parametrize("interval", ["0", "-1", "x", "nan", "inf", "1_0", " 1"])
def test_an_interval_that_makes_no_sense(net: Net, interval: str) -> None:
    done = net.run("top", f"--interval={interval}", check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == (
        f"rootlessnet: --interval {interval}: not a number of seconds from 0.1 to 3600\n"
    )


def test_looking_often_leaks_no_descriptor(net: Net, started: list[Terminal]) -> None:
    net.hold()
    top = Terminal(net, "--interval", "0.1")
    started.append(top)
    top.shows("tap0")

    def frames() -> int:
        return top.output.count(HOME)

    def descriptors() -> int:
        return len(os.listdir(Path(f"/proc/{top.pid}/fd")))

    before, many = descriptors(), frames() + 10
    wait_for("ten more screens", lambda: frames() >= many)
    # One may be open in the middle of a look.
    wait_for("as many as before", lambda: descriptors() <= before)
    top.type("q")
    assert top.wait() == 0


# -- rates and their order -------------------------------------------------------------------------


def later(snapshot: Snapshot, seconds: float, **grown: dict[str, int]) -> Snapshot:
    """The same a while later; grown says by interface what went through it."""
    found = []
    for each in snapshot.interfaces:
        counters = {key: each.counters[key] + grown.get(each.name, {}).get(key, 0)
                    for key in each.counters}  # fmt: skip
        found.append(Interface(each.name, each.index, kind=each.kind, mtu=each.mtu,
                               master=each.master, counters=counters))  # fmt: skip
    return Snapshot(snapshot.document, found, 1, snapshot.moment + seconds)


def test_a_rate_is_what_was_added_by_the_time_it_took() -> None:
    before = Snapshot(document(), interfaces(0), 1, 5.0)
    after = later(before, 2.0, tap0={"rx_bytes": 4000, "tx_packets": 10})
    flows = rates.flows(before, after)
    assert flows[0].name == "tap0"
    assert (flows[0].rate("rx_bytes"), flows[0].rate("tx_packets")) == (2000, 5)
    assert [flow.speed for flow in flows[1:]] == [0]


def test_an_interface_that_was_made_again_has_no_negative_rate() -> None:
    before = Snapshot(document(), [Interface("x", 7, counters={"rx_bytes": 500})], 1, 1.0)
    again = Snapshot(document(), [Interface("x", 8, counters={"rx_bytes": 900})], 1, 2.0)
    reset = Snapshot(document(), [Interface("x", 7, counters={"rx_bytes": 1})], 1, 2.0)
    for after in (again, reset):
        (flow,) = rates.flows(before, after)
        assert flow.rate("rx_bytes") == 0


def test_a_container_is_shown_once_and_as_it_counts_itself() -> None:
    before = crowd(2)
    flows = rates.flows(before, later(before, 1.0, veth1={"rx_bytes": 700}))
    first = flows[0]
    assert (first.kind, first.rate("tx_bytes"), first.rate("rx_bytes")) == ("container", 700, 0)
    assert not any(flow.name.startswith("veth") for flow in flows)


def test_ports_with_most_connections_are_first() -> None:
    ports = [port("a", 1, connections=1), port("b", 2, connections=5), port("c", 3)]
    text = screen.plain(Snapshot(document(ports=ports), interfaces(0), 1, 1.0), [])
    rows = [line.split() for line in text.splitlines() if line.startswith("127.0.0.1")]
    assert [row[1:] for row in rows] == [["b:80", "5"], ["a:80", "1"], ["c:80", "-"]]


@pytest.mark.parametrize("height", [6, 12, 24, 60])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_crowd_is_cut_to_the_terminal(width: int, height: int) -> None:
    from rich.console import Console

    snapshot = crowd(20, 2)
    console = Console(width=width, height=height, force_terminal=True, color_system=None)
    shown = screen.rich(snapshot, rates.flows(None, snapshot), width, height, "q: quit")
    with console.capture() as capture:
        console.print(shown)
    lines = capture.get().splitlines()
    assert all(len(line) <= width for line in lines)
    # Below that not even the first table has room, and the terminal cuts it.
    assert len(lines) <= max(height, 8)
    assert any(re.fullmatch(r"and \d+ more *", line) for line in lines) == (height < 60)


def test_no_name_reaches_the_terminal_as_it_is() -> None:
    leases = [lease("1", 1, HOSTILE)]
    snapshot = Snapshot(document(leases=leases, ports=[port(HOSTILE)]), interfaces(0), 1, 1.0)
    text = screen.plain(snapshot, rates.flows(None, snapshot))
    assert "\\u202e" in text
    assert not any(c in text for c in "\x1b\u202e")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 "), (999, "999 "), (1000, "1.0 k"), (99940, "99.9 k"), (100000, "100 k"),
     (999500, "1.0 M"), (1.5e9, "1.5 G")],
)  # fmt: skip
def test_amounts_are_short(number: float, text: str) -> None:
    assert screen.amount(number) == text
