"""Which files of a folder are videos, and what their names and sizes are like."""

from __future__ import annotations

from pathlib import Path

from aks.errors import UserError

# What a folder is searched for.
VIDEO_SUFFIXES = {
    ".3gp", ".asf", ".avi", ".divx", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4",
    ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"
}  # fmt: skip


def videos_in(folder: Path) -> list[Path]:
    """The video files of a folder and the folders in it, by their names' endings.

    Raises:
        UserError: there is none.
    """
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not found:
        raise UserError(f"{folder}: holds no video ({' '.join(sorted(VIDEO_SUFFIXES))})")
    return found


def file_bytes(path: Path) -> int | None:
    """Size of a file; None where there is none."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return None


def is_utf8(name: str) -> bool:
    """Whether a file's name is UTF-8, which text can hold; a file system takes other bytes, too."""
    return name.encode(errors="ignore").decode() == name
