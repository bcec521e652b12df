"""Run one command group by itself, as `python -m rootlessnet.cli.device`: for tests."""

from __future__ import annotations

import sys

from rootlessnet import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn


def run(main: Callable[[list[str]], int]) -> NoReturn:
    """Run main with sys.argv, report its failure, exit."""
    try:
        sys.exit(main(sys.argv[1:]))
    except errors.Error as error:
        errors.report(error)
        sys.exit(error.status)
