"""`network ls --filter`: podman's filters."""

from __future__ import annotations

from rootlessnet.errors import Error
from rootlessnet.networks import gojson, users

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from rootlessnet.networks.network import Network

_KEYS = ("name", "id", "driver", "label", "dangling")


def chosen(filters: Iterable[str], networks: list[Network]) -> list[Network]:
    """Those for which, of each kind of filter, one is true; of labels every one. Raises Error."""
    wanted: dict[str, list[str]] = {}
    for text in filters:
        key, equals, value = text.partition("=")
        if not equals:
            raise Error(f"invalid filter {gojson.quote(text)}: it is KEY=VALUE")
        if key not in _KEYS:
            raise Error(f"invalid filter {gojson.quote(key)}")
        wanted.setdefault(key, []).append(value)
    for value in wanted.get("dangling", ()):
        if value not in ("true", "false", "1", "0"):
            raise Error(f"cannot parse dangling filter value {gojson.quote(value)} as bool")
    others = users.podman_users() if "dangling" in wanted else {}
    return [each for each in networks if _fits(each, wanted, others)]


def _fits(network: Network, wanted: dict[str, list[str]], others: dict[str, list[str]]) -> bool:
    import re

    for key, values in wanted.items():
        if key == "name":
            try:
                fits = any(re.search(value, network.name) for value in values)
            except re.error as error:
                raise Error(f"filter name={values[-1]}: {error}") from None
        elif key == "id":
            fits = any(network.id.startswith(value) for value in values)
        elif key == "driver":
            fits = network.driver in values
        elif key == "label":
            fits = all(_has_label(network, value) for value in values)
        else:
            is_unused = not users.users_of(network) and network.name not in others
            fits = any(is_unused == (value in ("true", "1")) for value in values)
        if not fits:
            return False
    return True


def _has_label(network: Network, text: str) -> bool:
    key, equals, value = text.partition("=")
    return key in network.labels and (not equals or network.labels[key] == value)
