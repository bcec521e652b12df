"""Which configurations of CNI networks are understood, and what is said to the others."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cni_support import Bench

from rootlessnet.errors import Error, reason
from rootlessnet.networks import cni_list


def parse(**keys: Any) -> cni_list.NetworkList:
    document = {"name": "lab", "plugins": [{"type": "bridge"}], **keys}
    return cni_list.parse(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("keys", "version"),
    [
        ({"cniVersion": "0.3.1"}, "0.3.1"),
        ({"cniVersion": "0.4.0", "cniVersions": ["0.3.1", "1.0.0"]}, "1.0.0"),
        ({"cniVersion": "1.1.0", "cniVersions": ["0.3.1", "1.0.0"]}, "1.1.0"),
        ({"cniVersions": ["0.4.0", "1.1.0", "1.2.0", "9.0.0"]}, "1.1.0"),
        ({"cniVersions": ["0.4.0", "0.10.0"]}, "0.10.0"),
        ({"cniVersion": "0.4.0", "cniVersions": ["7.0.0"]}, "0.4.0"),
        ({}, ""),
    ],
)
def test_the_highest_version_that_is_known_is_spoken(keys: dict[str, Any], version: str) -> None:
    assert parse(**keys).version == version


@pytest.mark.parametrize(
    ("value", "truth"), [(True, True), ("true", True), ("False", False), (False, False)]
)
def test_booleans_may_be_strings(value: Any, truth: bool) -> None:
    found = parse(disableCheck=value, disableGC=value, loadOnlyInlinedPlugins=value)
    assert (found.disable_check, found.disable_gc, found.only_inlined) == (truth,) * 3


LIST = "error parsing configuration list: "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", LIST + "not a JSON object"),
        ('{"plugins": []}', LIST + "no name"),
        ('{"name": 3}', LIST + "invalid name type number"),
        ('{"name": "a", "plugins": []}', LIST + "no plugins in list"),
        ('{"name": "a", "plugins": {}}', LIST + "invalid 'plugins' type object"),
        ('{"name": "a"}', "no plugin configs found"),
        (
            '{"name": "a", "loadOnlyInlinedPlugins": true}',
            LIST + "`loadOnlyInlinedPlugins` is true, and no 'plugins' key",
        ),
        ('{"name": "a", "disableGC": "ja"}', LIST + 'invalid value "ja" for disableGC'),
        ('{"name": "a", "disableCheck": 1}', LIST + "invalid type number for disableCheck"),
        ('{"name": "a", "cniVersion": 1}', LIST + "invalid cniVersion type number"),
        ('{"name": "a", "cniVersions": ["x"]}', LIST + 'invalid version "x"'),
        (
            '{"name": "a", "plugins": [{"type": "x"}, {"name": "y"}]}',
            LIST + "failed to parse plugin config 1: error parsing configuration: missing 'type'",
        ),
        ("[" * 100_000, None),
    ],
)
def test_a_wrong_list_is_refused(text: str, message: str | None) -> None:
    with pytest.raises(Error) as caught:
        cni_list.parse(text.encode())
    assert message is None or reason(caught.value) == message


def test_a_single_configuration_is_a_list_of_one(tmp_path: Path) -> None:
    single = {"cniVersion": "0.4.0", "name": "solo", "type": "ptp", "ipam": {"type": "static"}}
    for name in ("a.conf", "b.json"):
        (tmp_path / name).write_text(json.dumps({**single, "name": name[0]}))
        found = cni_list.load_network(str(tmp_path), name[0])
        assert (found.name, found.version) == (name[0], "0.4.0")
        assert [plugin["ipam"] for plugin in found.plugins] == [{"type": "static"}]
        again = cni_list.parse(found.data)
        assert again.plugins == found.plugins


def test_lists_come_before_single_configurations(tmp_path: Path) -> None:
    (tmp_path / "0.conf").write_text('{"name": "n", "type": "single"}')
    (tmp_path / "9.conflist").write_text('{"name": "n", "plugins": [{"type": "late"}]}')
    (tmp_path / "5.conflist").write_text('{"name": "n", "plugins": [{"type": "early"}]}')
    (tmp_path / "1.conflist").write_text("{ damaged")
    (tmp_path / "2.conflist").mkdir()
    os.mkfifo(tmp_path / "3.conflist")
    found = cni_list.load_network(str(tmp_path), "n")
    assert [plugin["type"] for plugin in found.plugins] == ["early"]
    with pytest.raises(Error) as caught:
        cni_list.load_network(str(tmp_path), "none")
    assert str(caught.value) == f'no net configuration with name "none" in {tmp_path}'


def test_the_mistake_in_the_network_that_is_wanted_is_told(tmp_path: Path) -> None:
    (tmp_path / "1.conflist").write_text('{"name": "n", "plugins": []}')
    with pytest.raises(Error) as caught:
        cni_list.load_network(str(tmp_path), "n")
    assert str(caught.value) == LIST + "no plugins in list"


def test_plugins_may_have_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "20.conf").write_text('{"type": "third"}')
    (tmp_path / "n" / "10.conf").write_text('{"type": "second"}')
    (tmp_path / "n" / "10.json").write_text('{"type": "no"}')
    path = tmp_path / "n.conflist"
    document: dict[str, Any] = {"name": "n", "plugins": [{"type": "first"}]}
    path.write_text(json.dumps(document))
    found = cni_list.load_file(str(path))
    assert [plugin["type"] for plugin in found.plugins] == ["first", "second", "third"]
    # What is cached has them too, and nothing else is read then.
    assert [p["type"] for p in cni_list.parse(found.data).plugins] == ["first", "second", "third"]
    path.write_text(json.dumps({**document, "loadOnlyInlinedPlugins": "true"}))
    assert [plugin["type"] for plugin in cni_list.load_file(str(path)).plugins] == ["first"]
    (tmp_path / "n" / "10.conf").write_text("{}")
    path.write_text(json.dumps(document))
    with pytest.raises(Error) as caught:
        cni_list.load_file(str(path))
    assert reason(caught.value) == (
        f"failed to load plugin config file {tmp_path}/n/10.conf: "
        "error parsing configuration: missing 'type'"
    )


def test_validation_names_every_plugin_that_will_not_do(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.runtime.validate(parse(cniVersion="0.4.0"))
    with pytest.raises(Error) as caught:
        plugins = [{"type": kind} for kind in ("bridge", "nosuch", "../evil")]
        bench.runtime.validate(parse(cniVersion="1.1.0", plugins=plugins))
    assert str(caught.value) == (
        "use network lab: plugin bridge does not support config version "
        f'"1.1.0"; failed to find plugin "nosuch" in path [{bench.plugins} /usr/lib/cni]; '
        "invalid plugin name: ../evil"
    )
