"""Put the keyframes into an installed lmms-eval, for its plain commands; and take them out again.

    python evaluation/swap_in.py install
    python evaluation/swap_in.py install ../lmms-eval --llava ../LLaVA-NeXT
    python evaluation/swap_in.py verify
    python evaluation/swap_in.py restore

After ``install``, ``python -m lmms_eval --model llava_vid --tasks longvideobench_val_v`` (or ``videomme``)
knows ``use_topk=True``; without it the model shows its own uniform frames. The two names mean this project's
tasks, which read the label files in ``datasets/``; lmms-eval's own are ``longvideobench_val_v_upstream`` and
``videomme_upstream``. ``restore`` gives back every byte.

lmms-eval is a checkout or an installed package; by default the one that this Python imports. No code is
copied: lmms-eval is told where this checkout is, so that must stay where it is.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

from aks import errors
from aks.arguments import ArgumentParser
from aks.errors import UserError
from aks.jsonio import read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ".aks_swap_in"  # in lmms-eval's package: the originals, and which files were changed
TASKS = {  # lmms-eval's file of a task to this project's
    "tasks/longvideobench/longvideobench_val_v.yaml": "datasets/longvideobench/longvideobench_val_v.yaml",
    "tasks/videomme/videomme.yaml": "datasets/videomme/videomme.yaml",
}
# What users of the released code copy over files of lmms-eval or LLaVA-NeXT.
COPIED = ("evaluation/*.py", "datasets/*/utils.py", "datasets/*/*.yaml")
STARTUP = """
# Added by "swap_in.py install" of Adaptive Keyframe Sampling; "swap_in.py restore" takes it out again.
import os
import sys

_project, _llava = {project!r}, {llava!r}
for _folder in filter(None, (_project, _llava)):
    if not os.path.isdir(_folder):
        sys.exit(f"error: {{_folder}}: gone; lmms-eval was changed to use it. Put it back, or run "
                 f"evaluation/swap_in.py restore {{os.path.dirname(__file__)}} of any copy of the project")
sys.path[:0] = [_folder for _folder in (_project, _llava) if _folder and _folder not in sys.path]
os.environ["LMMS_EVAL_PLUGINS"] = ",".join(
    dict.fromkeys(["evaluation", *filter(None, os.environ.get("LMMS_EVAL_PLUGINS", "").split(","))])
)
if _llava:
    os.environ.setdefault("LLAVA", "next")
"""


@dataclass(frozen=True)
class Change:
    """A file of lmms-eval as it shall be.

    Attributes:
        path: relative to the package.
        before: SHA-256 of the original; None for a file that is added.
        after: SHA-256 of what takes its place.
    """

    path: str
    before: str | None
    after: str


def sha256(path: Path) -> str | None:
    """A file's digest; None where it is missing."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def find_package(named: str | None) -> Path:
    """The folder of lmms-eval's package.

    Raises:
        UserError: there is none, or it lacks a task.
    """
    if named is None:
        spec = importlib.util.find_spec("lmms_eval")
        if spec is None or not spec.submodule_search_locations:
            raise UserError("this Python has no lmms-eval; name its folder: swap_in.py COMMAND LMMS_EVAL_DIR")
        package = Path(next(iter(spec.submodule_search_locations)))
    else:
        package = Path(named)
        if (package / "lmms_eval").is_dir():  # a checkout
            package = package / "lmms_eval"
    for needed in ("__init__.py", "__main__.py", *TASKS):
        if not (package / needed).is_file():
            raise UserError(f"{package}: not lmms-eval 0.3.0 or newer: {needed} is missing")
    return package.resolve()


def contents(package: Path, llava: Path | None) -> Iterator[tuple[str, bytes]]:
    """The files that are changed or added, as they shall be.

    Raises:
        UserError: a task's file does not name its task.
    """
    startup = STARTUP.format(project=str(ROOT), llava=str(llava) if llava else None)
    yield "__init__.py", (package / "__init__.py").read_bytes() + startup.encode()
    for theirs, ours in TASKS.items():
        name = Path(theirs).stem
        original = (package / theirs).read_bytes()
        renamed, count = re.subn(
            rb"^(task:\s*['\"]?" + name.encode() + rb")\b", rb"\1_upstream", original, flags=re.MULTILINE
        )
        if count != 1:
            raise UserError(f"{package / theirs}: has no line 'task: {name}'; get the original back first")
        yield theirs, renamed
        include = f'include: "{ROOT / ours}"\ntask: {name}\n'
        yield str(Path(theirs).with_name(f"{name}_aks.yaml")), include.encode()


def hand_copies(folder: Path) -> list[str]:
    """This project's files that were copied into another package by hand, relative to it."""
    ours: dict[str, set[str]] = {}
    for path in itertools.chain.from_iterable(ROOT.glob(pattern) for pattern in COPIED):
        ours.setdefault(path.name, set()).add(first_line(path))
    found = (path for path in folder.rglob("*.*") if path.name in ours and path.is_file())
    return sorted(str(path.relative_to(folder)) for path in found if first_line(path) in ours[path.name])


def first_line(path: Path) -> str:
    """A file's first line, which tells this project's files from others of the same name."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.readline().strip()


def read_state(package: Path) -> dict[str, Any] | None:
    """What an earlier ``install`` recorded before it changed anything; None where there was none."""
    path = package / FOLDER / "state.json"
    return read_json(path) if path.exists() else None


def changes_in(state: dict[str, Any]) -> list[Change]:
    """The changes that a state records."""
    return [Change(**change) for change in state["changes"]]


def install(package: Path, llava: Path | None) -> None:
    """Change lmms-eval; the originals are kept and recorded first, so that a killed install can be restored.

    Each file is replaced by a new one, not written into: an installer's cache may share the old one.

    Raises:
        UserError: files were copied over by hand, or an earlier install cannot be taken out.
    """
    if copies := hand_copies(package):
        raise UserError(f"{package}: {describe_copies(copies)}, then run install again")
    restore(package)  # an earlier install may be of another checkout, or half done
    folder = package / FOLDER
    folder.mkdir()
    changes = []
    for index, (path, content) in enumerate(contents(package, llava)):
        before = sha256(package / path)
        if before is not None:
            keep(package / path, folder / str(index))
        (folder / f"{index}.new").write_bytes(content)
        changes.append(Change(path, before, hashlib.sha256(content).hexdigest()))
    state = {"project": str(ROOT), "llava": str(llava) if llava else None}
    state["changes"] = [vars(change) for change in changes]
    write_json(folder / "state.json", state, indent=1)
    for index, change in enumerate(changes):
        if change.before is not None:
            shutil.copymode(package / change.path, folder / f"{index}.new")
        os.replace(folder / f"{index}.new", package / change.path)


def keep(original: Path, backup: Path) -> None:
    """Keep a file: the same file under a second name where the file system can, else a copy."""
    try:
        os.link(original, backup)
    except OSError:
        shutil.copy2(original, backup)


def restore(package: Path) -> bool:
    """Give back every file; whether there was anything to give back.

    Raises:
        UserError: somebody else has changed a file since; all others are restored.
    """
    folder = package / FOLDER
    state = read_state(package)
    if state is None:
        if folder.exists():  # an install that was killed before it changed anything
            shutil.rmtree(folder)
        return False
    foreign = []
    for index, change in enumerate(changes_in(state)):
        path = package / change.path
        found = sha256(path)
        if found == change.before:
            continue
        if found != change.after:
            foreign.append(change.path)
        elif change.before is None:
            path.unlink()
        else:
            os.replace(folder / str(index), path)
    if foreign:
        raise UserError(
            f"{package}: {', '.join(foreign)}: changed since install and left as found; where lmms-eval was "
            f"upgraded remove {folder}, else the originals are there"
        )
    (folder / "state.json").unlink()  # first: from here on the folder holds nothing of worth
    shutil.rmtree(folder)
    return True


def describe(package: Path) -> tuple[str | None, str]:
    """The command whose aim is reached (``install``, ``restore`` or none), and the state in words."""
    if copies := hand_copies(package):
        return None, describe_copies(copies)
    state = read_state(package)
    if state is None:
        return "restore", "not installed; lmms-eval's files are its own"
    changes = changes_in(state)
    found = [sha256(package / change.path) for change in changes]
    paths = zip(changes, found, strict=True)
    if foreign := [c.path for c, digest in paths if digest not in (c.before, c.after)]:
        return None, f"{', '.join(foreign)} changed since install; run restore, then install"
    if found != [change.after for change in changes]:
        return None, "an install or restore was interrupted; run either again"
    folders = [state["project"], state["llava"]]
    if missing := [folder for folder in filter(None, folders) if not Path(folder).is_dir()]:
        return (
            None,
            f"{missing[0]}, which it was told to use, is gone; run install from another copy, or restore",
        )
    return "install", "installed: keyframes from " + " and LLaVA-NeXT from ".join(filter(None, folders))


def describe_copies(copies: list[str]) -> str:
    """What to do about files that were copied over by hand."""
    verb = "are copies" if len(copies) > 1 else "is a copy"
    return (
        f"{', '.join(copies)} {verb} of this project's; get lmms-eval's own back (pip install "
        "--force-reinstall --no-deps lmms-eval==VERSION; in a checkout: git checkout and git clean)"
    )


def main() -> int:
    """Run a command; status 0 where lmms-eval is in the state that was asked for."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("command", choices=("install", "verify", "restore"))
    parser.add_argument(
        "lmms_eval_dir", nargs="?", help="lmms-eval's checkout or package (default: this Python's)"
    )
    parser.add_argument(
        "--llava", type=Path, metavar="DIR", help="install: a checkout of LLaVA-NeXT to answer with"
    )
    args = parser.parse_args()
    if args.llava is not None:
        if args.command != "install":
            raise UserError("--llava goes with install")
        if not (args.llava / "llava/model/builder.py").is_file():
            raise UserError(
                f"--llava {args.llava}: no checkout of LLaVA-NeXT (llava/model/builder.py is missing)"
            )
        args.llava = args.llava.resolve()
        if copies := hand_copies(args.llava / "llava"):
            raise UserError(
                f"--llava {args.llava}: llava/{copies[0]} is a copy of this project's; git checkout it first"
            )
    package = find_package(args.lmms_eval_dir)
    try:
        if args.command == "install":
            install(package, args.llava)
        elif args.command == "restore" and not restore(package):
            print(f"{package}: nothing to restore")
    except OSError as error:
        raise UserError(
            f"{error.filename or package}: {error.strerror}; lmms-eval's files must be writable"
        ) from None
    reached, state = describe(package)
    print(f"{package}: {state}")
    return int(reached != ("restore" if args.command == "restore" else "install"))


if __name__ == "__main__":
    errors.run_main(main)
