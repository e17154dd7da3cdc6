"""What the main loop logs, and how much of it the commands show."""

from __future__ import annotations

import logging
import shutil

import pytest
from extraction_setup import ToyScorer, flags_for, write_labels
from media import write_video

from aks.extraction.api import extract
from aks.run_dir import RunDir


def test_a_run_logs_how_each_video_is_decoded_and_when_it_is_finished(clips, tmp_path, caplog):
    shutil.copy(clips / "one.mp4", tmp_path)
    write_video(tmp_path / "old.avi", frames=20, fps=10, options={"bf": "0"})
    (tmp_path / "bad.mp4").write_text("no video")
    with caplog.at_level(logging.DEBUG, logger="aks"):
        labels = write_labels(tmp_path, ["one.mp4", "old.avi", "bad.mp4"])
        extract(labels, ToyScorer(), RunDir(tmp_path / "out"))
    assert caplog.messages == [
        f"{tmp_path}/one.mp4: 5 candidate frames, decoding what they need",
        f"{tmp_path}/one.mp4: done",
        f"{tmp_path}/old.avi: 2 candidate frames, decoding the whole video",
        f"{tmp_path}/old.avi: done",
        f"failed: {tmp_path}/bad.mp4: cannot be opened: Invalid data found when processing input",
    ]


@pytest.mark.parametrize(
    ("flags", "shown"),
    [([], {"failed: "}), (["--verbose"], {"failed: ", ": done"}), (["--quiet"], set())],
)
def test_verbose_and_quiet_choose_what_a_command_shows(clips, tmp_path, run_script, flags, shown):
    shutil.copy(clips / "one.mp4", tmp_path)
    (tmp_path / "bad.mp4").write_text("no video")
    write_labels(tmp_path, ["one.mp4", "bad.mp4"])
    finished = run_script("feature_extract.py", *flags_for(tmp_path, tmp_path / "out"), *flags)
    assert finished.returncode == 1 and "1 scored now" in finished.stdout
    assert {text for text in ("frame/s", "failed: ", ": done") if text in finished.stderr} == shown
