"""Make the demo's film: *Big Buck Bunny* with photos of known content spliced in, and its labels.

The film is (c) 2008 Blender Foundation, www.bigbuckbunny.org, CC BY 3.0. Film and photos come from Python
packages, which hold them as documentation and test data; the repository holds neither. The script writes
film.mp4, labels.json and sources/ under --output, and keeps those that are already there.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image

from aks import errors
from aks.arguments import ArgumentParser
from aks.console import progress
from aks.jsonio import read_json, write_atomically, write_json
from aks.video.codec_log import reset_decoder_globals

SEED = 2025
RECIPE = 1  # to be raised with every change of the film or the labels
FILM = "resources/bbb.mp4"
FILM_ARCHIVE = "docs/_static/medias/getting_started/moviepy_10_minutes/moviepy_10_minutes.zip"
PACKAGES = {  # requirement -> whether the source distribution is needed
    "moviepy==2.2.1": True,
    "scikit-image==0.26.0": False,
    "scikit-learn==1.9.1": False,
}


class Needle(NamedTuple):
    """A photo and its question. The first option is right; the labels shuffle the options."""

    id: str
    photo: str
    group: str  # "imagenet": its content is an ImageNet class, which the conse scorer knows; or "other"
    question: str
    options: tuple[str, str, str, str]


SKIMAGE, SKLEARN = "skimage/data/", "sklearn/datasets/images/"
NEEDLES = [
    Needle(
        "cat",
        SKIMAGE + "chelsea.png",
        "imagenet",
        "A cat looks into the camera: what kind of cat is it?",
        ("a striped tabby cat", "a white Persian cat", "a black panther", "a Siamese cat"),
    ),
    Needle(
        "coffee",
        SKIMAGE + "coffee.png",
        "imagenet",
        "What is in the coffee cup on the wooden table?",
        ("espresso coffee", "red wine", "tomato soup", "ice cream"),
    ),
    Needle(
        "rocket",
        SKIMAGE + "rocket.jpg",
        "imagenet",
        "Where does the rocket stand before its launch?",
        ("on a launch pad between towers", "on a ship at sea", "in a museum hall", "on a desert road"),
    ),
    Needle(
        "motorcycle",
        SKIMAGE + "motorcycle_left.png",
        "imagenet",
        "Which vehicle is parked in the garage?",
        ("a red motorcycle", "a blue tractor", "a yellow school bus", "a white ambulance"),
    ),
    Needle(
        "camera",
        SKIMAGE + "camera.png",
        "imagenet",
        "A man takes a picture with a camera. On what does the camera stand?",
        ("a tripod", "a wooden table", "the roof of a car", "a stone wall"),
    ),
    Needle(
        "pagoda",
        SKLEARN + "china.jpg",
        "imagenet",
        "Which palace with tiled roofs rises above the trees?",
        ("a Chinese pavilion by a lake", "a French castle", "a brick monastery", "a glass skyscraper"),
    ),
    Needle(
        "astronaut",
        SKIMAGE + "astronaut.png",
        "other",
        "What does the astronaut in the orange suit hold under her arm?",
        ("a white helmet", "a bunch of flowers", "a camera", "a small dog"),
    ),
    Needle(
        "coins",
        SKIMAGE + "coins.png",
        "other",
        "In how many rows do the ancient coins lie?",
        ("four", "two", "three", "nine"),
    ),
    Needle(
        "moon",
        SKIMAGE + "moon.png",
        "other",
        "What covers the grey surface of the Moon?",
        ("craters", "grass", "waves", "snow"),
    ),
    Needle(
        "galaxies",
        SKIMAGE + "hubble_deep_field.jpg",
        "other",
        "What are the bright spots in the telescope's picture of deep space?",
        ("galaxies", "fireworks", "fireflies", "snowflakes"),
    ),
    Needle(
        "page",
        SKIMAGE + "page.png",
        "other",
        "What is the printed page of text about?",
        ("segmenting an image", "baking bread", "a football match", "the weather"),
    ),
    Needle(
        "retina",
        SKIMAGE + "retina.jpg",
        "other",
        "Which organ does the medical picture with red blood vessels show?",
        ("the back of an eye", "a heart", "a lung", "a kidney"),
    ),
    Needle(
        "dahlia",
        SKLEARN + "flower.jpg",
        "other",
        "What colour are the petals of the dahlia flower?",
        ("orange", "white", "blue", "dark red"),
    ),
    Needle(
        "bricks",
        SKIMAGE + "brick.png",
        "other",
        "How do the bricks in the black and white picture lie?",
        ("upright, in columns", "in a circle", "in a heap", "in one single row"),
    ),
]


class Splice(NamedTuple):
    """A needle in the film: it replaces the frames ``start <= index < stop``."""

    needle: Needle
    start: int
    stop: int


def fetch(folder: Path) -> None:
    """Download the packages that hold the film and the photos, and unpack only those files.

    Raises:
        UserError: the package index cannot be reached, or a package changed.
    """
    missing = [path for path in (FILM, *(n.photo for n in NEEDLES)) if not (folder / path).exists()]
    if not missing:
        return
    downloads = folder / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    for requirement, source in PACKAGES.items():
        print(f"fetching {requirement}", file=sys.stderr)
        form = ["--no-binary", ":all:"] if source else ["--only-binary", ":all:"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *form]
        done = subprocess.run([*command, "--dest", downloads, requirement], capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip gives no reason"])[-1]
            raise errors.UserError(
                f"{requirement} cannot be downloaded ({reason}); check the network and run again"
            )
    try:
        for archive in downloads.glob("*.whl"):
            with zipfile.ZipFile(archive) as wheel:
                for member in set(wheel.namelist()).intersection(missing):
                    save(folder / member, wheel.read(member))
        (source,) = downloads.glob("moviepy-*.tar.gz")
        with tarfile.open(source) as tar:
            member = f"{source.name.removesuffix('.tar.gz')}/{FILM_ARCHIVE}"
            with zipfile.ZipFile(tar.extractfile(member)) as inner:
                name = next(name for name in inner.namelist() if name.endswith(FILM))
                save(folder / FILM, inner.read(name))
    except (OSError, KeyError, StopIteration, ValueError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise errors.UserError(
            f"{downloads}: not the packages expected ({error}); remove it, run again"
        ) from None
    absent = [path for path in missing if not (folder / path).exists()]
    if absent:
        raise errors.UserError(f"{downloads}: {absent[0]} is not in its package")
    for archive in downloads.iterdir():
        archive.unlink()
    downloads.rmdir()


def save(path: Path, content: bytes) -> None:
    """Write a file atomically, so that a file that exists is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda target: target.write_bytes(content))


def schedule(num_frames: int, fps: float, seed: int = SEED) -> list[Splice]:
    """Choose where the needles go: 1 to 2 s each, one in each equal stretch of the film, in seeded order."""
    rng = np.random.default_rng(seed)
    stretch = num_frames / len(NEEDLES)
    splices = []
    for slot, needle in enumerate(rng.permutation(len(NEEDLES))):
        length = round(rng.uniform(1, 2) * fps)
        first, last = slot * stretch + fps, (slot + 1) * stretch - fps - length
        start = int(rng.uniform(first, last))
        splices.append(Splice(NEEDLES[needle], start, start + length))
    return splices


def fit(photo: Path, width: int, height: int) -> np.ndarray:
    """Fit a whole photo onto a black picture, (height, width, 3) uint8."""
    with Image.open(photo) as image:
        image = image.convert("RGB")
    scale = min(width / image.width, height / image.height)
    size = (round(image.width * scale), round(image.height * scale))
    canvas = Image.new("RGB", (width, height))
    canvas.paste(
        image.resize(size, Image.Resampling.BICUBIC), ((width - size[0]) // 2, (height - size[1]) // 2)
    )
    return np.asarray(canvas)


def splice(source: Path, splices: list[Splice], photos: Path, output: Path) -> None:
    """Encode the film as H.264 with the needles in place of some of its frames."""
    pictures: dict[int, np.ndarray] = {}
    reset_decoder_globals()
    with av.open(str(source)) as film, av.open(str(output), "w", format="mp4") as target:
        stream = film.streams.video[0]
        stream.thread_type = "AUTO"
        out = target.add_stream("libx264", rate=stream.average_rate)
        out.width, out.height, out.pix_fmt = stream.width, stream.height, "yuv420p"
        out.options = {"preset": "ultrafast", "crf": "28"}
        out.codec_context.time_base = Fraction(1) / stream.average_rate
        for place in splices:
            picture = fit(photos / place.needle.photo, stream.width, stream.height)
            pictures.update(dict.fromkeys(range(place.start, place.stop), picture))

        def encoded() -> Iterator[av.Packet]:
            bar = progress(iterable=film.decode(stream), total=stream.frames, unit="frame", desc="encoding")
            for index, frame in enumerate(bar):
                if index in pictures:
                    new = av.VideoFrame.from_ndarray(pictures[index], format="rgb24").reformat(
                        format="yuv420p"
                    )
                else:
                    new = frame
                new.pts, new.time_base = index, out.codec_context.time_base
                new.pict_type = (
                    av.video.frame.PictureType.NONE
                )  # the encoder chooses picture types, not the film
                yield from out.encode(new)
            yield from out.encode()

        for packet in encoded():
            target.mux(packet)


def labels(splices: list[Splice], fps: float, duration_s: float) -> list[dict[str, object]]:
    """Label entries in the project's own format, in the order of the needles."""
    entries = []
    rng = np.random.default_rng(SEED)
    for place in sorted(splices, key=lambda place: NEEDLES.index(place.needle)):
        needle = place.needle
        order = rng.permutation(len(needle.options)).tolist()
        entries.append(
            {
                "id": needle.id,
                "video": "film.mp4",
                "question": needle.question,
                "options": [needle.options[option] for option in order],
                "answer": order.index(0),
                "evidence_times": [[round(place.start / fps, 3), round((place.stop - 1) / fps, 3)]],
                "duration": round(duration_s, 3),
                "group": needle.group,
            }
        )
    return entries


def main() -> None:
    """Fetch the sources, splice the film and write its labels, where they are missing."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "work")
    args = parser.parse_args()
    film, label_file, stamp = (args.output / name for name in ("film.mp4", "labels.json", "recipe.json"))
    photos = [needle.photo for needle in NEEDLES]
    recipe = {"recipe": RECIPE, "seed": SEED, "photos": photos, "duration_s": 0.0, "fps": 0.0}
    recorded = read_json(stamp) if film.exists() and stamp.exists() else {}
    if {**recorded, "duration_s": 0.0, "fps": 0.0} != recipe:
        sources = args.output / "sources"
        fetch(sources)
        with av.open(str(sources / FILM)) as container:
            stream = container.streams.video[0]
            frames, fps = stream.frames, float(stream.average_rate)
        partial = film.with_suffix(".part")
        splice(sources / FILM, schedule(frames, fps), sources, partial)
        partial.replace(film)
        recorded = {**recipe, "duration_s": frames / fps, "fps": fps}
        write_json(stamp, recorded)
    duration_s, fps = recorded["duration_s"], recorded["fps"]
    splices = schedule(round(duration_s * fps), fps)
    entries = labels(splices, fps, duration_s)
    if not label_file.exists() or read_json(label_file) != entries:
        write_json(label_file, entries, indent=1)


if __name__ == "__main__":
    errors.run_main(main)
