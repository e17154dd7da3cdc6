"""JSON and CSV files that are whole or absent, whatever happens to the process that writes them."""

from __future__ import annotations

import contextlib
import csv
import errno
import functools
import hashlib
import io
import json
import os
import re
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aks.errors import UserError, nearest_file

STALE_TEMP_S = 2 * 86400.0  # no video takes so long: no process writes an older file any more


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        UserError: it is missing, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: file not found{nearest_file(path)}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise UserError(f"{path}: not JSON: {error}") from None


def make_folder(folder: Path, flag: str) -> None:
    """Make a folder for results, and those above it, where they are not there.

    Raises:
        UserError: it cannot be made, or takes no files; ``flag`` is what named it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be created: {error.strerror}; check {flag}") from None
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise UserError(f"{folder}: no permission to write there; check {flag}")


def write_json(path: Path, data: Any, *, indent: int | None = None, exclusive: bool = False) -> None:
    """Write a JSON file that is whole or absent, whatever happens to this process.

    Without ``indent`` it has the reference's one-line form. ``exclusive`` is that of :func:`publish`.

    Raises:
        UserError: it cannot be written (disk full, no permission), or the data holds NaN or infinity.
    """
    try:
        text = json.dumps(data, indent=indent, allow_nan=False)
    except ValueError as error:
        raise UserError(f"{path}: not written: {error}") from None
    write_atomically(path, lambda target: target.write_text(text, encoding="utf-8"), exclusive)


def write_csv(path: Path, titles: Iterable[str], records: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV file: a row a record, empty where it has no such title; other keys are left out.

    Raises:
        UserError: it cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(titles), extrasaction="ignore")
    writer.writeheader()
    writer.writerows(records)
    write_atomically(path, lambda target: target.write_text(text.getvalue(), encoding="utf-8", newline=""))


def write_atomically(path: Path, write: Callable[[Path], object], exclusive: bool = False) -> None:
    """Let ``write`` fill a temporary file that then takes the place of ``path``, see :func:`publish`."""
    temporary = temporary_path(path)
    try:
        with writing_to(path):
            write(temporary)
            publish(temporary, path, exclusive)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """A name beside ``path``, with its suffix, that no other process uses."""
    mark = f"{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    stem = os.fsencode(path.stem)[:100].decode(errors="ignore")  # a file system counts bytes
    return path.with_name(f".{stem}.{mark}.tmp{path.suffix}")


@contextlib.contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turn an error of the operating system (disk full, no permission) into one line that names ``path``."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; finished work is kept") from None


def publish(temporary: Path, path: Path, exclusive: bool = False) -> None:
    """Give a complete temporary file its final name, so that a crash leaves the whole file or none.

    With ``exclusive``, a file of that name that another process wrote meanwhile stays.
    """
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    if exclusive:
        _rename_noreplace(temporary, path)
    else:
        os.replace(temporary, path)


def _rename_noreplace(temporary: Path, path: Path) -> None:
    """Rename a file unless the name is taken."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EACCES):
            raise
        if not path.exists():  # on a file system without links, the next best
            os.replace(temporary, path)


@functools.cache
def _host() -> str:
    """Identify this machine, its last start, and its process namespace, in which process ids are unique."""
    facts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        facts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256(" ".join(facts).encode()).hexdigest()[:16]


def remove_stale_temp_files(folder: Path) -> None:
    """Delete the temporary files of killed processes: of this machine's, and any that are very old."""
    paths = [*folder.glob(".*.tmp.*"), *folder.parent.glob(".*.tmp.*")]
    if not paths or not Path("/proc/self").exists():  # nothing tells which processes live
        return
    with contextlib.suppress(OSError):
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as file:
            now = os.stat(file.name).st_mtime  # by the file server's clock, as the other files' times
        for path in paths:
            mark = re.search(r"\.([0-9a-f]{16})-(\d+)-[0-9a-f]{8}\.tmp\.\w+$", path.name)
            if not mark:
                continue
            is_dead = mark[1] == _host() and not Path(f"/proc/{mark[2]}").exists()
            with contextlib.suppress(OSError):  # another run may remove a file at the same time
                if is_dead or path.stat().st_mtime < now - STALE_TEMP_S:
                    path.unlink(missing_ok=True)
