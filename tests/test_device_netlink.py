"""pyroute2 in parts: what is imported, and that the whole is still to be had afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest
from device_support import DEVICE, World

from rootlessnet.devices.netlink import _explanation


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_only_the_messages_are_imported() -> None:
    loaded = run(
        "import sys\n"
        "from rootlessnet.devices import netlink\n"
        "netlink.messages()\n"
        "print(*sys.modules)\n"
    ).split()
    ours = [name for name in loaded if name.startswith("pyroute2")]
    assert "pyroute2.netlink.rtnl.ifinfmsg" in ours
    # What costs most of `import pyroute2`.
    assert not {"asyncio", "sqlite3", "ssl", "pyroute2.ndb", "pyroute2.iproute"} & set(loaded)
    assert "pyroute2" not in ours


def test_the_whole_can_be_imported_afterwards() -> None:
    run(
        "from rootlessnet.devices import netlink\n"
        "ifinfmsg = netlink.messages().ifinfmsg\n"
        "import pyroute2\n"
        "with pyroute2.IPRoute() as ipr:\n"
        "    assert ipr.link_lookup(ifname='lo')\n"
        "from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg as again\n"
        "assert again is ifinfmsg\n"
    )


def test_the_whole_that_is_there_already_is_used() -> None:
    run(
        "import pyroute2\n"
        "from rootlessnet.devices import netlink\n"
        "from rootlessnet.devices.links import Links\n"
        "import sys\n"
        "with Links() as links:\n"
        "    assert links.get('lo').name == 'lo'\n"
        "assert sys.modules['pyroute2'] is pyroute2\n"
    )


def test_a_release_that_needs_its_init_gets_it() -> None:
    """A pyroute2 whose parts use names of the package cannot be had in parts."""
    run(
        "import sys, types\n"
        "from rootlessnet.devices import netlink\n"
        "class Messages(netlink.Messages):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        import pyroute2\n"
        "        pyroute2.IPRoute\n"
        "netlink.Messages = Messages\n"
        "netlink.messages()\n"
        "assert 'asyncio' in sys.modules\n"
        "import pyroute2\n"
        "assert pyroute2.netlink.rtnl.ifinfmsg.ifinfmsg is netlink.messages().ifinfmsg\n"
    )


@pytest.mark.parametrize(
    ("part", "kind", "flags", "text"),
    [
        # Error number, then the header of the request: capped, so nothing of its body.
        (
            b"\0" * 16 + b"\xea\xff\xff\xff" + b"\x20\0\0\0" + b"\0" * 12 + b"\x08\0\x01\0no.\0",
            2,
            0x300,
            "no",
        ),
        # Not capped: the request is 20 bytes.
        (
            b"\0" * 16 + b"\xea\xff\xff\xff" + b"\x14\0\0\0" + b"\0" * 16 + b"\x07\0\x01\0no\0\0",
            2,
            0x200,
            "no",
        ),
        # A dump has no request to repeat.
        (b"\0" * 16 + b"\xea\xff\xff\xff" + b"\x07\0\x01\0no\0\0", 3, 0x200, "no"),
        # Another attribute first, one that is broken, none at all.
        (
            b"\0" * 20 + b"\x06\0\x02\0xx\0\0" + b"\x07\0\x01\0no\0\0",
            3,
            0x200,
            "no",
        ),
        (b"\0" * 20 + b"\x01\0\x01\0no\0\0", 3, 0x200, ""),
        (b"\0" * 20, 3, 0x200, ""),
        (b"\0" * 20 + b"\x07\0\x01\0no\0\0", 3, 0, ""),
    ],
)
def test_explanations(part: bytes, kind: int, flags: int, text: str) -> None:
    assert _explanation(part, kind, flags) == text


def test_many_links(world: World) -> None:
    """A list that does not fit into one answer."""
    count = 200
    world.container.ip(*(f"link add x{number} type ifb" for number in range(count)))
    assert len(world.device("ls", world.container.path).stdout.splitlines()) == count + 2
    assert world.call("ADD", {"device": DEVICE}).status == 0
