"""config: what containers.conf and storage.conf say, and that podman reads them alike."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from network_support import Home
from network_support import home as home
from support import PROGRAM

SETTINGS = {
    "default_rootless_network_cmd", "network_cmd_path", "network_cmd_options", "pasta_options",
    "helper_binaries_dir", "network_backend", "network_config_dir", "cni_plugin_dirs",
    "netavark_plugin_dirs", "default_network", "default_subnet", "default_subnet_pools",
    "dns_bind_port", "firewall_driver", "static_dir", "tmp_dir", "graphroot", "runroot",
    "storage_driver",
}  # fmt: skip


def config(home: Home, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [PROGRAM, "config", *arguments],
        env=home.environment, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert not check or done.returncode == 0, done
    return done


def document(home: Home) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(config(home, "--json").stdout)
    return found


def test_every_setting_with_its_default(home: Home) -> None:
    found = document(home)
    assert set(found) == SETTINGS
    assert {item["source"] for item in found.values()} == {"default"}
    values = {key: item["value"] for key, item in found.items()}
    assert values["default_rootless_network_cmd"] == "slirp4netns"
    assert values["network_cmd_path"] is None and values["network_cmd_options"] == []
    assert values["network_backend"] == "netavark"
    assert values["network_config_dir"] == f"{home.graphroot}/networks"
    assert values["default_subnet_pools"][0] == {"base": "10.89.0.0/16", "size": 24}
    assert values["dns_bind_port"] == 0
    assert values["static_dir"] == f"{home.graphroot}/libpod"
    assert not home.graphroot.exists(), "looking changes nothing"


def test_every_setting_as_it_is_written(home: Home, tmp_path: Path) -> None:
    (tmp_path / "netavark").touch()
    home.configure(
        'default_rootless_network_cmd = "pasta"\npasta_options = ["-4"]\n'
        'network_backend = "netavark"\nnetwork_config_dir = "/nets"\ncni_plugin_dirs = ["/c"]\n'
        'netavark_plugin_dirs = ["/n", "/o"]\ndefault_network = "mine"\n'
        'default_subnet = "10.5.0.0/16"\ndns_bind_port = 5353\nfirewall_driver = "nftables"\n'
        'default_subnet_pools = [{"base" = "10.6.0.0/16", "size" = 28}]',
        'network_cmd_path = "/slirp"\nnetwork_cmd_options = ["mtu=1500"]\n'
        f'helper_binaries_dir = ["{tmp_path}"]\nstatic_dir = "/static"\ntmp_dir = "/tmp/x"',
    )
    found = document(home)
    written = {
        key: item["value"] for key, item in found.items() if item["source"] == str(home.conf)
    }
    assert written == {
        "default_rootless_network_cmd": "pasta", "pasta_options": ["-4"],
        "network_backend": "netavark", "network_config_dir": "/nets", "cni_plugin_dirs": ["/c"],
        "netavark_plugin_dirs": ["/n", "/o"], "default_network": "mine",
        "default_subnet": "10.5.0.0/16", "dns_bind_port": 5353, "firewall_driver": "nftables",
        "default_subnet_pools": [{"base": "10.6.0.0/16", "size": 28}],
        "network_cmd_path": "/slirp", "network_cmd_options": ["mtu=1500"],
        "helper_binaries_dir": [str(tmp_path)], "static_dir": "/static", "tmp_dir": "/tmp/x",
    }  # fmt: skip
    assert {key for key in found if key not in written} == {
        "graphroot",
        "runroot",
        "storage_driver",
    }


def test_later_files_win_and_each_is_named(home: Home, tmp_path: Path) -> None:
    del home.environment["CONTAINERS_CONF"]
    own = home.path / ".config/containers"
    (own / "containers.conf.d").mkdir(parents=True)
    first, second, third = own / "containers.conf", own / "containers.conf.d/1.conf", tmp_path / "o"
    first.write_text('[network]\ndefault_network = "one"\ndefault_subnet = "10.1.0.0/16"\n')
    second.write_text('[network]\ndefault_network = "two"\n')
    found = document(home)
    assert found["default_network"] == {"value": "two", "source": str(second)}
    assert found["default_subnet"] == {"value": "10.1.0.0/16", "source": str(first)}
    third.write_text('[network]\ndefault_network = "three"\n')
    home.environment["CONTAINERS_CONF_OVERRIDE"] = str(third)
    assert document(home)["default_network"] == {"value": "three", "source": str(third)}
    home.environment["CONTAINERS_HELPER_BINARY_DIR"] = "/first"
    found = document(home)
    assert found["helper_binaries_dir"]["value"][0] == "/first"
    assert found["helper_binaries_dir"]["source"] == "CONTAINERS_HELPER_BINARY_DIR"
    home.environment["ROOTLESSNET_STATIC_DIR"] = "/s"
    assert document(home)["static_dir"] == {"value": "/s", "source": "ROOTLESSNET_STATIC_DIR"}


def test_recorded_backend_names_its_file(home: Home) -> None:
    home.graphroot.mkdir(parents=True)
    home.sentinel.write_text("cni")
    found = document(home)
    assert found["network_backend"] == {"value": "cni", "source": str(home.sentinel)}
    assert found["network_config_dir"]["value"] == f"{home.path}/.config/cni/net.d"


def test_table_and_single_values_are_for_people_and_scripts(home: Home) -> None:
    home.configure('pasta_options = ["-m", "1500"]')
    lines = config(home).stdout.splitlines()
    assert lines[0].split() == ["KEY", "VALUE", "SOURCE"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert set(rows) == SETTINGS
    assert rows["pasta_options"] == ["-m", "1500", str(home.conf)]
    assert rows["network_cmd_path"] == ["-", "default"]
    assert config(home, "pasta_options").stdout == "-m\n1500\n"
    assert config(home, "graphroot").stdout == f"{home.graphroot}\n"
    assert config(home, "network_cmd_path").stdout == ""
    assert json.loads(config(home, "dns_bind_port", "--json").stdout) == {
        "dns_bind_port": {"value": 0, "source": "default"}
    }


def test_setting_that_there_is_not(home: Home) -> None:
    done = config(home, "colour", check=False)
    assert (done.returncode, done.stdout) == (125, "")
    lines = done.stderr.splitlines()
    assert lines[0] == "rootlessnet: show the setting colour: there is none of that name"
    assert lines[1].startswith("  hint: there are default_rootless_network_cmd, ")


# -- damage ---


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[network\n", "Expected ']' at the end of a table declaration"),
        ("[containers]\nx = \n", "Invalid value"),
        ("[network]\ndefault_network = 3\n", "default_network in [network] has to be a string"),
        ('[network]\ncni_plugin_dirs = "/x"\n',
         'cni_plugin_dirs in [network] has to be a list of strings, ["..."]'),
        ('[network]\ndns_bind_port = "x"\n', "dns_bind_port in [network] has to be a number"),
        ("[network]\ndns_bind_port = true\n", "dns_bind_port in [network] has to be a number"),
        ("[network]\ndefault_subnet_pools = [1]\n", "default_subnet_pools has to be a list of"),
    ],
)  # fmt: skip
def test_damaged_containers_conf_is_one_line_with_its_name(
    home: Home,
    text: str,
    words: str,
) -> None:
    home.conf.write_text(text)
    done = config(home, check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.splitlines()[0].startswith(f"rootlessnet: read {home.conf}: {words}")


def test_damaged_or_unreadable_files_elsewhere(home: Home, tmp_path: Path) -> None:
    storage = home.path / ".config/containers/storage.conf"
    storage.parent.mkdir(parents=True)
    storage.write_text('[storage]\ngraphroot = "/x')
    assert f"rootlessnet: read {storage}: " in config(home, check=False).stderr
    storage.write_text("[storage]\ngraphroot = 1\n")
    assert f"read {storage}: graphroot in [storage] has to be" in config(home, check=False).stderr
    storage.chmod(0)
    done = config(home, check=False)
    assert done.stderr.startswith("rootlessnet: read the configuration: ")
    assert str(storage) in done.stderr and "Permission denied" in done.stderr
    storage.unlink()


@pytest.mark.parametrize("name", ["CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF"])
def test_variable_that_names_no_file(home: Home, name: str) -> None:
    home.environment[name] = path = f"{home.path}/none"
    done = config(home, check=False)
    assert done.stderr.splitlines() == [
        f"rootlessnet: read {path}: No such file or directory",
        f"  hint: unset {name}",
    ]
    assert home.podman("info", check=False).returncode != 0, "podman refuses it too"


# -- beside podman ---

CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "nothing": ({}, {}),
    "storage.conf": (
        {"storage.conf": '[storage]\ndriver="vfs"\ngraphroot="{home}/g$UID"\n'
                         'runroot="{home}/run"\n'},
        {},
    ),
    "rootless_storage_path": (
        {"storage.conf": '[storage]\ndriver="vfs"\ngraphroot="{home}/no"\n'
                         'rootless_storage_path="$HOME/r"\n'},
        {},
    ),
    "CONTAINERS_STORAGE_CONF": (
        {"storage.conf": '[storage]\ndriver="vfs"\ngraphroot="{home}/no"\n',
         "other.conf": '[storage]\ndriver="vfs"\ngraphroot="{home}/other"\nrunroot="{home}/r"\n'},
        {"CONTAINERS_STORAGE_CONF": "{home}/.config/containers/other.conf"},
    ),
    "rootless path in CONTAINERS_STORAGE_CONF": (
        {"storage.conf": '[storage]\ndriver="vfs"\ngraphroot="{home}/no"\n',
         "other.conf": '[storage]\ndriver="vfs"\nrootless_storage_path="{home}/other"\n'},
        {"CONTAINERS_STORAGE_CONF": "{home}/.config/containers/other.conf"},
    ),
    "rootless path alone": (
        {"storage.conf": '[storage]\ndriver="vfs"\nrootless_storage_path="$HOME/r"\n'}, {},
    ),
    "STORAGE_DRIVER": ({}, {"STORAGE_DRIVER": "vfs"}),
    "XDG_DATA_HOME": ({}, {"XDG_DATA_HOME": "{home}/data"}),
    "engine": (
        {"containers.conf": '[engine]\nstatic_dir="{home}/static"\ntmp_dir="{home}/tmp"\n'
                            '[network]\nnetwork_backend="cni"\n'},
        {},
    ),
    "drop-in": (
        {"containers.conf": '[engine]\nstatic_dir="{home}/static"\n',
         "containers.conf.d/5.conf": '[engine]\nstatic_dir="{home}/drop"\n'},
        {},
    ),
}  # fmt: skip

PODMANS = {
    "graphroot": r"Using graph root ([^\"]*)",
    "runroot": r"Using run root ([^\"]*)",
    "static_dir": r"Using static dir ([^\"]*)",
    "tmp_dir": r"Using tmp dir ([^\"]*)",
}


@pytest.mark.parametrize("case", CASES)
def test_podman_says_the_same(home: Home, case: str) -> None:
    del home.environment["CONTAINERS_CONF"]
    files, variables = CASES[case]
    for name, text in files.items():
        path = home.path / ".config/containers" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{home}", str(home.path)))
    for key, value in variables.items():
        home.environment[key] = value.replace("{home}", str(home.path))
    ours = {key: item["value"] for key, item in document(home).items()}
    done = home.podman("--log-level=debug", "info", "--format={{.Host.NetworkBackend}}")
    theirs = {}
    for key, pattern in PODMANS.items():
        match = re.search(pattern, done.stderr)
        assert match, (key, done.stderr)
        theirs[key] = match[1]
    assert {key: ours[key] for key in PODMANS} == theirs
    assert ours["network_backend"] == done.stdout.strip()
    if ours["storage_driver"]:
        assert f"Using graph driver {ours['storage_driver']}" in done.stderr
    assert os.path.isdir(ours["graphroot"])
    # Its files are of other ids, and Home looks for them in the usual place alone.
    home.podman("unshare", "rm", "-rf", str(home.path), check=False)
