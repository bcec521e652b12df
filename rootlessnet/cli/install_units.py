"""rootlessnet install-units: put the systemd user units in place."""

from __future__ import annotations

import os
import sys

from rootlessnet.cli import arguments
from rootlessnet.config import containers
from rootlessnet.errors import Error
from rootlessnet.kernel import files

OPTIONS = (
    *arguments.COMMON,
    arguments.Option(
        "user-dir", "where to (default: $XDG_CONFIG_HOME/systemd/user)", metavar="DIR"
    ),
)
WHAT = "Write rootlessnet.service and rootlessnet@.service, with the path of this program."

UNITS = ("rootlessnet.service", "rootlessnet@.service")


def main(argv: list[str]) -> int:
    given = arguments.read(argv, "install-units [OPTIONS]", WHAT, OPTIONS)
    if given is None:
        return 0
    values, _ = given
    directory = arguments.last(values, "user-dir") or f"{containers.config_home()}/systemd/user"
    texts = {name: unit_text(name) for name in UNITS}
    try:
        os.makedirs(directory, exist_ok=True)
        for name, text in texts.items():
            files.replace(f"{directory}/{name}", text.encode(), mode=0o644)
    except OSError as error:
        raise Error("install the units") from error
    for name in UNITS:
        print(f"{directory}/{name}")
    print("next: systemctl --user daemon-reload && systemctl --user enable --now rootlessnet")
    return 0


def unit_text(name: str) -> str:
    """A unit that comes with the program, with the program's own path filled in."""
    from importlib.resources import files

    text = files("rootlessnet").joinpath("units", name).read_text(encoding="utf-8")
    return text.replace("@rootlessnet@", own_path())


def own_path() -> str:
    """The absolute path by which this program was started."""
    from rootlessnet.kernel import spawn

    path = spawn.find(sys.argv[0])
    if path is None:
        raise Error(f"find the path of {sys.argv[0]}")
    return os.path.abspath(path)
