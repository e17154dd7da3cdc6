"""By whose frame numbers a file was made is told; decord's become a player's that show the same frames."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import decord
import forkserver
import numpy as np
import pytest
from evaluation_setup import ROOT, write_longvideobench_labels
from media import number_of, numbered, trim, write_video

from aks.video.reader import Video
from evaluation.frame_numbering import read_edited
from evaluation.frame_policy import read_frames


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """A film, and the same film trimmed by an edit list that hides 35 frames."""
    folder = tmp_path_factory.mktemp("videos")
    settings = {
        "fps": 25,
        "size": (64, 64),
        "gop": 50,
        "draw": numbered,
        "options": {"x264-params": "scenecut=0"},
    }
    trim(write_video(folder / "plain.mp4", frames=200, **settings), folder / "trimmed.mp4")
    return folder


def command(videos: Path, *arguments: object, names: tuple[str, ...] = ("plain.mp4", "trimmed.mp4")):
    labels = write_longvideobench_labels(videos.parent / "labels", names)
    script = [
        forkserver.python("torch"),
        ROOT / "evaluation/frame_numbering.py",
        "--dataset_name",
        "longvideobench",
    ]
    flags = ["--label_file", labels, "--dataset_path", videos.parent / "data", *map(str, arguments)]
    done = subprocess.run([*script, *flags], text=True, capture_output=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def data(videos, tmp_path) -> Path:
    """The data set's folder of videos; files beside it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/videos").symlink_to(videos)
    return tmp_path / "data"


def candidates(path: Path, decoder: str) -> list[int]:
    if decoder == "decord":  # the released extractor's rule, on decord itself
        reader = decord.VideoReader(str(path))
        stride = int(reader.get_avg_fps())
        return [index * stride for index in range(len(reader) // stride)]
    with Video(path) as video:
        return video.candidates().tolist()


@pytest.mark.parametrize(
    ("decoder", "verdict"),
    [
        ("decord", "has decord's numbers; a player shows frame n of it 1.40 to 1.40 s too late"),
        ("auto", "has a player's numbers"),
    ],
)
def test_frames_json_tells_its_reader(videos, data, tmp_path, decoder, verdict):
    path = tmp_path / "frames.json"
    path.write_text(json.dumps([candidates(videos / name, decoder) for name in ("plain.mp4", "trimmed.mp4")]))
    status, output, _ = command(data, "--frames_path", path)
    assert status == 0
    assert output.splitlines()[0] == "2 videos read, 1 with an edit list"
    assert "1 (trimmed.mp4)" in output and verdict in output


def test_a_selection_in_a_player_s_numbers_shows_decord_s_frames(videos, data, tmp_path):
    """The frames that decord shows for the released numbers, where a player shows them at all."""
    path, output = tmp_path / "selected_frames.json", tmp_path / "player.json"
    selection = [[0.0, 25.0, 175.0], [25, 50, 75, 125]]  # decord's 25 is hidden, a player has no 125
    path.write_text(json.dumps(selection))
    status, text, _ = command(data, "--selected_frames", path, "--output", output)
    assert status == 0 and "has decord's numbers" in text
    plain, trimmed = json.loads(output.read_text())
    assert plain == [0, 25, 175]
    by_decord = [
        number_of(decord.VideoReader(str(videos / "trimmed.mp4"))[n].asnumpy()) for n in (50, 75, 125)
    ]
    frames, _ = read_frames(videos / "trimmed.mp4", np.array(trimmed), {"id": "q"})
    assert [number_of(pixels) for pixels in frames.pixels] == by_decord == [100, 125, 175]


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([[0], [25, 50]], "these videos do not tell which numbers it has"),
        ([[0], [3, 50]], "frame numbers are neither: 1 (trimmed.mp4)"),
    ],
)
def test_a_selection_that_fits_both_or_neither_is_not_rewritten(data, tmp_path, rows, line):
    path, output = tmp_path / "selected_frames.json", tmp_path / "player.json"
    path.write_text(json.dumps(rows))
    status, text, error = command(data, "--selected_frames", path, "--output", output)
    assert status == 2 and not output.exists()
    assert line in text
    assert error.splitlines()[-1].startswith("error: --output: nothing to write")


def test_a_missing_video_is_named_and_nothing_is_written(data, tmp_path):
    path, output = tmp_path / "selected_frames.json", tmp_path / "player.json"
    path.write_text(json.dumps([[0], [125]]))
    status, _, error = command(
        data, "--selected_frames", path, "--output", output, names=("gone.mp4", "trimmed.mp4")
    )
    assert status == 2 and not output.exists()
    assert "gone.mp4: file not found" in error and "1 videos cannot be read (above)" in error
    assert command(data, "--selected_frames", path, names=("gone.mp4", "trimmed.mp4"))[0] == 1
    path.write_text("[[0]]")
    assert command(data, "--selected_frames", path)[2].endswith("they must belong together\n")


def test_neither_candidates_nor_a_described_selection_are_written_again(data, tmp_path):
    path, output = tmp_path / "selection.json", tmp_path / "old/selected_frames.json"
    path.write_text(json.dumps([[0], [50, 125]]))
    status, _, error = command(data, "--frames_path", path, "--output", output)
    assert status == 2 and "--output goes with --selected_frames" in error
    output.parent.mkdir()
    output.with_name("selected_times.json").write_text("[[0], [2, 5]]")
    status, _, error = command(data, "--selected_frames", path, "--output", output)
    assert status == 2 and "selected_times.json beside it is of another selection" in error
    assert not output.exists()


def test_a_video_without_an_edit_list_is_none(videos):
    assert read_edited(videos / "plain.mp4") is None
