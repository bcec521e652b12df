"""The addresses of containers: who has which, and which one is next.

<state directory>/addresses.db    SQLite
    ips (net, subnet, ip, ctr)    an address in use: no two containers can have the same
    last (net, subnet, ip)        the one that was given out last, so that the next is another

The rules are podman's: for each subnet of a network, in order, the requested address that lies in
it, else the next free one after the last, from the beginning again at the end. The gateway, the
subnet's own address and its broadcast address are left out. One transaction has all networks of a
container, so it gets all its addresses or none.

The directory is one of this boot, so no address outlives its container by a reboot. The records of
the containers (rootlessnet.instance.containers) say the same once more: a database that is missing
or damaged is made again from them, and an address whose container has no record is free.
"""

from __future__ import annotations

import os
import stat

from rootlessnet.errors import Error, warn
from rootlessnet.instance import containers
from rootlessnet.networks import subnets

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    from rootlessnet.instance.paths import Instance
    from rootlessnet.networks.attachment import Attachment
    from rootlessnet.networks.network import Network, Subnet
    from rootlessnet.networks.subnets import Address

    T = TypeVar("T")

FILE = "addresses.db"

_PATIENCE = 5.0
"""Seconds for another program that has the database open: those of ours take turns anyway."""

_SCHEMA = """
CREATE TABLE ips (net TEXT, subnet TEXT, ip BLOB, ctr TEXT, PRIMARY KEY (net, subnet, ip))
WITHOUT ROWID;
CREATE INDEX by_container ON ips (ctr);
CREATE TABLE last (net TEXT, subnet TEXT, ip BLOB, PRIMARY KEY (net, subnet)) WITHOUT ROWID;
"""


class _Taken(Error):
    """The address wanted, or every address, is in use; it may be by nobody that exists."""


def wanted(network: Network) -> bool:
    """Whether addresses of this network are given out here, and not by a DHCP server or nobody."""
    return bool(network.subnets) and network.ipam_options.get("driver", "") in ("", "host-local")


def check_static(network: Network, addresses: Iterable[str]) -> None:
    """Raise Error for requested addresses that the network has not, in podman's words."""
    for text in addresses:
        address = subnets.parse_address(text)
        inside = [each for each in network.subnets if address in each.subnet]
        if not inside:
            raise Error(
                f"requested static ip {address} not in any subnet on network {network.name}"
            )
        if address == inside[0].gateway:
            raise Error(f"requested static ip {address} is the gateway of network {network.name}")


def allocate(instance: Instance, id: str, attachments: list[Attachment]) -> None:
    """Fill in the addresses of the attachments, all or none. Raises Error in podman's words."""

    def act(database: sqlite3.Connection) -> list[list[str]]:
        return [_of_network(database, id, each) for each in attachments]

    try:
        found = _transaction(instance, act)
    except _Taken:
        # Not so if they belong to containers that have no record any more.
        _transaction(instance, lambda database: _drop_strays(database, instance))
        found = _transaction(instance, act)
    for attachment, addresses in zip(attachments, found, strict=True):
        attachment.addresses = addresses


def free(instance: Instance, id: str, network: str = "") -> None:
    """Give back the addresses of a container, all or those of one network. Raises Error."""
    if not os.path.exists(instance.path(FILE)):
        return

    def act(database: sqlite3.Connection) -> None:
        if network:
            database.execute("DELETE FROM ips WHERE ctr = ? AND net = ?", (id, network))
        else:
            database.execute("DELETE FROM ips WHERE ctr = ?", (id,))

    _transaction(instance, act)


def _of_network(database: sqlite3.Connection, id: str, attachment: Attachment) -> list[str]:
    network = attachment.network
    if not wanted(network):
        return []
    static = [subnets.parse_address(text) for text in attachment.static_ips]
    found = []
    for subnet in network.subnets:
        place = (network.name, str(subnet.subnet))
        address = next((each for each in static if each in subnet.subnet), None)
        if address is None:
            address = _next_free(database, place, subnet)
            database.execute(
                "INSERT OR REPLACE INTO last VALUES (?, ?, ?)", (*place, _raw(address))
            )
        else:
            owner = _owner(database, place, address)
            if owner is not None:
                raise _Taken(
                    f"IPAM error: requested ip address {address} is already allocated to "
                    f"container ID {owner}"
                )
        database.execute("INSERT INTO ips VALUES (?, ?, ?, ?)", (*place, _raw(address), id))
        found.append(str(address))
    return found


def _raw(address: Address) -> bytes:
    return address.packed


def _owner(database: sqlite3.Connection, place: tuple[str, str], address: Address) -> str | None:
    row = database.execute(
        "SELECT ctr FROM ips WHERE net = ? AND subnet = ? AND ip = ?", (*place, _raw(address))
    ).fetchone()
    return None if row is None else str(row[0])


def _next_free(database: sqlite3.Connection, place: tuple[str, str], subnet: Subnet) -> Address:
    network = subnet.subnet
    first = subnet.start or subnets.first_address(network)
    end = subnet.end
    if end is None:
        end = subnets.last_address(network)
        if network.version == 4 and int(end) > int(first):
            end -= 1  # the broadcast address
    row = database.execute("SELECT ip FROM last WHERE net = ? AND subnet = ?", place).fetchone()
    known = row and isinstance(row[0], bytes)
    last = int.from_bytes(row[0], "big") if known else int(first) - 1
    low, high = int(first), int(end)
    start = last + 1 if low <= last + 1 <= high else low
    kind = type(network.network_address)
    for number in _round(low, high, start):
        address = kind(number)
        if _is_usable(address, subnet) and _owner(database, place, address) is None:
            return address
    raise _Taken(f"IPAM error: failed to find free IP in range: {first} - {end}")


def _round(low: int, high: int, start: int) -> Iterable[int]:
    yield from range(start, high + 1)
    yield from range(low, start)


def _is_usable(address: Address, subnet: Subnet) -> bool:
    network = subnet.subnet
    if address == subnet.gateway:
        return False
    if network.prefixlen >= network.max_prefixlen - 1:
        return True
    return address != network.network_address and (
        network.version == 6 or address != network.broadcast_address
    )


def _transaction(instance: Instance, act: Callable[[sqlite3.Connection], T]) -> T:
    """What act returns, all of it done or nothing; in a database that is made again if need be."""
    import sqlite3

    try:
        if _is_file(instance):
            return _attempt(instance, act)
    except sqlite3.Error as error:
        if not _is_damage(error) and not _is_something_else(instance.path(FILE)):
            raise Error(f"use the database of addresses: {error}") from None
    warn(f"{instance.path(FILE)} is damaged: it is made again from the records of the containers")
    try:
        for suffix in ("", "-journal", "-wal", "-shm"):
            try:
                os.unlink(instance.path(FILE) + suffix)
            except FileNotFoundError:
                continue
        return _attempt(instance, act)
    except (sqlite3.Error, OSError) as error:
        raise Error(f"make the database of addresses again: {error}") from None


def _is_file(instance: Instance) -> bool:
    """Whether the database is a file or not there yet: what else is in its place is no database."""
    try:
        return stat.S_ISREG(os.lstat(instance.path(FILE)).st_mode)
    except FileNotFoundError:
        return True


def _attempt(instance: Instance, act: Callable[[sqlite3.Connection], T]) -> T:
    import sqlite3

    database = sqlite3.connect(instance.path(FILE), timeout=_PATIENCE, isolation_level=None)
    try:
        # In memory anyway: there is no disk to wait for.
        database.execute("PRAGMA synchronous = OFF")
        database.execute("BEGIN IMMEDIATE")
        try:
            if not database.execute("PRAGMA user_version").fetchone()[0]:
                _fill(database, instance)
            result = act(database)
            database.execute("COMMIT")
            return result
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
    finally:
        database.close()


def _is_damage(error: sqlite3.Error) -> bool:
    name = str(getattr(error, "sqlite_errorname", ""))
    # SQLITE_ERROR: a table or a column of ours is not there.
    return name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or name == "SQLITE_ERROR"


def _is_something_else(path: str) -> bool:
    """Whether there is something by that name that is no file."""
    try:
        return not stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _fill(database: sqlite3.Connection, instance: Instance) -> None:
    """Make the tables, and enter what the records of the containers say."""
    for statement in _SCHEMA.split(";"):
        database.execute(statement)
    for record in containers.records(instance):
        for name, item in record["networks"].items():
            for network, address in _places(item):
                database.execute(
                    "INSERT OR IGNORE INTO ips VALUES (?, ?, ?, ?)",
                    (name, network, _raw(address), record["id"]),
                )
    database.execute("PRAGMA user_version = 1")


def _places(item: dict[str, object]) -> Iterable[tuple[str, Address]]:
    """Each address of an attachment with its subnet."""
    from rootlessnet.networks.network import from_document

    try:
        listed = item["addresses"]
        assert isinstance(listed, list)
        addresses = [subnets.parse_address(text) for text in listed]
        network = from_document(item["network"])
    except ValueError:
        return
    for address in addresses:
        for subnet in network.subnets:
            if address in subnet.subnet:
                yield str(subnet.subnet), address


def _drop_strays(database: sqlite3.Connection, instance: Instance) -> None:
    known = set(containers.names(instance))
    for (id,) in database.execute("SELECT DISTINCT ctr FROM ips").fetchall():
        if id not in known:
            database.execute("DELETE FROM ips WHERE ctr = ?", (id,))
