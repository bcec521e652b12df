"""graph: the instance drawn, as text, SVG, dot and mermaid."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from itertools import combinations, pairwise

import pytest
from support import Net
from watch_support import HOSTILE, attachment, container, crowd, document, interfaces, port

from rootlessnet.watch import dot, mermaid, svg, tree
from rootlessnet.watch.scene import CONTAINER, Scene
from rootlessnet.watch.snapshot import Interface, Snapshot

SVG = "{http://www.w3.org/2000/svg}"


def scene_with(name: str) -> Scene:
    """One container of this name, with a published port."""
    joined = container(name, attachment(name, "podman0", "10.89.0.2/24", 100))
    ports = [port(name)]
    return Scene(Snapshot(document(containers=[joined], ports=ports), interfaces(1), 1, 1.0))


# -- of a real instance ----------------------------------------------------------------------------


BRIDGE = (
    "ip link add br0 type bridge; ip addr add 10.88.0.1/24 dev br0; ip link set br0 up; "
    "unshare -n sleep 1000 & p=$!; "
    "until [ $(readlink /proc/$p/ns/net) != $(readlink /proc/self/ns/net) ]; do :; done; "
    "ip link add v0 type veth peer name eth0 netns $p; ip link set v0 master br0 up; "
    "echo in; read x; kill $p"
)


def test_a_real_instance_with_a_bridge_and_what_is_plugged_into_it(net: Net) -> None:
    child = net.start("enter", "sh", "-c", BRIDGE)
    assert child.stdout is not None and child.stdout.readline() == "in\n"
    pid = net.pids()["driver"]
    lines = net.run("graph", env={"PYTHONIOENCODING": "utf-8"}).stdout.splitlines()
    assert lines[0].startswith(f"{net.name}: running  ({net.static_dir}")
    assert lines[1:3] == ["host", lines[2]]
    assert lines[2].startswith("└── slirp4netns ") and f"pid {pid}" in lines[2]
    assert lines[3].startswith("    └── tap0  10.0.2.100/24, ")
    assert lines[4:] == [
        "        └── br0  10.88.0.1/24",
        "            └── another namespace  = v0",
    ]
    inside = net.inside("rootlessnet", "graph", env={"PYTHONIOENCODING": "utf-8"})
    assert inside.splitlines()[1:] == lines[1:], "the same from inside"
    root = ElementTree.fromstring(net.run("graph", "--format", "svg").stdout)
    titles = [text.text for text in root.iter(f"{SVG}text") if text.get("class") == "title"]
    assert {"host", "tap0", "br0", "another namespace"} < set(titles)
    net.release(child)


def test_text_is_ascii_where_the_terminal_knows_no_other(net: Net) -> None:
    net.hold()
    lines = net.run("graph", env={"PYTHONIOENCODING": "ascii"}).stdout.splitlines()
    assert lines[2].startswith("`-- slirp4netns ")


def test_an_instance_of_another_user_namespace_is_refused(net: Net) -> None:
    net.hold()
    for command in ("graph", "metrics"):
        done = net.run(command, check=False, prefix=["unshare", "-Ur"])
        assert (done.returncode, done.stdout) == (125, "")
        assert done.stderr == (
            "rootlessnet: read the interfaces of the instance: Operation not permitted\n"
            "  hint: run it in the user namespace that the instance was started in\n"
        )


@pytest.mark.parametrize("form", ["text", "svg", "dot", "mermaid"])
def test_an_instance_that_is_down_is_drawn_as_such(net: Net, form: str) -> None:
    done = net.run("graph", "--format", form)
    assert f"{net.name}: down" in done.stdout or form == "mermaid"
    assert "host" in done.stdout
    assert not net.directory.exists(), "looking starts nothing"


def test_a_format_that_does_not_exist(net: Net) -> None:
    done = net.run("graph", "--format", "png", check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("rootlessnet: --format png: one of text, svg, dot, mermaid\n")


def test_a_file_is_utf8_whatever_the_terminal_is(net: Net) -> None:
    odd = Net(net.static_dir.with_name("straße"), net.runtime)
    environment = {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"}
    assert "straße" in odd.run("graph", "--format", "svg", env=environment).stdout
    assert "stra\\xdfe" in odd.run("graph", env=environment).stdout


# -- what is drawn ---------------------------------------------------------------------------------


def test_a_container_shows_its_interfaces_addresses_and_ports() -> None:
    scene = scene_with("web")
    (box,) = scene.column(CONTAINER)
    assert [row.strip() for row in box.rows] == [
        "eth0 = veth0", "10.89.0.2/24", "127.0.0.1:8080 > 80/tcp",
    ]  # fmt: skip
    assert box in [end for start, end in scene.lines if start.title == "podman0"]


def test_a_container_on_two_networks_has_a_line_from_each() -> None:
    scene = Scene(crowd(5, 2))
    (box,) = [box for box in scene.column(CONTAINER) if box.title == "web-4"]
    assert {start.title for start, end in scene.lines if end is box} == {"podman0", "podman1"}
    text = tree.draw(scene)
    assert re.search(r"web-4  eth0 = veth4, 10\.89\.0\.6/24, 127", text)
    assert re.search(r"web-4  eth2 = veth4x1, 10\.89\.1\.6/24, 127", text)


def test_a_network_without_a_bridge_is_drawn_too() -> None:
    joined = container("c", attachment("lan", "", "192.0.2.9/24", 0))
    scene = Scene(Snapshot(document(containers=[joined]), interfaces(0, 0), 1, 1.0))
    assert ("lan", "c") in {(start.title, end.title) for start, end in scene.lines}


def test_what_does_not_work_is_marked() -> None:
    driver = {**document()["driver"], "pid": None, "restarts": 3}
    down = [Interface("tap0", 2, kind="tun", is_up=False)]
    scene = Scene(Snapshot(document(driver=driver, state="degraded"), down, 0, 1.0))
    assert [box.title for box in scene.boxes if box.is_bad] == ["slirp4netns 1.2.0", "tap0"]
    assert "slirp4netns 1.2.0!  not running, restarts 3" in tree.draw(scene)
    assert 'class="driver bad"' in svg.draw(scene)


def test_a_device_that_was_moved_in_is_drawn() -> None:
    found = [*interfaces(0, 0), Interface("eth7", 9, addresses=["192.0.2.1/24"])]
    scene = Scene(Snapshot(document(), found, 0, 1.0))
    assert ("tap0", "eth7") in {(start.title, end.title) for start, end in scene.lines}


# -- SVG -------------------------------------------------------------------------------------------


class Drawn:
    """An SVG file, read as a browser would."""

    def __init__(self, text: str) -> None:
        self.root = ElementTree.fromstring(text)
        assert self.root.tag == f"{SVG}svg"
        self.boxes = [
            tuple(float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
            for rect in self.root.iter(f"{SVG}rect")
            if rect.get("class") == "box"
        ]
        self.texts = list(self.root.iter(f"{SVG}text"))


@pytest.mark.parametrize("bridges", [1, 3])
@pytest.mark.parametrize("count", range(21))
def test_nothing_overlaps_for_any_number_of_containers(count: int, bridges: int) -> None:
    scene = Scene(crowd(count, bridges))
    drawn = Drawn(svg.draw(scene))
    assert len(drawn.boxes) == len(scene.boxes) == 3 + bridges + count
    _, _, width, height = map(float, drawn.root.attrib["viewBox"].split())
    for x, y, w, h in drawn.boxes:
        assert 0 <= x and x + w <= width and 0 <= y and y + h <= height
    for (ax, ay, aw, ah), (bx, by, bw, bh) in combinations(drawn.boxes, 2):
        apart = ax + aw < bx or bx + bw < ax or ay + ah < by or by + bh < ay
        assert apart, "two boxes overlap"
    for path in drawn.root.iter(f"{SVG}path"):
        x1, _, _, _, _, _, x2, _ = map(float, re.findall(r"-?[\d.]+", path.attrib["d"]))
        for x, _, w, _ in drawn.boxes:
            assert x + w <= x1 + 0.1 or x >= x2 - 0.1, "a line runs through a column of boxes"


def test_text_stays_in_its_box_in_any_font() -> None:
    drawn = Drawn(svg.draw(Scene(crowd(20, 3))))
    for group in drawn.root.iter(f"{SVG}g"):
        rect = group.find(f"{SVG}rect")
        assert rect is not None
        left = float(rect.attrib["x"])
        right = left + float(rect.attrib["width"])
        rows = []
        for text in group.iter(f"{SVG}text"):
            x = float(text.attrib["x"])
            # Where no width is told, 0.8 em a letter is more than any font has.
            width = float(text.get("textLength") or len(text.text or "") * 0.6 * 13)
            assert left < x and x + width < right, text.text
            rows.append(float(text.attrib["y"]))
        assert all(below - above >= 15 for above, below in pairwise(rows))


def test_svg_stands_alone_and_is_for_everybody() -> None:
    text = svg.draw(scene_with("web"))
    drawn = Drawn(text)
    assert drawn.root.find(f"{SVG}title") is not None
    description = drawn.root.find(f"{SVG}desc")
    assert description is not None and "podman0" in (description.text or "")
    assert drawn.root.get("role") == "img" and drawn.root.get("aria-labelledby") == "title desc"
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|url\(|@import|<script|<image", text)


def test_a_name_is_never_markup_in_svg() -> None:
    text = svg.draw(scene_with(HOSTILE))
    drawn = Drawn(text)
    assert {element.tag.removeprefix(SVG) for element in drawn.root.iter()} == {
        "svg", "title", "desc", "style", "rect", "text", "path", "g",
    }  # fmt: skip
    titles = [title.text or "" for title in drawn.root.iter(f"{SVG}title")]
    assert any("<script>alert(1)</script>&amp;" in title for title in titles)
    assert not any(c in text for c in "\x1b\u202e")


def test_a_long_name_is_shortened_and_whole_where_the_pointer_rests() -> None:
    name = "a" * 60 + "z" * 60
    drawn = Drawn(svg.draw(scene_with(name)))
    assert not any(name in (text.text or "") for text in drawn.texts)
    assert any(re.fullmatch("a+…z+", text.text or "") for text in drawn.texts)
    assert any((title.text or "").startswith(name) for title in drawn.root.iter(f"{SVG}title"))


# -- dot -------------------------------------------------------------------------------------------


DOT_TOKEN = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*")|(->)|([A-Za-z_]\w*)|([{}\[\];=,]))', re.S)


class Dot:
    """The part of graphviz' grammar that `graph` writes; anything else is refused."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = []
        position = 0
        text = text.rstrip()
        while position < len(text):
            found = DOT_TOKEN.match(text, position)
            assert found, f"not dot: {text[position : position + 40]!r}"
            self.tokens.append(next(token for token in found.groups() if token is not None))
            position = found.end()
        self.nodes: dict[str, str] = {}
        self.edges: list[tuple[str, str]] = []
        self._take("digraph")
        self._id()
        self._block()
        assert not self.tokens

    def _take(self, wanted: str) -> None:
        assert self.tokens.pop(0) == wanted

    def _id(self) -> str:
        token = self.tokens.pop(0)
        assert token[0] == '"' or token[0].isalpha(), token
        return token

    def _block(self) -> None:
        self._take("{")
        while self.tokens[0] != "}":
            if self.tokens[0] == "subgraph":
                self.tokens.pop(0)
                self._id()
                self._block()
                continue
            name = self._id()
            if self.tokens[0] == "=":
                self.tokens.pop(0)
                self._id()
            elif self.tokens[0] == "->":
                self.tokens.pop(0)
                self.edges.append((name, self._id()))
            else:
                attributes = self._attributes()
                if name not in ("node", "edge"):
                    self.nodes[name] = attributes["label"]
            self._take(";")
        self._take("}")

    def _attributes(self) -> dict[str, str]:
        found = {}
        self._take("[")
        while self.tokens[0] != "]":
            name = self._id()
            self._take("=")
            found[name] = self._id()
            if self.tokens[0] == ",":
                self.tokens.pop(0)
        self._take("]")
        return found


@pytest.mark.parametrize("name", ["web", HOSTILE, "\\", '"', "\\N", "", "é"])
def test_dot_says_what_is_there_whatever_it_is_called(name: str) -> None:
    scene = scene_with(name)
    read = Dot(dot.draw(scene))
    assert set(read.nodes) == {box.id for box in scene.boxes}
    assert read.edges == [(start.id, end.id) for start, end in scene.lines]
    (box,) = scene.column(CONTAINER)
    label = read.nodes[box.id]
    # What graphviz would make a line end, a node's name or an entity of is none of the name's.
    shown = re.split(r"\\n", label.strip('"'), maxsplit=1)[0] if "\\" not in name else ""
    assert "\\" in name or shown.replace("&amp;", "&") == name.replace('"', '\\"')
    assert not re.search(r"(?<!\\)(?:\\\\)*\\[NGETH]", label)
    assert not re.search(r"&(?!amp;)", label)


# -- mermaid ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["web", HOSTILE, "end", "`x`", '"', "", "é"])
def test_mermaid_has_a_line_for_each_box_and_line_and_nothing_else(name: str) -> None:
    scene = scene_with(name)
    lines = mermaid.draw(scene).splitlines()
    assert lines[0] == "flowchart LR"
    nodes, edges, other = {}, [], []
    for line in lines[1:]:
        if node := re.fullmatch(r' +(n\d+)\["([^"`&;\\]*(?:#\d+;[^"`&;\\]*)*)"\]', line):
            nodes[node[1]] = node[2]
        elif edge := re.fullmatch(r"  (n\d+) --- (n\d+)", line):
            edges.append((edge[1], edge[2]))
        else:
            other.append(line.split()[0])
    assert set(nodes) == {box.id for box in scene.boxes}
    assert edges == [(start.id, end.id) for start, end in scene.lines]
    assert other == ["subgraph", "end"]
    assert not any("<" in label.replace("<br/>", "") for label in nodes.values())
