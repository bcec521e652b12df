"""An instance as `status --json` shows it, published ports included."""

from __future__ import annotations

from rootlessnet.instance import view
from rootlessnet.ports import api

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootlessnet.instance.paths import Instance


def status(instance: Instance) -> dict[str, Any]:
    """The document; with no instance its state is "down". Raises Error."""
    document = view.status(instance)
    if document["state"] != "down":
        document["ports"] = api.listing(instance)
    return document
