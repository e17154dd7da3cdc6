"""Films of known content for ``needles.py``: photos of things on shots of *Big Buck Bunny*, and their labels.

A film is made of shots of 4 to 20 s in seeded order. Each of its questions asks for one thing, whose photo
is shown in 1, 2 or 4 places, near to one another or far apart, for 0.5 to 5 s each. Other things of the same
kind are shown as distractors. The photos are the stamps of Tux Paint (GPL 2 or later), from Debian's package;
neither they nor the film are part of this repository.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image, ImageOps

from aks.console import progress
from aks.errors import UserError
from aks.jsonio import read_json, write_atomically, write_json, writing_to
from aks.video.codec_log import reset_decoder_globals

RECIPE = 1  # to be raised with every change of the films or the labels
PACKAGE = "tuxpaint-stamps-default"
STAMPS = "./usr/share/tuxpaint/stamps/"
KINDS = (
    *("animals/birds", "animals/mammals", "animals/insects", "animals/fish", "food/fruit"),
    *("food/vegetables", "plants/flowers", "vehicles", "household", "hobbies"),
)

FPS = 4  # of the films: every fourth frame is a candidate, and 0.5 s may lie between two
WIDTH, HEIGHT = 320, 180
LENGTHS_S = (600, 1200)  # a seed makes a film of each
LAYOUTS = ((1, "far"), (2, "near"), (2, "far"), (4, "near"), (4, "far"))  # places, and how they lie
QUESTION_EVERY_S = 60  # so many questions has a film, the layouts in turns
DISTRACTORS = 2  # a question, of things that no question asks for
SHOWN_S = (0.5, 5.0)  # how long a photo is seen; the logarithm is drawn evenly
NEAR_S = (3.0, 10.0)  # between places that lie near
MARGIN_S = 1.5  # between any two photos


class Thing(NamedTuple):
    """A photo, what it shows ("a great blue heron"), and of which kind that is."""

    caption: str
    kind: str
    photo: Path


class Sighting(NamedTuple):
    """A thing in the film's frames ``start <= index < stop``; of which question, or None: a distractor."""

    thing: Thing
    question: int | None
    start: int
    stop: int
    size: float  # of the photo, as a share of the film's height
    left: float  # 0 to 1: where it is in the middle half of the picture
    mirrored: bool


class Film(NamedTuple):
    """The plan of a film.

    Attributes:
        shots: (first frame in the source, frames, mirrored), which follow one another.
        sightings: in order of time; no two overlap.
        asked: the thing each question asks for.
        num_frames: all frames.
    """

    shots: list[tuple[int, int, bool]]
    sightings: list[Sighting]
    asked: list[Thing]
    num_frames: int


def fetch_stamps(folder: Path) -> None:
    """Download Debian's package and unpack the photos and captions of :data:`KINDS`, where they are missing.

    Raises:
        UserError: the package cannot be had.
    """
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        partial = Path(name) / "stamps"
        try:
            subprocess.run(["apt-get", "download", "-q", PACKAGE], cwd=name, check=True, capture_output=True)
            (package,) = Path(name).glob("*.deb")
            unpacked = subprocess.run(
                ["dpkg-deb", "--fsys-tarfile", package], check=True, capture_output=True
            )
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            raise UserError(
                f"Debian's package {PACKAGE} cannot be downloaded ({error}); run apt-get update, or name a "
                "folder with its photos by --photos"
            ) from None
        with tarfile.open(fileobj=io.BytesIO(unpacked.stdout)) as tar:
            for member in tar:
                path = member.name.removeprefix(STAMPS)
                if member.isfile() and path.startswith(KINDS) and path.endswith((".png", ".txt")):
                    (partial / path).parent.mkdir(parents=True, exist_ok=True)
                    (partial / path).write_bytes(tar.extractfile(member).read())
        partial.rename(folder)


def read_things(folder: Path) -> list[Thing]:
    """The photos with a caption of their own, "A thing.", in the first line of the text file beside them.

    Drawings (``cartoon``) are left out, and captions of several photos.

    Raises:
        UserError: there are too few for the longest film.
    """
    things: dict[str, list[Thing]] = {}
    for kind in KINDS:
        for photo in sorted((folder / kind).rglob("*.png")):
            text = photo.with_suffix(".txt")
            caption = text.read_text(errors="replace").split("\n")[0].strip() if text.exists() else ""
            if (match := re.fullmatch(r"(An?|The) ([^.!]+)\.", caption)) and "cartoon" not in photo.parts:
                thing = Thing(f"{match[1].lower()} {match[2]}", kind, photo)
                things.setdefault(thing.caption.lower(), []).append(thing)
    single = [found[0] for found in things.values() if len(found) == 1]
    if len(single) < max(LENGTHS_S) // QUESTION_EVERY_S * (1 + DISTRACTORS):
        raise UserError(f"{folder}: {len(single)} photos with captions are too few for a film; see --photos")
    return single


def digest(things: list[Thing]) -> str:
    """Of the captions and the photos' bytes."""
    hashed = hashlib.sha256()
    for thing in things:
        hashed.update(thing.caption.encode() + thing.photo.read_bytes())
    return hashed.hexdigest()


def plan_film(things: list[Thing], length_s: int, source_frames: int, seed: int) -> Film:
    """Choose shots, things and places; equal arguments give equal plans.

    Args:
        things: what may be shown.
        length_s: of the film.
        source_frames: frames of the source at :data:`FPS`.
        seed: of all choices.
    """
    rng = np.random.default_rng([seed, length_s])
    total = length_s * FPS
    shots, left = [], total
    while left:
        num_frames = min(left, int(rng.integers(4 * FPS, 20 * FPS)), source_frames)
        shots.append((int(rng.integers(source_frames - num_frames + 1)), num_frames, bool(rng.integers(2))))
        left -= num_frames

    others = [things[index] for index in rng.permutation(len(things))]
    asked = [others.pop() for _ in range(length_s // QUESTION_EVERY_S)]
    taken = np.zeros(total, dtype=bool)
    sightings: list[Sighting] = []

    def show(thing: Thing, question: int | None, spans: list[tuple[int, int]]) -> None:
        for start, stop in spans:
            taken[start:stop] = True
            size, at_left = rng.uniform(0.5, 0.95), rng.uniform()
            sightings.append(Sighting(thing, question, start, stop, size, at_left, bool(rng.integers(2))))

    for question, thing in enumerate(asked):
        show(thing, question, _free_spans(rng, taken, *LAYOUTS[question % len(LAYOUTS)]))
    for thing in asked:
        similar = [other for other in others if other.kind == thing.kind][:DISTRACTORS]
        for other in similar or others[:DISTRACTORS]:
            others.remove(other)
            show(other, None, _free_spans(rng, taken, 1, "far"))
    return Film(shots, sorted(sightings, key=lambda sighting: sighting.start), asked, total)


def _free_spans(
    rng: np.random.Generator, taken: np.ndarray, places: int, layout: str
) -> list[tuple[int, int]]:
    """Draw (start, stop) of so many places until all lie in free frames with a margin around them."""
    margin = round(MARGIN_S * FPS)
    while True:
        lengths = [round(FPS * np.exp(rng.uniform(*np.log(SHOWN_S)))) for _ in range(places)]
        if layout == "far":  # one in each half, or quarter, of the film
            part = len(taken) // places
            starts = [int(rng.integers(index * part, (index + 1) * part)) for index in range(places)]
        else:
            starts = [int(rng.integers(len(taken)))]
            for length in lengths[:-1]:
                starts.append(starts[-1] + length + round(FPS * rng.uniform(*NEAR_S)))
        spans = [(start, start + length) for start, length in zip(starts, lengths, strict=True)]
        inside = all(start >= margin and stop + margin <= len(taken) for start, stop in spans)
        apart = all(later - stop >= margin for (_, stop), (later, _) in itertools.pairwise(spans))
        if inside and apart and not any(taken[start - margin : stop + margin].any() for start, stop in spans):
            return spans


def shrink_source(source: Path, target: Path) -> None:
    """Keep :data:`FPS` small frames a second of the source film, so that every film is quickly made."""
    with av.open(str(source)) as film:
        stream = film.streams.video[0]
        stream.thread_type = "AUTO"
        step = Fraction(1, FPS)

        def frames() -> Iterator[np.ndarray]:
            wanted = Fraction(0)
            for frame in progress(
                iterable=film.decode(stream), total=stream.frames, unit="frame", desc="source"
            ):
                if frame.pts * stream.time_base >= wanted:
                    wanted += step
                    yield frame.reformat(WIDTH, HEIGHT, "rgb24").to_ndarray()

        encode(target, frames(), crf=18)


def encode(path: Path, frames: Iterator[np.ndarray], crf: int = 26) -> None:
    """Encode frames (HEIGHT, WIDTH, 3) uint8 as H.264."""

    def write(target: Path) -> None:
        with av.open(str(target), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=FPS)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.options = {"preset": "veryfast", "crf": str(crf)}
            for pixels in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())

    reset_decoder_globals()
    write_atomically(path, write)


def read_all(path: Path) -> np.ndarray:
    """All frames of a small film, (n, HEIGHT, WIDTH, 3) uint8."""
    reset_decoder_globals()
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def render(film: Film, source: np.ndarray) -> Iterator[np.ndarray]:
    """The film's frames, (HEIGHT, WIDTH, 3) uint8 each, from the source's frames at :data:`FPS`."""
    shots = ((first + offset, mirrored) for first, count, mirrored in film.shots for offset in range(count))
    shown = iter(film.sightings)
    sighting = next(shown, None)
    photo: Image.Image | None = None
    for index, (source_index, mirrored) in enumerate(shots):
        pixels = source[source_index]
        if mirrored:
            pixels = pixels[:, ::-1]
        if sighting and index == sighting.stop:
            sighting, photo = next(shown, None), None
        if sighting and index >= sighting.start:
            photo = photo or fit_photo(sighting)
            yield paste(pixels, photo, sighting.left)
        else:
            yield np.ascontiguousarray(pixels)


def fit_photo(sighting: Sighting) -> Image.Image:
    """The photo at its size in the film, with its transparency.

    Raises:
        UserError: it cannot be read.
    """
    path = sighting.thing.photo
    try:
        with Image.open(path) as image:
            photo = image.convert("RGBA")
    except OSError:
        raise UserError(f"{path}: no picture that can be read; take it out of --photos") from None
    photo = photo.crop(photo.getchannel("A").getbbox())
    if sighting.mirrored:
        photo = ImageOps.mirror(photo)
    scale = sighting.size * min(HEIGHT / photo.height, WIDTH / 2 / photo.width)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    return photo.resize(size, Image.Resampling.BICUBIC)


def paste(pixels: np.ndarray, photo: Image.Image, left: float) -> np.ndarray:
    """A frame with the photo on it, within the middle half of the picture."""
    canvas = Image.fromarray(pixels)
    x = WIDTH // 4 + round(left * (WIDTH // 2 - photo.width))
    canvas.paste(photo, (x, (HEIGHT - photo.height) // 2), photo)
    return np.asarray(canvas)


def label_entries(film: Film, name: str, seed: int, length_s: int) -> list[dict[str, object]]:
    """Label entries in the project's own format: an entry a question."""
    entries = []
    for question, thing in enumerate(film.asked):
        places, layout = LAYOUTS[question % len(LAYOUTS)]
        spans = [(s.start, s.stop) for s in film.sightings if s.question == question]
        entries.append(
            {
                "id": f"{seed}-{length_s}-{question}",
                "video": name,
                "question": f"When can one see {thing.caption}?",
                "evidence_times": [[start / FPS, (stop - 1) / FPS] for start, stop in spans],
                "duration": film.num_frames / FPS,
                "group": str(length_s),
                "category": "1 place" if places == 1 else f"{places} places, {layout}",
            }
        )
    return entries


def make_films(folder: Path, seed: int, photos: Path, source: Path) -> Path:
    """Make a seed's films and their labels where they are missing or of another recipe.

    Args:
        folder: for films, labels and, beside them, scores.
        seed: of the films.
        photos: as :func:`read_things` reads them.
        source: the film at :data:`FPS`, as :func:`shrink_source` writes it.

    Returns:
        The label file.
    """
    things, label_file, stamp = read_things(photos), folder / "labels.json", folder / "recipe.json"
    recipe = {"recipe": RECIPE, "seed": seed, "lengths_s": list(LENGTHS_S), "photos_sha256": digest(things)}
    if stamp.exists() and read_json(stamp) == recipe:
        return label_file
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
    shutil.rmtree(folder / "outscores", ignore_errors=True)  # of other films
    frames, entries = read_all(source), []
    for length_s in LENGTHS_S:
        film = plan_film(things, length_s, len(frames), seed)
        encode(folder / f"{length_s}.mp4", render(film, frames))
        entries += label_entries(film, f"{length_s}.mp4", seed, length_s)
    write_json(label_file, entries, indent=1)
    write_json(stamp, recipe)
    return label_file
