"""The executable rootlessnet-host-device: what every runtime asks first, and the way to the rest.

A runtime asks each plugin for VERSION before it does anything, so that answer costs nothing but
this module and the start of Python.
"""

from __future__ import annotations

import os

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""The versions of the specification that we speak, oldest first."""

_ABOUT = "CNI host-device plugin of rootlessnet"


def main() -> int:
    """Answer the call that the environment describes; the exit status."""
    command = os.environ.get("CNI_COMMAND", "")
    if command == "VERSION":
        supported = ",".join([f'"{version}"' for version in VERSIONS])
        text = f'{{"cniVersion":"{VERSIONS[-1]}","supportedVersions":[{supported}]}}\n'
        os.write(1, text.encode())
        return 0
    if not command:
        os.write(2, f"{_ABOUT}\nCNI protocol versions supported: {', '.join(VERSIONS)}\n".encode())
        return 0
    # For a process this short: nothing to collect, and nothing to be gained from taking hundreds
    # of modules apart at the end (that was 13 ms of 93). Everything was written by os.write.
    import gc

    gc.disable()
    from rootlessnet.devices import cni_plugin

    os._exit(cni_plugin.answer(command))


if __name__ == "__main__":
    import sys

    sys.exit(main())
