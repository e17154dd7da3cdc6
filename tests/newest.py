"""Whether ``pip install .`` works with the newest packages there are: python tests/newest.py [FOLDER].

Makes a bare virtual environment (in FOLDER, which is kept, or a temporary one), installs the library with the
ranges of pyproject.toml and nothing else, and uses it for real: a selection, a video, a tiny random BLIP,
CLIP and SigLIP, and conse with its own weights. decord must not be needed. Not one of the tests: what is
newest changes from day to day.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Data files of packages that are not used as such: conse's weights, BERT's and CLIP's vocabularies.
DATA = re.findall(
    r"^(?:efficientnet|gt-|timm|open-clip)\S*",
    (ROOT / "requirements-conse.txt").read_text() + (ROOT / "requirements-dev-nodeps.txt").read_text(),
    re.MULTILINE,
)


def install(folder: Path) -> Path:
    """A new environment with the library; its Python."""
    venv.create(folder, clear=True, with_pip=True)
    python = folder / "bin/python"
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, ROOT], check=True)
    subprocess.run([*pip, "--no-deps", *DATA], check=True)
    return python


def check() -> None:
    """Use the installed library; raises where it does not do what it should."""
    import numpy as np
    import torch
    from media import picture, write_video
    from model_setup import save_blip, save_tiny_clip, save_tiny_siglip, tiny_blip

    import aks
    from aks.extraction.keyframes import find_keyframes
    from aks.labels import Question
    from aks.scorers.base import load_scorer
    from aks.video.reader import Video

    assert ROOT not in Path(aks.__file__).parents, f"{aks.__file__} is not the installed library"
    assert importlib.util.find_spec("decord") is None, "decord was installed"
    assert aks.select_keyframes([0.1, 0.9, 0.2, 0.8], [0, 24, 48, 72], budget=2, strategy="top") == [24, 72]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_video(folder / "clip.mp4", frames=96)
        with Video(path) as video:
            (frames,) = video.read([0, 24, 48, 72])
        for number, pixels in zip(frames.frame_indices, frames.pixels, strict=True):
            difference = np.abs(pixels.astype(int) - picture(int(number), 96, 64)).mean()
            assert difference < 20, f"frame {number} is another picture"

        (folder / "clip").mkdir()
        checkpoints = {
            "blip": save_blip(tiny_blip(), folder / "blip"),
            "clip": save_tiny_clip(folder / "clip"),
            "siglip": save_tiny_siglip(folder / "siglip"),
            "conse": None,
        }
        question = Question(0, "question", str(path), "Which colours move?")
        for scorer_name, checkpoint in checkpoints.items():
            scorer = load_scorer(scorer_name, checkpoint=checkpoint and str(checkpoint))
            with Video(path) as video, torch.inference_mode():
                keyframes = find_keyframes(video, question, scorer, 3, workers=1)
            scores = [keyframe.score for keyframe in keyframes]
            assert len(set(scores)) == 3 and np.isfinite(scores).all(), f"{scorer_name}: {scores}"
            print(f"{scorer_name}: {', '.join(f'{score:.4f}' for score in scores)}")


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        check()
        for package in ("torch", "transformers", "tokenizers", "numpy", "av", "pillow"):
            print(f"{package} {importlib.metadata.version(package)}")
        print("works")
    else:
        with tempfile.TemporaryDirectory() as temporary:
            python = install(Path(sys.argv[1]) if sys.argv[1:] else Path(temporary))
            sys.exit(subprocess.run([python, __file__, "--check"], cwd=temporary).returncode)
