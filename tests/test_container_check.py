"""rootlessnet container check: is a container's network still what it was set up as?"""

from __future__ import annotations

import pytest
from container_support import Lab


def checked(lab: Lab, *ids: str) -> list[str]:
    """What differs, a line each; the exit status says whether anything does."""
    done = lab.run("container", "check", *ids, check=False)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert done.returncode == (1 if lines else 0)
    return lines


def test_what_was_set_up_just_now_is_as_it_was_set_up(lab: Lab) -> None:
    lab.network("lab", "--subnet", "10.99.0.0/24")
    lab.network("six", "--subnet", "10.99.6.0/24", "--subnet", "fd00:6::/64")
    lab.network("closed", "--internal", "--subnet", "10.99.7.0/24")
    lab.setup("one", "--network", "lab", "--network", "six", "-p", "127.0.0.1:0:80")
    lab.setup("two", "--network", "closed", "--network", "lab:mac=52:54:00:12:34:56")
    assert checked(lab, "one", "two") == []
    lab.run("network", "disconnect", "six", "one")
    lab.run("container", "reload", "--all")
    assert checked(lab, "--all") == []


def test_each_difference_is_told(lab: Lab) -> None:
    lab.network("lab", "--subnet", "10.99.0.0/24", "--subnet", "fd00:9::/64")
    lab.setup("one", "--network", "lab")
    lab.setup("two", "--network", "lab")
    mac = lab.on("one", "lab")["MacAddress"]
    # The address first: an interface that is down loses those of IPv6.
    lab.inside_of("one", "ip", "address", "del", "10.99.0.2/24", "dev", "eth0")
    assert checked(lab, "one", "two") == [
        "one: network lab: eth0 has not the address 10.99.0.2/24 any more"
    ]
    lab.inside_of("one", "ip", "address", "add", "10.99.0.2/24", "dev", "eth0")
    other = "52:54:00:00:00:01"
    lab.inside_of("one", "ip", "link", "set", "eth0", "address", other)
    assert checked(lab, "one") == [
        f"one: network lab: eth0 has the MAC address {other} instead of {mac}"
    ]
    lab.inside_of("one", "ip", "link", "set", "eth0", "address", mac)
    lab.inside_of("one", "ip", "link", "set", "eth0", "down")
    assert "one: network lab: eth0 is down" in checked(lab, "one")
    lab.inside_of("one", "ip", "link", "set", "eth0", "name", "eth7")
    assert checked(lab, "--all") == ["one: network lab: eth0 is gone"]


def test_the_bridge_is_a_part_of_it(lab: Lab) -> None:
    lab.network("lab", "--subnet", "10.99.0.0/24")
    lab.setup("one", "--network", "lab")
    lab.enter("ip", "address", "del", "10.99.0.1/24", "dev", lab.bridge)
    told = f"eth0 has no gateway: {lab.bridge} has not the address 10.99.0.1 any more"
    assert checked(lab, "one") == [f"one: network lab: {told}"]
    lab.enter("ip", "address", "add", "10.99.0.1/24", "dev", lab.bridge)
    lab.enter("ip", "link", "set", lab.bridge, "down")
    assert checked(lab, "one") == [
        f"one: network lab: eth0 leads nowhere: the bridge {lab.bridge} is down"
    ]
    lab.enter("ip", "link", "del", lab.bridge)
    assert checked(lab, "one") == [
        f"one: network lab: eth0 leads nowhere: the bridge {lab.bridge} is gone"
    ]
    lab.run("container", "reload", "one")
    assert checked(lab, "one") == []


def test_one_that_was_unplugged(lab: Lab) -> None:
    lab.network("lab", "--subnet", "10.99.0.0/24")
    lab.setup("one", "--network", "lab")
    (end,) = lab.interfaces() - {lab.bridge}
    lab.enter("ip", "link", "set", end, "nomaster")
    assert checked(lab, "one") == [
        f"one: network lab: eth0 is not plugged into the bridge {lab.bridge} any more"
    ]


@pytest.mark.parametrize("lab", ["cni"], indirect=True)
def test_cni_plugins_are_asked_for_what_they_know(lab: Lab) -> None:
    lab.network("lab", "--subnet", "10.99.0.0/24")
    lab.setup("one", "--network", "lab")
    lab.inside_of("one", "ip", "route", "del", "default")
    (line,) = checked(lab, "one")
    assert line.startswith("one: check the network of one: ") and "bridge" in line


def test_what_cannot_be_checked(lab: Lab) -> None:
    assert lab.refused("container", "check", "none") == (
        "rootlessnet: check containers: no container with ID none found: no such container\n"
    )
    assert not lab.directory.exists()
