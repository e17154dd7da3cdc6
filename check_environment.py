"""Whether the installed packages are those that the project pins.

    python check_environment.py
    python check_environment.py requirements-newer.txt

Compares ``pip freeze`` with constraints.txt and with the requirement files, which pin what is installed
without dependencies. The pins of a file OVERRIDE (requirements-newer.txt in .venv-newer) count in place of
theirs. Exit status 1 names every package that deviates, and the remedy.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from aks import errors
from aks.arguments import ArgumentParser

ROOT = Path(__file__).parent
OVERRIDES = ("requirements-newer.txt",)


def read_pins(root: Path = ROOT, override: str | None = None) -> dict[str, list[str]]:
    """Canonical package names and what ``pip freeze`` may say after them: ``==1.2`` or `` @ URL``.

    More than one where the right version depends on the machine (torchvision). Bounds such as ``<4`` are
    no pins; markers count.
    """
    files = [root / "constraints.txt", *sorted(root.glob("requirements*.txt"))]
    pins: dict[str, list[str]] = {}
    for file in files:
        if file.name not in OVERRIDES:
            for name, pin in _pins_in(file):
                wanted = pins.setdefault(name, [])
                if pin not in wanted:
                    wanted.append(pin)
    return pins | {name: [pin] for name, pin in (_pins_in(root / override) if override else ())}


def _pins_in(file: Path) -> Iterator[tuple[str, str]]:
    for line in file.read_text(encoding="utf-8").splitlines():
        text = line.split("#")[0].strip()
        if not text:
            continue
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        pin = f" @ {requirement.url}" if requirement.url else str(requirement.specifier)
        if pin.startswith(("==", " @")):
            yield canonicalize_name(requirement.name), pin


def find_deviations(frozen: Iterable[str], pins: dict[str, list[str]]) -> list[str]:
    """One line for each line of ``pip freeze`` that is not pinned so.

    The local part of a version (``2.13.0+cpu``) does not count: it names a build of the same release.
    """
    deviations = []
    for line in frozen:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:  # such as "-e /path"
            deviations.append(f"{line}: nothing pins it; uninstall it")
            continue
        name = canonicalize_name(requirement.name)
        has = f" @ {requirement.url}" if requirement.url else str(requirement.specifier).split("+")[0]
        wanted = pins.get(name)
        if wanted is None:
            deviations.append(f"{line}: nothing pins it; run: pip uninstall {name}")
        elif has not in wanted:
            remedy = f"pip install --no-deps '{name}{wanted[0]}'"
            deviations.append(f"{line}: wanted {' or '.join(wanted)}; run: {remedy}")
    return deviations


def main() -> int:
    """Print the deviations; 1 if there are any."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("override", nargs="?", choices=OVERRIDES, help="whose pins win, in .venv-newer")
    args = parser.parse_args()
    freeze = [sys.executable, "-m", "pip", "freeze", "--disable-pip-version-check"]
    done = subprocess.run(freeze, capture_output=True, text=True)
    if done.returncode:
        print(f"error: pip freeze failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return 1
    frozen = done.stdout.splitlines()
    deviations = find_deviations(frozen, read_pins(override=args.override))
    for line in deviations:
        print(line, file=sys.stderr)
    print(f"{len(frozen)} packages installed, {len(deviations)} not as pinned", file=sys.stderr)
    return 1 if deviations else 0


if __name__ == "__main__":
    errors.run_main(main)
