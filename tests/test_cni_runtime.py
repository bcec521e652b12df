"""How plugins are called and what becomes of their answers: a runtime with plugins of our own."""

from __future__ import annotations

import base64
import json
import os
import signal
import stat
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from cni_support import OWN, Bench, answers, network, script
from support import wait_for

from rootlessnet.errors import Error, reason
from rootlessnet.networks.cni_plugins import PluginError


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def error_of(function: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(Error) as caught:
        function(*arguments, **options)
    return reason(caught.value)


IPS = [{"interface": 0, "address": "203.0.113.5/24", "gateway": "203.0.113.1"}]
RESULT = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": OWN}],
    "ips": IPS,
    "dns": {"nameservers": ["203.0.113.53"]},
}


# -- ADD -------------------------------------------------------------------------------------------


def test_a_chain_is_called_in_order_with_the_result_before(bench: Bench) -> None:
    bench.plugin("one", result=RESULT)
    bench.plugin("two", result={**RESULT, "routes": [{"dst": "0.0.0.0/0"}]})
    lab = network({"type": "one", "bridge": "br7"}, "two")
    result = bench.runtime.add(
        lab, "c1", OWN, "eth0", args=[("IgnoreUnknown", "1"), ("IP", "203.0.113.5")]
    )
    assert result == {**RESULT, "routes": [{"dst": "0.0.0.0/0"}]}
    one, two = bench.calls()
    assert one.config == {"type": "one", "bridge": "br7", "name": "lab", "cniVersion": "1.0.0"}
    assert two.config == {
        "type": "two", "name": "lab", "cniVersion": "1.0.0", "prevResult": RESULT
    }  # fmt: skip
    assert one.environment == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": OWN,
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "IgnoreUnknown=1;IP=203.0.113.5",
        "CNI_PATH": f"{bench.plugins}:/usr/lib/cni",
    }


def test_capabilities_that_are_on_and_given_become_runtime_config(bench: Bench) -> None:
    bench.plugin("one")
    bench.plugin("two")
    given = {
        "portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "tcp"}],
        "bandwidth": {"ingressRate": 1000},
        "mac": "02:00:00:00:00:07",
        "ips": ["203.0.113.5"],
    }
    one = {"type": "one", "capabilities": {"portMappings": True, "mac": False, "aliases": True}}
    two = {"type": "two", "capabilities": {"aliases": True}}
    lab = network(one, two)
    bench.runtime.add(lab, "c1", OWN, "eth0", capability_args=given)
    first, second = bench.calls()
    assert first.config["runtimeConfig"] == {"portMappings": given["portMappings"]}
    assert "runtimeConfig" not in second.config


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_results_are_converted_to_the_version_of_the_network(bench: Bench, version: str) -> None:
    old = {
        "cniVersion": "0.2.0",
        "ip4": {"ip": "203.0.113.5/24", "gateway": "203.0.113.1"},
        "dns": {"nameservers": ["203.0.113.53"], "search": ["example"]},
    }
    bench.plugin("old", result=old)
    bench.plugin("two", script='[ "$CNI_COMMAND" != ADD ] || exit 0')
    error_of(bench.runtime.add, network("old", "two", version=version), "c1", OWN, "eth0")
    previous = bench.calls()[1].config["prevResult"]
    family = {"version": "4"} if version < "1" else {}
    assert previous == {
        "cniVersion": version,
        "ips": [{**family, "address": "203.0.113.5/24", "gateway": "203.0.113.1"}],
        "dns": {"nameservers": ["203.0.113.53"], "search": ["example"]},
    }


def test_a_result_without_a_version_is_in_the_one_that_was_asked_for(bench: Bench) -> None:
    bench.plugin("one", result={"ips": [{"address": "203.0.113.5/24"}]})
    result = bench.runtime.add(network("one"), "c1", OWN, "eth0")
    assert result == {"cniVersion": "1.0.0", "ips": [{"address": "203.0.113.5/24"}]}


FAILED = 'plugin type="one" failed (add): '
SAID = FAILED + "cni plugin one failed: "


@pytest.mark.parametrize(
    ("does", "message"),
    [
        ('echo \'{"code": 11, "msg": "busy", "details": "wait"}\'; exit 1', SAID + "busy: wait"),
        ("echo '{\"code\": 11}'; exit 1", FAILED + "cni plugin one failed with error code 11"),
        ("echo only here >&2; exit 2", SAID + "only here"),
        ("exit 3", SAID + "exit status 3"),
        ("kill -9 $$", SAID + "signal: killed"),
        (
            "echo '{bad'; exit 1",
            SAID + 'failed to unmarshal error message "{bad\\n": Expecting property name '
            "enclosed in double quotes: line 1 column 2 (char 1)",
        ),
        (
            "echo '{bad'; exit 0",
            SAID + 'the result is not JSON: "{bad\\n": Expecting property name enclosed in '
            "double quotes: line 1 column 2 (char 1)",
        ),
        ("exit 0", SAID + "it gave no result"),
        (
            "echo '[1]'; exit 0",
            FAILED + "the result cannot be understood: "
            "json: cannot unmarshal array into Go struct field .result of type object",
        ),
        (
            'echo \'{"cniVersion": "9.9.9"}\'; exit 0',
            FAILED + 'the result cannot be understood: unsupported CNI result version "9.9.9"',
        ),
        (
            'echo \'{"cniVersion": "1.0.0", "ips": [{"address": "x"}]}\'; exit 0',
            FAILED + "the result cannot be understood: invalid CIDR address: x",
        ),
    ],
)
def test_a_failure_is_told_in_podmans_words(bench: Bench, does: str, message: str) -> None:
    bench.plugin("one", script=f'[ "$CNI_COMMAND" != ADD ] || {{ {does}; }}')
    assert error_of(bench.runtime.add, network("one"), "c1", OWN, "eth0") == message
    assert not list(bench.entry("").iterdir())


def test_codes_are_there_for_programs(bench: Bench) -> None:
    bench.plugin("one", script='[ "$CNI_COMMAND" != ADD ] || { echo \'{"code": 11}\'; exit 1; }')
    with pytest.raises(Error) as caught:
        bench.runtime.add(network("one"), "c1", OWN, "eth0")
    assert isinstance(caught.value.__cause__, PluginError)
    assert caught.value.__cause__.code == 11


def test_what_a_plugin_says_on_stderr_is_passed_on(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    bench.plugin("one", script="echo take care >&2")
    bench.runtime.add(network("one"), "c1", OWN, "eth0")
    assert capfd.readouterr().err == "take care\n"


def test_a_failed_add_is_undone_from_the_last_to_the_first(bench: Bench) -> None:
    bench.plugin("one")
    bench.plugin("two", script='[ "$CNI_COMMAND" != ADD ] || { echo no >&2; exit 1; }')
    bench.plugin("three")
    lab = network("one", "two", "three")
    message = error_of(bench.runtime.add, lab, "c1", OWN, "eth0")
    assert message == 'plugin type="two" failed (add): cni plugin two failed: no'
    assert bench.commands() == ["ADD one", "ADD two", "DEL three", "DEL two", "DEL one"]
    assert not bench.entry("lab-c1-eth0").exists()


def test_the_first_error_is_told_also_when_undoing_fails(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    bench.plugin("one", script="echo $CNI_COMMAND fails >&2; exit 1")
    assert error_of(bench.runtime.add, network("one"), "c1", OWN, "eth0") == SAID + "ADD fails"
    assert "undo a failed attachment: " in capfd.readouterr().err
    # What could not be undone is remembered, without keeping anybody's instance.
    assert os.listdir(bench.entry("")) == [".lab-c1-eth0"]
    bench.plugin("one")
    bench.calls()
    bench.runtime.add(network("one"), "c1", OWN, "eth0")
    assert bench.commands() == ["DEL one", "ADD one"]


def test_nothing_runs_when_a_plugin_is_missing(bench: Bench) -> None:
    bench.plugin("one")
    message = error_of(bench.runtime.add, network("one", "nosuch"), "c1", OWN, "eth0")
    assert message == (
        'plugin type="nosuch" failed (add): failed to find plugin "nosuch" in path '
        f"[{bench.plugins} /usr/lib/cni]"
    )
    assert bench.commands() == []
    message = error_of(bench.runtime.add, network("a/../one"), "c1", OWN, "eth0")
    assert message == 'plugin type="a/../one" failed (add): invalid plugin name: a/../one'
    (bench.plugins / "directory").mkdir()
    assert "failed to find" in error_of(bench.runtime.add, network("directory"), "c1", OWN, "eth0")


@pytest.mark.parametrize(
    ("container", "interface", "name", "message"),
    [
        ("", "eth0", "lab", "missing containerID"),
        ("a/b", "eth0", "lab", "invalid characters in containerID: a/b"),
        ("c1", "", "lab", "interface name is empty"),
        ("c1", "a" * 16, "lab", "interface name is too long: interface name should be less than "
         "16 characters"),
        ("c1", "..", "lab", "interface name is . or .."),
        ("c1", "a:b", "lab", "interface name contains / or : or whitespace characters"),
        ("c1", "eth0", "../x", "invalid characters found in network name: ../x"),
    ],
)  # fmt: skip
def test_wrong_names_are_refused(
    bench: Bench, container: str, interface: str, name: str, message: str
) -> None:
    bench.plugin("one")
    lab = network("one", name=name)
    assert error_of(bench.runtime.add, lab, container, OWN, interface) == message
    assert bench.commands() == []


def test_wrong_versions_and_namespaces_are_refused(bench: Bench, tmp_path: Path) -> None:
    bench.plugin("one")
    message = error_of(bench.runtime.add, network("one", version="9.0.0"), "c1", OWN, "eth0")
    assert message == 'use network lab: there is no version "9.0.0" of CNI'
    message = error_of(bench.runtime.add, network("one"), "c1", "/nowhere", "eth0")
    assert message == "open the network namespace: /nowhere: No such file or directory"
    file = tmp_path / "file"
    file.touch()
    message = error_of(bench.runtime.add, network("one"), "c1", str(file), "eth0")
    assert message == f"open the network namespace: {file}: not a network namespace"
    assert bench.commands() == []


def test_a_plugin_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    bench = Bench(tmp_path, seconds=0.3)
    pids = tmp_path / "pids"
    bench.plugin(
        "one",
        script=f'[ "$CNI_COMMAND" = DEL ] || {{ sleep 1000 & echo $! $$ > {pids}; wait; }}',
    )
    assert error_of(bench.runtime.add, network("one"), "c1", OWN, "eth0") == (
        SAID + "no answer in 0.3 s"
    )
    for pid in pids.read_text().split():
        wait_for("it is dead", lambda p=pid: not is_running(int(p)))
    assert bench.commands() == ["ADD one", "DEL one"]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_plugin_that_is_being_replaced_is_tried_again(bench: Bench) -> None:
    path = bench.plugin("one")
    fd = os.open(path, os.O_WRONLY)
    timer = threading.Timer(0.2, os.close, [fd])
    timer.start()
    try:
        with pytest.raises(OSError, match="Text file busy"):
            subprocess.run([path], check=False)
        bench.runtime.add(network("one"), "c1", OWN, "eth0")
    finally:
        timer.join()
    assert bench.commands() == ["ADD one"]


# -- what is remembered ----------------------------------------------------------------------------


def test_the_cache_is_libcnis(bench: Bench) -> None:
    bench.plugin("one", result=RESULT)
    lab = network({"type": "one", "capabilities": {"ips": True}})
    bench.runtime.add(
        lab, "c1", OWN, "eth0", args=[("K", "V"), ("IP", "1")], capability_args={"ips": ["x"]}
    )
    path = bench.entry("lab-c1-eth0")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["lab-c1-eth0"]
    document = json.loads(path.read_text())
    assert document.pop("netnsInode") == os.stat(OWN).st_ino
    assert json.loads(base64.b64decode(document.pop("config"))) == json.loads(lab.data)
    assert document == {
        "kind": "cniCacheV1",
        "containerId": "c1",
        "ifName": "eth0",
        "networkName": "lab",
        "netns": OWN,
        "cniArgs": [["K", "V"], ["IP", "1"]],
        "capabilityArgs": {"ips": ["x"]},
        "result": RESULT,
    }


def test_del_is_called_in_reverse_with_what_add_had(bench: Bench) -> None:
    bench.plugin("one", result=RESULT)
    bench.plugin("two", result=RESULT)
    one = {"type": "one", "capabilities": {"mac": True}, "version": "first"}
    bench.runtime.add(
        network(one, "two"), "c1", OWN, "eth0", args=[("A", "1")], capability_args={"mac": "m"}
    )
    bench.calls()
    changed = network({"type": "one", "version": "second"})
    bench.runtime.delete(changed, "c1", OWN, "eth0", args=[("A", "2")])
    two, first = bench.calls()
    assert (two.plugin, first.plugin) == ("two", "one")
    assert first.config["version"] == "first"
    assert first.config["prevResult"] == two.config["prevResult"] == RESULT
    assert first.config["runtimeConfig"] == {"mac": "m"}
    assert first.environment["CNI_ARGS"] == "A=1"
    assert not bench.entry("lab-c1-eth0").exists()


def test_del_may_be_repeated_and_needs_no_network_then(bench: Bench) -> None:
    bench.plugin("one", result=RESULT)
    bench.runtime.add(network("one"), "c1", OWN, "eth0")
    bench.runtime.delete(None, "c1", OWN, "eth0", name="lab")
    bench.calls()
    bench.runtime.delete(None, "c1", OWN, "eth0", name="lab")
    assert bench.commands() == []
    bench.runtime.delete(network("one"), "c1", OWN, "eth0")
    assert bench.commands() == ["DEL one"]


def test_versions_before_040_get_no_prev_result_at_del(bench: Bench) -> None:
    bench.plugin("one", result={**RESULT, "cniVersion": "0.3.1"})
    bench.runtime.add(network("one", version="0.3.1"), "c1", OWN, "eth0")
    bench.runtime.delete(network("one", version="0.3.1"), "c1", OWN, "eth0")
    assert "prevResult" not in bench.calls()[1].config


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"kind": "cniCacheV1"}'])
def test_del_works_with_a_damaged_cache_and_deletes_it(bench: Bench, content: bytes) -> None:
    bench.plugin("one", result=RESULT)
    bench.runtime.add(network("one"), "c1", OWN, "eth0")
    bench.entry("lab-c1-eth0").write_bytes(content)
    bench.calls()
    assert bench.runtime.attached() == []
    bench.runtime.delete(network("one"), "c1", OWN, "eth0", args=[("A", "2")])
    (call,) = bench.calls()
    assert "prevResult" not in call.config
    assert call.environment["CNI_ARGS"] == "A=2"
    assert not bench.entry("lab-c1-eth0").exists()
    bench.entry("lab-c1-eth0").write_bytes(content)
    bench.runtime.add(network("one"), "c1", OWN, "eth0")


def test_a_bare_result_of_an_old_libcni_is_read(bench: Bench) -> None:
    bench.plugin("one")
    bench.entry("").mkdir(parents=True)
    bench.entry("lab-c1-eth0").write_text(json.dumps(RESULT))
    bench.runtime.delete(network("one", version="0.4.0"), "c1", OWN, "eth0")
    (call,) = bench.calls()
    assert call.config["prevResult"]["ips"] == [{"version": "4", **IPS[0]}]


def test_names_with_dashes_do_not_become_one(bench: Bench) -> None:
    bench.plugin("one", result=RESULT)
    bench.runtime.add(network("one", name="a-b"), "c", OWN, "eth0")
    message = error_of(bench.runtime.add, network("one", name="a"), "b-c", OWN, "eth0")
    path = bench.entry("a-b-c-eth0")
    assert message == f"attach b-c to a: {path} is the result of another container or network"
    bench.calls()
    bench.runtime.delete(network("one", name="a"), "b-c", OWN, "eth0")
    assert bench.commands() == []
    assert path.exists()


def test_a_container_is_attached_once(bench: Bench) -> None:
    bench.plugin("one", result=RESULT)
    bench.runtime.add(network("one"), "c1", OWN, "eth0")
    message = error_of(bench.runtime.add, network("one"), "c1", OWN, "eth0")
    assert message == "c1 is attached to lab as eth0 already"
    assert bench.commands() == ["ADD one"]
    bench.runtime.add(network("one"), "c1", OWN, "eth1")
    assert [entry.attachment.interface for entry in bench.runtime.attached("c1")] == [
        "eth0", "eth1",
    ]  # fmt: skip


def test_del_goes_on_after_a_failure_and_remembers(bench: Bench) -> None:
    bench.plugin("one", result=RESULT)
    fails = '[ "$CNI_COMMAND" = ADD ] || { echo no >&2; exit 1; }'
    bench.plugin("two", script=fails, result=RESULT)
    bench.runtime.add(network("one", "two"), "c1", OWN, "eth0")
    bench.calls()
    message = error_of(bench.runtime.delete, None, "c1", OWN, "eth0", name="lab")
    assert message == (
        'detach c1 from lab: plugin type="two" failed (delete): cni plugin two failed: no'
    )
    assert bench.commands() == ["DEL two", "DEL one"]
    assert os.listdir(bench.entry("")) == ["lab-c1-eth0"]
    # Whoever will not come again leaves a mark, which keeps no instance, and all that was known.
    error_of(bench.runtime.delete, None, "c1", OWN, "eth0", name="lab", give_up=True)
    assert os.listdir(bench.entry("")) == [".lab-c1-eth0"]
    bench.calls()
    bench.plugin("two")
    bench.runtime.delete(None, "c1", OWN, "eth0", name="lab")
    two, one = bench.calls()
    assert one.config["prevResult"] == two.config["prevResult"] == RESULT
    assert bench.runtime.attached() == []


def test_a_namespace_that_is_gone_or_another_is_not_touched(bench: Bench) -> None:
    bench.plugin("one", result=RESULT)
    path = "/proc/thread-self/ns/net"
    bench.runtime.add(network("one"), "c1", path, "eth0")
    entry = bench.entry("lab-c1-eth0")
    document = json.loads(entry.read_text())
    # Another namespace has come to be at the path, as when a process number is used again.
    entry.write_text(json.dumps({**document, "netnsInode": 1}))
    bench.calls()
    bench.runtime.delete(None, "c1", path, "eth0", name="lab")
    assert bench.calls()[0].environment["CNI_NETNS"] == ""
    # An empty path is enough where the one of ADD is still what it was.
    entry.write_text(json.dumps(document))
    bench.runtime.delete(None, "c1", "", "eth0", name="lab")
    assert bench.calls()[0].environment["CNI_NETNS"] == path
    # A bind mount that is gone leaves a plain file.
    bench.runtime.delete(network("one"), "c1", "/etc/hostname", "eth0")
    assert bench.calls()[0].environment["CNI_NETNS"] == ""


# -- the other commands ----------------------------------------------------------------------------


def test_check_gets_the_result_and_tells_what_is_wrong(bench: Bench) -> None:
    bench.plugin("one", result=RESULT)
    bench.plugin("two", result=RESULT, script='[ "$CNI_COMMAND" != CHECK ] || { echo gone; }')
    lab = network({"type": "one", "capabilities": {"mac": True}}, "two")
    bench.runtime.add(lab, "c1", OWN, "eth0", args=[("A", "1")], capability_args={"mac": "m"})
    bench.calls()
    message = error_of(bench.runtime.check, lab, "c1", OWN, "eth0")
    assert 'plugin type="two" failed (check): ' in message
    one, two = bench.calls()
    assert one.config["prevResult"] == two.config["prevResult"] == RESULT
    assert one.config["runtimeConfig"] == {"mac": "m"}
    assert one.environment["CNI_ARGS"] == "A=1"


def test_check_where_it_is_not_there_or_turned_off(bench: Bench) -> None:
    bench.plugin("one")
    lab = network("one", version="0.3.1")
    assert error_of(bench.runtime.check, lab, "c1", OWN, "eth0") == (
        'configuration version "0.3.1" does not support the CHECK command'
    )
    bench.runtime.check(network("one", disableCheck="true"), "c1", OWN, "eth0")
    assert bench.commands() == []


def test_status(bench: Bench) -> None:
    bench.plugin("one", script='[ "$CNI_COMMAND" != STATUS ] || { echo down >&2; exit 1; }')
    bench.plugin("two")
    bench.runtime.status(network("two", version="1.1.0"))
    (call,) = bench.calls()
    assert (call.command, call.environment["CNI_NETNS"]) == ("STATUS", "")
    lab = network("two", "one", "two", version="1.1.0")
    assert error_of(bench.runtime.status, lab) == "cni plugin one failed: down"
    assert bench.commands() == ["STATUS two", "STATUS one"]
    bench.runtime.status(network("one", version="1.0.0"))
    assert bench.commands() == []


def test_gc_deletes_what_is_stale_and_tells_the_plugins(bench: Bench) -> None:
    bench.plugin("one", result=RESULT)
    bench.plugin("two", script='[ "$CNI_COMMAND" != GC ] || { echo cannot >&2; exit 1; }')
    lab = network("one", "two", version="1.1.0")
    other = network("one", name="other")
    for container in ("c1", "c2"):
        bench.runtime.add(lab, container, OWN, "eth0")
    bench.runtime.add(other, "c1", OWN, "eth1")
    bench.calls()
    message = error_of(bench.runtime.gc, lab, [("c2", "eth0")])
    assert message == (
        "collect what is stale on lab: failed to GC plugin two: cni plugin two failed: cannot"
    )
    calls = bench.calls()
    assert [(c.command, c.plugin) for c in calls] == [
        ("DEL", "two"), ("DEL", "one"), ("GC", "one"), ("GC", "two"),
    ]  # fmt: skip
    assert calls[0].environment["CNI_CONTAINERID"] == "c1"
    config = calls[2].config
    assert config["cni.dev/valid-attachments"] == [{"containerID": "c2", "ifname": "eth0"}]
    assert config["cni.dev/attachments"] == config["cni.dev/valid-attachments"]
    assert "prevResult" not in config
    assert sorted(os.listdir(bench.entry(""))) == ["lab-c2-eth0", "other-c1-eth1"]
    bench.runtime.gc(network("one", "two", version="1.1.0", disableGC=True), [])
    assert bench.commands() == []
    bench.runtime.gc(network("one", version="1.0.0"), [])
    assert bench.commands() == ["DEL two", "DEL one"]


# -- together, and killed --------------------------------------------------------------------------


def program(bench: Bench, code: str) -> list[str]:
    head = f"""
        runtime = Runtime([{str(bench.plugins)!r}, "/usr/lib/cni"], {str(bench.cache)!r})
        def lab(*kinds, version="1.1.0"):
            plugins = [dict(type=kind) for kind in kinds]
            return cni_list.parse(json.dumps(
                dict(name="lab", cniVersion=version, plugins=plugins)).encode())
        own = {OWN!r}
        """
    import textwrap

    return script(textwrap.dedent(head) + textwrap.dedent(code))


def test_gc_waits_for_those_at_work(bench: Bench, tmp_path: Path) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    bench.plugin("one", script=f'[ "$CNI_COMMAND" != ADD ] || read x < {go}', result=RESULT)
    code = 'answer(runtime.add, lab("one"), "c1", own, "eth0")'
    with subprocess.Popen(program(bench, code), stdout=subprocess.PIPE, text=True) as adding:
        wait_for("ADD has begun", lambda: any(bench.calls_dir.iterdir()))
        code = 'answer(runtime.gc, lab("one"), [])'
        with subprocess.Popen(program(bench, code), stdout=subprocess.PIPE, text=True) as gc:
            lock = bench.cache / "rootlessnet.lock"
            wait_for("GC is there", lambda: has_open(gc.pid, lock))
            # Another attachment has to wait for neither.
            bench.plugin("two", result=RESULT)
            bench.runtime.add(network("two"), "c2", OWN, "eth0")
            assert gc.poll() is None
            go.write_text("\n")
            assert answers(adding.communicate()[0]) == [{**RESULT, "cniVersion": "1.1.0"}]
            assert answers(gc.communicate()[0]) == [None]
    commands = bench.commands()
    assert commands[:2] == ["ADD one", "ADD two"]
    assert sorted(commands[2:]) == ["DEL one", "DEL two", "GC one"]
    assert bench.runtime.attached() == []


def has_open(pid: int, path: Path) -> bool:
    try:
        return any(
            os.readlink(f"/proc/{pid}/fd/{fd}") == str(path) for fd in os.listdir(f"/proc/{pid}/fd")
        )
    except OSError:
        return False


def test_a_plugin_that_outlives_its_runtime_has_the_attachment_to_itself(
    bench: Bench, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    bench.plugin("one", script=f'[ "$CNI_COMMAND" != ADD ] || read x < {go}', result=RESULT)
    code = 'answer(runtime.add, lab("one"), "c1", own, "eth0")'
    with subprocess.Popen(program(bench, code), stdout=subprocess.PIPE, text=True) as adding:
        wait_for("ADD has begun", lambda: any(bench.calls_dir.iterdir()))
        adding.kill()
        adding.communicate()
    deleting = threading.Thread(
        target=bench.runtime.delete, args=(None, "c1", OWN, "eth0"), kwargs={"name": "lab"}
    )
    deleting.start()
    assert deleting.is_alive()
    assert bench.commands() == ["ADD one"]
    go.write_text("\n")
    deleting.join(20)
    assert bench.commands() == ["DEL one"]
    assert bench.runtime.attached() == []


POINTS = [
    "files:written",
    "cni:begun",
    "cni:add:one",
    "cni:add:two",
    "cni:cached",
    "cni:added",
]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("then", ["add", "delete", "gc"])
def test_what_a_killed_add_leaves_is_taken_away(bench: Bench, point: str, then: str) -> None:
    held = bench.cache.parent / "held"
    hold = f'[ "$CNI_COMMAND" != ADD ] || touch {held}; [ "$CNI_COMMAND" != DEL ] || rm -f {held}'
    bench.plugin("one", script=hold, result=RESULT)
    bench.plugin("two", result=RESULT)
    code = 'answer(runtime.add, lab("one", "two"), "c1", own, "eth0")'
    environment = {**os.environ, "ROOTLESSNET_CRASH_AT": point}
    done = subprocess.run(program(bench, code), env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert held.exists() == (point not in ("files:written", "cni:begun"))
    lab = network("one", "two", version="1.1.0")
    if then == "add" and point in ("cni:cached", "cni:added"):
        message = error_of(bench.runtime.add, lab, "c1", "/proc/thread-self/ns/net", "eth0")
        assert message == "c1 is attached to lab as eth0 already"
        return
    if then == "add":
        bench.runtime.add(lab, "c1", OWN, "eth0")
        assert held.exists()
        assert os.listdir(bench.entry("")) == ["lab-c1-eth0"]
        bench.runtime.delete(lab, "c1", OWN, "eth0")
    elif then == "delete":
        bench.runtime.delete(lab, "c1", OWN, "eth0")
    else:
        bench.runtime.gc(lab, [])
    assert not held.exists()
    left = os.listdir(bench.entry(""))
    assert left == [] or (left == ["..lab-c1-eth0"] and point == "files:written")


@pytest.mark.parametrize("point", ["cni:del:two", "cni:del:one", "cni:deleted"])
def test_a_killed_del_is_done_again(bench: Bench, point: str) -> None:
    bench.plugin("one", result=RESULT)
    bench.plugin("two", result=RESULT)
    bench.runtime.add(network("one", "two"), "c1", OWN, "eth0")
    code = 'answer(runtime.delete, None, "c1", own, "eth0", name="lab")'
    environment = {**os.environ, "ROOTLESSNET_CRASH_AT": point}
    done = subprocess.run(program(bench, code), env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    bench.calls()
    bench.runtime.delete(None, "c1", OWN, "eth0", name="lab")
    assert bench.commands() == ([] if point == "cni:deleted" else ["DEL two", "DEL one"])
    assert bench.runtime.attached() == []


def test_nothing_happens_when_there_is_no_room_to_remember_it(bench: Bench) -> None:
    bench.plugin("one", result=RESULT)
    bench.cache.mkdir()
    bench.entry("").write_text("in the way")
    message = error_of(bench.runtime.add, network("one"), "c1", OWN, "eth0")
    assert message.startswith(f"write the CNI result: {bench.cache}/results: ")
    assert bench.commands() == []
