"""Shared fixtures: a few fixture videos, the real label data where it is present, script runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import forkserver
import pytest
import torch
from media import write_video

# Several processes that each spin up a thread pool on few cores wait for one another; one thread each
# is faster, and sums are then the same in every process.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = Path(os.environ.get("AKS_REFERENCE_DATA", ROOT.parent / "shared/reference/data"))


# Files whose tests share what is expensive: checkpoints, a Ray cluster, evaluations, a fork server.
TOGETHER = {
    "test_blip_lavis",
    "test_evaluation_scripts",
    "test_feature_store",
    "test_lavis_cli",
    "test_llava",
    "test_qwen",
    "test_ray",
    "test_sevila",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With several pytest processes, one runs such a file as a whole; these come first, then test by test."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return file if Path(file).stem in TOGETHER else nodeid

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder with the real label files and the released selections; not part of the project."""
    if not REFERENCE.is_dir():
        pytest.skip("the real label files are not here (AKS_REFERENCE_DATA)")
    return REFERENCE


@pytest.fixture
def run_script():
    """Run a script of the project as a user would; returns the finished process, text decoded.

    A fork server runs it, or with ``fresh=True`` an interpreter that starts anew; ``kind`` is the server's.
    """

    def run(
        *arguments, cwd: Path = ROOT, fresh: bool = False, kind: str = "torch", **options
    ) -> subprocess.CompletedProcess:
        first, *rest = map(str, arguments)
        command = [first, *rest] if first == "-m" else [str(ROOT / first), *rest]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
        return subprocess.run(
            [sys.executable if fresh else forkserver.python(kind), *command],
            cwd=cwd,
            env=env,
            text=True,
            capture_output=True,
            timeout=300,
            **options,
        )

    return run


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """A folder with three short videos: one.mp4 (5 s), two.mp4 (3 s), sub/three.mkv (4 s)."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "sub").mkdir()
    write_video(folder / "one.mp4", frames=125, fps=25)
    write_video(folder / "two.mp4", frames=72, fps=24, size=(64, 96))
    write_video(folder / "sub/three.mkv", frames=48, fps=12)
    return folder


@pytest.fixture(scope="session")
def many(tmp_path_factory) -> Path:
    """A folder with fifty tiny videos of 2 to 6 s."""
    folder = tmp_path_factory.mktemp("many")
    for seconds in range(2, 7):
        write_video(folder / f"{seconds}.mkv", frames=5 * seconds, fps=5, size=(48 + 16 * seconds, 48))
    for number in range(50):
        shutil.copy(folder / f"{2 + number % 5}.mkv", folder / f"v{number:02}.mkv")
    return folder


@pytest.fixture(scope="session")
def names() -> list[str]:
    return [f"v{number:02}.mkv" for number in range(50)]


@pytest.fixture(scope="session")
def whole(many, names, tmp_path_factory) -> dict[str, bytes]:
    """What one process that decodes by itself makes of them."""
    from extraction_setup import ToyScorer, results, write_labels

    from aks.extraction.api import extract
    from aks.run_dir import RunDir

    run = RunDir(tmp_path_factory.mktemp("whole") / "out")
    extract(write_labels(many, names), ToyScorer(), run)
    return results(run)
