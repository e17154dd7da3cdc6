"""The needle benchmark: films are as their plans and labels say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import check_mistake
from PIL import Image

from aks.errors import UserError
from aks.labels import load_labels
from aks.video.reader import Video

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

import needle_films

LENGTH_S = 180


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Things of one colour each, with captions."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(20):
        path = folder / needle_films.KINDS[index % 3] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = (255 * (index % 2), 60 * (index // 2 % 5), 255 * (index // 10))
        Image.new("RGBA", (60, 40), (*colour, 255)).save(path)
        path.with_suffix(".txt").write_text(f"A thing {index}.\nde.utf8=Ein Ding.\n")
    return folder


@pytest.fixture(scope="module")
def film(photos, tmp_path_factory):
    """The label file of a seed's film of three minutes, and what is needed to make it again."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"LENGTHS_S": (LENGTH_S,), "QUESTION_EVERY_S": 36, "DISTRACTORS": 1}.items():
            patch.setattr(needle_films, name, value)
        folder = tmp_path_factory.mktemp("film")
        shape = (40, needle_films.HEIGHT, needle_films.WIDTH, 3)
        needle_films.encode(folder / "source.mp4", iter(np.full(shape, 128, np.uint8)))
        yield needle_films.make_films(folder / "seed_3", 3, photos, folder / "source.mp4"), folder


def test_photos_that_are_missing_or_damaged_are_one_line(tmp_path, run_script):
    """Missing ones are told before anything is fetched for the films."""
    flags = ["--photos", tmp_path, "--sources", tmp_path / "sources", "--output", tmp_path / "out"]
    done = run_script("benchmarks/needles.py", *flags)
    check_mistake(done, f"{tmp_path}: 0 photos with captions are too few")
    (tmp_path / "a.png").write_text("no picture")
    thing = needle_films.Thing("a thing", "hobbies", tmp_path / "a.png")
    with pytest.raises(UserError, match="no picture that can be read"):
        needle_films.fit_photo(needle_films.Sighting(thing, 0, 0, 1, 0.5, 0.5, False))


def plan(photos: Path, seed: int) -> needle_films.Film:
    return needle_films.plan_film(needle_films.read_things(photos), LENGTH_S, 40, seed)


def test_a_seed_always_gives_the_same_film_and_another_one_another(film, photos):
    label_file, folder = film
    video = label_file.with_name(f"{LENGTH_S}.mp4")
    before = video.stat().st_mtime_ns
    assert needle_films.make_films(label_file.parent, 3, photos, folder / "source.mp4") == label_file
    assert video.stat().st_mtime_ns == before  # it is not made again
    assert plan(photos, 3) == plan(photos, 3) != plan(photos, 4)
    entries = needle_films.label_entries(plan(photos, 3), video.name, 3, LENGTH_S)
    assert entries == json.loads(label_file.read_text())
    assert [entry["category"] for entry in entries] == [
        *("1 place", "2 places, near", "2 places, far", "4 places, near", "4 places, far")
    ]


def test_the_evidence_is_seen_where_the_labels_say(film, photos):
    """Compares the pixels of every frame that is read with the colours of the photos."""
    label_file, _ = film
    labels = load_labels("custom", label_file=label_file)
    with Video(labels.video_path(labels.questions[0].video)) as video:
        frames = np.concatenate([batch.pixels for batch in video.read(np.arange(LENGTH_S * 4))])
    assert len(frames) == LENGTH_S * needle_films.FPS
    colours = {}
    for thing in needle_films.read_things(photos):
        with Image.open(thing.photo) as photo:
            colours[f"When can one see {thing.caption}?"] = np.array(photo.getpixel((0, 0))[:3])
    counts = []
    for question in labels.questions:
        near = np.abs(frames[:, ::4, ::4].astype(int) - colours[question.text]).max(axis=3) < 30
        seen = near.mean(axis=(1, 2)) > 0.02
        labelled = np.zeros(len(frames), dtype=bool)
        for first, last in question.evidence_times_s:
            assert 0.25 <= last - first + 1 / needle_films.FPS <= 5
            labelled[round(first * needle_films.FPS) : round(last * needle_films.FPS) + 1] = True
        assert seen.tolist() == labelled.tolist()
        counts.append(len(question.evidence_times_s))
        gaps = np.diff([first for first, _ in question.evidence_times_s])
        assert question.category.endswith("near") == bool(len(gaps) and gaps.max() < 15)
    assert counts == [1, 2, 2, 4, 4]
