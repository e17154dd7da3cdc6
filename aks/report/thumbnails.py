"""Pictures of keyframes for a report: each read once, in the page or in a folder beside it."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from aks.console import progress
from aks.errors import VideoError
from aks.jsonio import make_folder, write_atomically
from aks.report.questions import ReportedQuestion
from aks.video.reader import Video

logger = logging.getLogger("aks.report")

SIZE = (240, 180)  # pixels, the most a picture has
WEBP = {"format": "WEBP", "quality": 60, "method": 4}
MAX_IN_PAGE = 2000  # pictures: some 15 MB
DATE_PRECISION_S = 2.0  # FAT's

# By video and frame index.
Wanted = dict[Path, set[int]]


@dataclass(frozen=True)
class Thumbnail:
    """A picture of the page.

    Attributes:
        width, height: in pixels.
        url: the picture itself as a data URL, or the address of its file.
        name: of a picture in the page, which questions of one video share; empty for a file.
    """

    width: int
    height: int
    url: str
    name: str = ""


class Thumbnails:
    """The pictures that were read, and why others were not.

    Attributes:
        by_frame: the pictures, by video and frame index.
        failures: reasons, by video.
        per_question: keyframes of a question that have a picture, the best ones.
    """

    def __init__(self) -> None:
        self.by_frame: dict[tuple[Path, int], Thumbnail] = {}
        self.failures: dict[Path, str] = {}
        self.per_question = 0


def choose(reported: Sequence[ReportedQuestion], most: int | None, limit: int | None) -> tuple[Wanted, int]:
    """Which frames get a picture, and how many of a question at most: its best ones.

    Args:
        reported: the questions.
        most: pictures of a question; None for all.
        limit: of all pictures; then each question has as many as fit, but one at least. None for no limit.
    """
    longest = max((len(row.positions) for row in reported), default=0)
    count = longest if most is None else min(most, longest)
    best = [(row.video, row.best) for row in reported]

    def wanted(count: int) -> Wanted:
        frames: Wanted = {}
        for video, indices in best:
            frames.setdefault(video, set()).update(indices[:count])
        return frames

    while limit is not None and count > 1 and sum(map(len, wanted(count).values())) > limit:
        count -= 1
    return wanted(count), count


def read_thumbnails(
    reported: Sequence[ReportedQuestion],
    page: Path,
    folder: Path | None = None,
    most: int | None = None,
) -> Thumbnails:
    """Read the keyframes' pictures.

    Args:
        reported: the questions.
        page: the HTML file.
        folder: where the pictures go, and stay for the next report; None puts them into the page.
        most: pictures of a question; None for all, or in the page for as many as :data:`MAX_IN_PAGE` allow.

    Raises:
        UserError: a picture cannot be written.
    """
    found = Thumbnails()
    # The others must not take room in the page. A folder may hold pictures of a video that is gone.
    there = {row.video: folder is not None or row.video.exists() for row in reported}
    found.failures = {video: "file not found" for video, is_there in there.items() if not is_there}
    present = [row for row in reported if there[row.video]]
    wanted, found.per_question = choose(present, most, MAX_IN_PAGE if folder is None else None)
    total = sum(map(len, wanted.values()))
    with progress(total=total, unit="picture", desc="pictures", disable=not total) as bar:
        for video, indices in wanted.items():
            try:
                for index, thumbnail in _read(video, sorted(indices), page, folder, len(found.by_frame)):
                    found.by_frame[video, index] = thumbnail
                    bar.update()
            except VideoError as error:
                found.failures[video] = str(error)
            except ValueError:
                found.failures[video] = "has fewer frames than were scored: another file of this name"
    return found


def _read(
    video: Path, indices: list[int], page: Path, folder: Path | None, number: int
) -> Iterator[tuple[int, Thumbnail]]:
    """The pictures of a video's frames; those that are in the folder already are not read again."""
    if not indices:
        return
    if folder is None:
        for index, image in _decode(video, indices):
            data = io.BytesIO()
            image.save(data, **WEBP)
            url = "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()
            yield index, Thumbnail(*image.size, url, f"f{number}")
            number += 1
        return
    digest = hashlib.sha256(os.fsencode(video.absolute())).hexdigest()[:8]
    own = folder / f"{re.sub(r'[^A-Za-z0-9_-]+', '_', video.stem)[:60]}-{digest}"
    make_folder(own, "--pictures")
    paths = {index: own / f"{index:07d}.webp" for index in indices}
    # A picture has its file's date, older or newer, so that one of another video of the name is known.
    changed_s = video.stat().st_mtime if video.is_file() else None  # pictures outlive the video
    missing = [
        index
        for index, path in paths.items()
        if not path.exists()
        or (changed_s is not None and abs(path.stat().st_mtime - changed_s) > DATE_PRECISION_S)
    ]
    if missing:
        for index, image in _decode(video, missing):
            write_atomically(paths[index], lambda target, image=image: image.save(target, **WEBP))
            os.utime(paths[index], (changed_s, changed_s))
    for index, path in paths.items():
        with Image.open(path) as image:
            url = quote(Path(os.path.relpath(path, page.absolute().parent)).as_posix())
            yield index, Thumbnail(*image.size, url)


def _decode(video: Path, indices: list[int]) -> Iterator[tuple[int, Image.Image]]:
    with Video(video) as opened:
        for frames in opened.read(np.array(indices), chunk_frames=1):
            image = Image.fromarray(frames.pixels[0])
            image.thumbnail(SIZE, Image.Resampling.BICUBIC)
            yield int(frames.frame_indices[0]), image
