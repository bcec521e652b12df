"""The warm path of enter imports nothing heavy, and arrows between packages point downwards."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import rootlessnet

PACKAGE = Path(rootlessnet.__file__).parent
HEAVY = {
    "argparse", "asyncio", "contextlib", "dataclasses", "dbus_next", "enum", "ipaddress", "json",
    "logging", "pathlib", "psutil", "pyroute2", "re", "shutil", "signal", "socket", "subprocess",
    "tempfile", "tomllib", "typing", "hashlib",
}  # fmt: skip


def test_warm_path_imports_nothing_heavy() -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        "import rootlessnet.__main__, rootlessnet.cli.enter\n"
        "from rootlessnet.instance import paths\n"
        "paths.find()\n"
        "from rootlessnet.kernel import libc\n"
        "hasattr(__import__('os'), 'setns') or libc._libc()\n"
        "print(*sorted(set(sys.modules) - before))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert not loaded & HEAVY
    assert "rootlessnet.instance.supervisor" not in loaded


LAYERS = [
    "kernel", "config", "systemd", "drivers", "instance", "ports", "devices", "networks", "tools",
    "watch", "cli",
]  # fmt: skip


def test_arrows_point_downwards() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        package = path.relative_to(PACKAGE).parts[0]
        if package not in LAYERS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rootlessnet."):
                target = (node.module or "").split(".")[1]
                if target in LAYERS and LAYERS.index(target) > LAYERS.index(package):
                    wrong.append(f"{path.relative_to(PACKAGE)} imports {node.module}")
    assert not wrong


def test_init_is_empty() -> None:
    assert all(path.read_text() == "" for path in PACKAGE.rglob("__init__.py"))
