"""Install requirement files as ``pip install`` does: python install_requirements.py [--no-deps] -r FILE

With ``--override`` the file's versions count in place of those in constraints.txt, and are installed without
dependencies. uv installs all in a third of pip's time. Where it is missing or fails, pip installs them.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

PIP = ["pip", "install", "--disable-pip-version-check", "--no-input", "--no-compile"]
# Of several indexes, uv takes the first that has the package; pip the newest version of all.
UV = ["uv", "pip", "install", "--no-progress", "--index-strategy", "unsafe-best-match"]


def uv_options() -> list[str]:
    """Pip's settings (files, PIP_ variables), none of which uv reads, as options of uv."""
    plain = os.environ | {"PIP_VERBOSE": "0", "PIP_QUIET": "0"}
    listed = subprocess.check_output([sys.executable, "-m", "pip", "config", "list"], env=plain, text=True)
    found = dict(line.split("=", 1) for line in listed.splitlines() if "=" in line)
    options = []
    for name, option in {
        "index-url": "--default-index",
        "extra-index-url": "--extra-index-url",
        "find-links": "--find-links",
        "trusted-host": "--allow-insecure-host",
        "no-index": "--no-index",
    }.items():
        keys = [f"{section}.{name}" for section in (":env:", "install", "global")]  # the first counts
        values = ast.literal_eval(next((found[key] for key in keys if key in found), "''")).split()
        if option == "--no-index":
            options += [option] * ("".join(values).lower() not in ("", "0", "f", "n", "false", "no", "off"))
        else:
            options += [part for value in values for part in (option, value)]
    return options


def main(arguments: list[str]) -> int:
    """Install, in the project's folder; the exit status."""
    os.chdir(Path(__file__).parent)
    lock = "constraints.txt"
    if arguments[:1] == ["--override"]:
        lock, arguments = arguments[-1], ["--no-deps", *arguments[1:]]
    # By these variables, unlike by --constraint, the lock also holds where a source package is built: older
    # versions of pip read the first there, newer ones the second. Tools split them at spaces: relative paths.
    variables = ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT", "UV_CONSTRAINT", "UV_BUILD_CONSTRAINT")
    environment = os.environ | dict.fromkeys(variables, lock)
    commands = [PIP]
    if importlib.util.find_spec("uv"):
        commands.insert(0, [*UV, "--python", sys.executable, *uv_options()])
    for command in commands:
        status = subprocess.run([sys.executable, "-m", *command, *arguments], env=environment).returncode
        if status == 0:
            break
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
