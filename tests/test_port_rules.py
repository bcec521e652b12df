"""What -p takes and refuses; nothing is opened for it."""

from __future__ import annotations

import pytest

from rootlessnet.errors import Error
from rootlessnet.ports import rules
from rootlessnet.ports.rules import Rule


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("80", Rule("tcp", "", 0, 80)),
        ("80/udp", Rule("udp", "", 0, 80)),
        ("8080:80", Rule("tcp", "", 8080, 80)),
        ("0:80", Rule("tcp", "", 0, 80)),
        ("127.0.0.1:8080:80/tcp", Rule("tcp", "127.0.0.1", 8080, 80)),
        ("127.0.0.1::80", Rule("tcp", "127.0.0.1", 0, 80)),
        ("127.0.0.1:80", Rule("tcp", "127.0.0.1", 0, 80)),
        ("[::1]:8080:80", Rule("tcp", "::1", 8080, 80)),
        ("[0:0::0001]:8080:80", Rule("tcp", "::1", 8080, 80)),
        ("[::]:8080:80/UDP", Rule("udp", "::", 8080, 80)),
        ("9000-9009:80-89", Rule("tcp", "", 9000, 80, 10)),
        ("80-89", Rule("tcp", "", 0, 80, 10)),
    ],
)
def test_what_is_understood(text: str, rule: Rule) -> None:
    assert rules.parse(text) == rule
    assert rules.parse(str(rule)) == rule
    assert rules.from_list(rule.as_list()) == rule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing is not a port"),
        ("http", "http is not a port"),
        ("0", "0 is not a port: 1 to 65535"),
        ("65536", "65536 is not a port: 1 to 65535"),
        ("8080:", "nothing is not a port"),
        (":80", "nothing before the colon"),
        ("-1:80", "-1 is not a port"),
        ("٣:80", "٣ is not a port"),
        ("80/sctp", "sctp is not supported: tcp or udp"),
        ("80/icmp", "unknown protocol icmp: tcp or udp"),
        ("80-70", "80-70: the range is the wrong way round"),
        ("8000-8002:80", "3 ports of the host for 1 inside"),
        ("8000:80-82", "1 port of the host for 3 inside"),
        ("::1:8080:80", "too many colons; an IPv6 address has to be in brackets, as [::1]:8080:80"),
        ("[::1]80", "the brackets have to hold an address and be followed by a colon"),
        ("[127.0.0.1]:8080:80", "127.0.0.1 is not an IPv6 address"),
        ("[::ffff:127.0.0.1]:8080:80", "::ffff:127.0.0.1 is an IPv4 address: write 127.0.0.1"),
        ("[fe80::1%eth0]:8080:80", "fe80::1%eth0: an address with a zone is not supported"),
        ("256.0.0.1:8080:80", "256.0.0.1 is not an IP address"),
        ("224.0.0.1:8080:80", "224.0.0.1 is a multicast address"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(Error) as caught:
        rules.parse(text)
    assert str(caught.value) == f"--publish {text}: {message}"
    assert caught.value.hint == "[HOST_IP:][HOST_PORT:]PORT[-PORT][/tcp|udp]"


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("8080:80", "8080:81", True),
        ("8080:80", "8080:80/udp", False),
        ("8080:80", "127.0.0.1:8080:80", True),
        ("8080:80", "[::1]:8080:80", True),
        ("127.0.0.1:8080:80", "127.0.0.2:8080:80", False),
        ("127.0.0.1:8080:80", "[::1]:8080:80", False),
        ("0.0.0.0:8080:80", "127.0.0.1:8080:80", True),
        ("0.0.0.0:8080:80", "[::]:8080:80", False),
        ("[::]:8080:80", "[::1]:8080:80", True),
        ("8000-8009:80-89", "8009:80", True),
        ("8000-8009:80-89", "8010:80", False),
        ("80", "81", False),
    ],
)
def test_what_contradicts_itself(one: str, other: str, overlap: bool) -> None:
    assert rules.parse(one).overlaps(rules.parse(other)) is overlap
    assert rules.parse(other).overlaps(rules.parse(one)) is overlap
    if overlap:
        with pytest.raises(Error) as caught:
            rules.parse_all([one, other])
        assert str(caught.value) == f"--publish {other}: overlaps {rules.parse(one)}"


@pytest.mark.parametrize(
    "fields",
    [[], ["tcp"], ["tcp", "", 0, 0, 1], ["tcp", "x", 1, 1, 1], ["tcp", "", 65535, 1, 2], 7],
)
def test_a_record_that_is_no_rule(fields: object) -> None:
    with pytest.raises(ValueError, match=r"not a|not enough"):
        rules.from_list(fields)  # type: ignore[arg-type]
