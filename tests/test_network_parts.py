"""The parts of rootlessnet.networks that need no other program."""

from __future__ import annotations

import time

import pytest

from rootlessnet.networks import gojson, network, subnets


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a<b>&c", '"a\\u003cb\\u003e\\u0026c"'),
        ("\b\f\n\r\t\x01\x7f", '"\\u0008\\u000c\\n\\r\\t\\u0001\x7f"'),
        ('\\b"é', '"\\\\b\\"é"'),
        ("\u2028\u2029", '"\\u2028\\u2029"'),
        ("\udcff", '"\\ufffd"'),
        ([], "[]"),
        ({}, "{}"),
        ({"a": [1, True]}, '{\n  "a": [\n    1,\n    true\n  ]\n}'),
    ],
)
def test_go_json(value: object, text: str) -> None:
    assert gojson.encode(value, 2) == text


def test_go_json_for_people() -> None:
    assert gojson.encode("<&>\u2028", 5, for_html=False) == '"<&>\\u2028"'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.7/24", "10.0.0.0/24"),
        ("10.0.0.7/024", "10.0.0.0/24"),
        ("FD00:0:0:0::1/64", "fd00::/64"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ],
)
def test_cidr(text: str, expected: str) -> None:
    assert str(subnets.parse_cidr(text)) == expected


@pytest.mark.parametrize(
    "text", ["", "/", "10.0.0.0", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0/24", "x/8",
             "10.0.0.0/255.0.0.0", "fe80::1%lo/64", "fd00::/129", "10.0.0.0/2\u0664", "1/8"],
)  # fmt: skip
def test_no_cidr(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        subnets.parse_cidr(text)
    assert str(caught.value) == f"invalid CIDR address: {text}"


def test_free_subnets() -> None:
    from ipaddress import IPv4Network

    pools = [(IPv4Network("10.1.0.0/30"), 31), (IPv4Network("10.2.0.0/16"), 24)]
    taken = [subnets.parse_cidr("10.1.0.0/32"), subnets.parse_cidr("fd00::/8")]
    assert str(subnets.free_ipv4(taken, pools)) == "10.1.0.2/31"
    taken.append(subnets.parse_cidr("10.1.0.0/24"))
    assert str(subnets.free_ipv4(taken, pools)) == "10.2.0.0/24"
    made = subnets.free_ipv6([])
    assert str(made).startswith("fd") and made.prefixlen == 64


@pytest.mark.parametrize(
    ("zone", "text"),
    [("UTC", "2033-05-18T03:33:20.12Z"), ("Asia/Kolkata", "2033-05-18T09:03:20.12+05:30"),
     ("America/St_Johns", "2033-05-18T01:03:20.12-02:30")],
)  # fmt: skip
def test_time_as_go_writes_it(zone: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert network.timestamp(2_000_000_000_120_000_000) == text
        assert network.timestamp(2_000_000_000_000_000_000) == text.replace(".12", "")
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("name", ["a", "0", "A.b_c-d"])
def test_name(name: str) -> None:
    assert network.is_name(name)


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "ä", "a\n"])
def test_no_name(name: str) -> None:
    assert not network.is_name(name)
