"""What was attached with what result: libcni's cache, file by file the same.

<cache directory>/results/                        0700
    <network>-<container>-<interface>             0600, JSON: libcni's cachedInfo, cniCacheV1
    .<network>-<container>-<interface>            a mark: an ADD has begun and not ended, or a DEL
                                                  has failed and nobody may come again
    ..<network>-<container>-<interface>           a file that is being written; nobody reads it

An ADD that begins leaves its mark before the first plugin runs, and the result takes the place of
it after the last one; all of it goes after the last DEL. So a runtime that was killed leaves
something that tells of what it did, and the next ADD, DEL or GC takes it away. libcni never looks
for the mark, and ignores the one key that is ours: `netnsInode`, by which a path is recognised that
has come to stand for another network namespace.

Dashes are allowed in all three names, so a file counts for an attachment only if its fields say so.
A file that is empty or damaged counts for the one it is named after: a DEL deletes it.
"""

from __future__ import annotations

import os

from rootlessnet.devices.cni_plugin import CniError, check_container, check_ifname, is_name
from rootlessnet.errors import Error
from rootlessnet.kernel import files
from rootlessnet.kernel.trace import trace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

KIND = "cniCacheV1"
RESULTS = "results"
_MAX_SIZE = 1 << 24
_BEGUN = "."
_TEMPORARY = ".."


class Endpoint:
    """One interface of one container on one network, and what the plugins are told about it."""

    def __init__(
        self,
        network: str,
        container: str,
        interface: str,
        *,
        netns: str = "",
        args: list[tuple[str, str]] | None = None,
        capability_args: dict[str, Any] | None = None,
    ) -> None:
        self.network = network
        self.container = container
        self.interface = interface
        self.netns = netns
        self.args = list(args or ())
        self.capability_args = dict(capability_args or {})

    def key(self) -> str:
        """Its name among the files; two attachments may share it."""
        return f"{self.network}-{self.container}-{self.interface}"

    def check(self) -> None:
        """Raise Error for a name that the specification does not allow."""
        try:
            if not self.network:
                raise Error("missing network name")
            if not is_name(self.network):
                raise Error(f"invalid characters found in network name: {self.network}")
            if not self.container:
                raise Error("missing containerID")
            check_container(self.container)
            if not self.interface:
                raise Error("interface name is empty")
            check_ifname(self.interface)
        except CniError as error:
            details = f": {error.details}" if error.details else ""
            raise Error(f"{error.message}{details}") from None

    def is_same(self, other: Endpoint) -> bool:
        """Whether network, container and interface are the same."""
        mine = (self.network, self.container, self.interface)
        return mine == (other.network, other.container, other.interface)


class Entry:
    """A file of the cache that could be read.

    config is None in one of a libcni before 0.8; incomplete is what is a mark.
    """

    def __init__(
        self, attachment: Endpoint, config: bytes | None, result: dict[str, Any] | None
    ) -> None:
        self.attachment = attachment
        self.config = config
        self.result = result
        self.inode = 0
        self.incomplete = False


class Damaged(Exception):
    """A file is there, and cannot be understood."""


class Foreign(Exception):
    """A file of that name is there, of another attachment."""


class Cache:
    """The results in a directory."""

    def __init__(self, directory: str) -> None:
        self.directory = f"{directory}/{RESULTS}"

    def read(self, attachment: Endpoint) -> Entry | None:
        """The entry of an attachment; None when there is none. Raises Damaged, Foreign."""
        key = attachment.key()
        entry = _read(self.directory, key, attachment)
        return entry or _read(self.directory, _BEGUN + key, attachment)

    def write(self, entry: Entry) -> None:
        """Keep an entry, or the mark of an incomplete one. Raises OSError."""
        import base64
        import json

        attachment = entry.attachment
        document: dict[str, Any] = {
            "kind": KIND,
            "containerId": attachment.container,
            "config": base64.b64encode(entry.config or b"").decode(),
            "ifName": attachment.interface,
            "networkName": attachment.network,
        }
        if attachment.netns:
            document["netns"] = attachment.netns
        if attachment.args:
            document["cniArgs"] = [list(pair) for pair in attachment.args]
        if attachment.capability_args:
            document["capabilityArgs"] = attachment.capability_args
        if entry.result:
            document["result"] = entry.result
        if entry.inode:
            document["netnsInode"] = entry.inode
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        data = json.dumps(document, ensure_ascii=False).encode(errors="surrogateescape")
        key = attachment.key()
        path = f"{self.directory}/{_BEGUN if entry.incomplete else ''}{key}"
        files.replace(path, data, temporary=f"{self.directory}/{_TEMPORARY}{key}")
        if not entry.incomplete:
            trace("cni:cached")
            self._unlink(_BEGUN + key)

    def demote(self, attachment: Endpoint) -> None:
        """Turn the entry of an attachment into a mark. Raises OSError."""
        key = attachment.key()
        try:
            os.rename(f"{self.directory}/{key}", f"{self.directory}/{_BEGUN}{key}")
        except FileNotFoundError:
            pass

    def remove(self, attachment: Endpoint) -> None:
        """Forget an attachment. Raises OSError."""
        for prefix in ("", _BEGUN, _TEMPORARY):
            self._unlink(prefix + attachment.key())

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(f"{self.directory}/{name}")
        except FileNotFoundError:
            pass

    def entries(self) -> list[Entry]:
        """Everything that is known to be attached; files that nobody can read are left out."""
        try:
            names = sorted(os.listdir(self.directory))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise Error("read the CNI results") from error
        found = []
        for name in names:
            if name.startswith(_TEMPORARY) or (name[0] == _BEGUN and name[1:] in names):
                continue
            try:
                entry = _read(self.directory, name, None)
            except (Damaged, Foreign):
                continue
            if entry is not None:
                found.append(entry)
        return found


def _read(directory: str, name: str, wanted: Endpoint | None) -> Entry | None:
    import json

    path = f"{directory}/{name}"
    try:
        data = files.read(path, _MAX_SIZE, follow=True)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Damaged(f"{path}: {error.strerror}") from error
    if not data:
        return None  # of a libcni that was killed while it wrote
    try:
        document = json.loads(data)
        if not isinstance(document, dict):
            raise ValueError("not a JSON object")
        if document.get("kind") != KIND:
            if wanted is None:
                return None
            return Entry(wanted, None, document)
        entry = _entry(document)
        entry.incomplete = name.startswith(_BEGUN)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Damaged(f"{path}: {error}") from error
    if wanted is not None and not entry.attachment.is_same(wanted):
        raise Foreign(path)
    return entry


def _entry(document: dict[str, Any]) -> Entry:
    import base64

    names = [document[key] for key in ("networkName", "containerId", "ifName")]
    netns = document.get("netns") or ""
    if not all(isinstance(text, str) for text in (*names, netns)):
        raise ValueError("a name has the wrong type")
    args = [(key, value) for key, value in document.get("cniArgs") or ()]
    if not all(isinstance(text, str) for pair in args for text in pair):
        raise ValueError("cniArgs has the wrong type")
    capability_args = document.get("capabilityArgs") or {}
    result = document.get("result")
    if not isinstance(capability_args, dict) or not isinstance(result, dict | None):
        raise ValueError("capabilityArgs or result has the wrong type")
    config = document.get("config") or ""
    attachment = Endpoint(*names, netns=netns, args=args, capability_args=capability_args)
    entry = Entry(attachment, base64.b64decode(config, validate=True), result)
    inode = document.get("netnsInode", 0)
    entry.inode = inode if isinstance(inode, int) else 0
    return entry
