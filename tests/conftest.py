"""Fixtures that all tests share: short videos, the real label files where present, runs of the scripts.

Also which test files run as a whole in one process, and which are slow.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import forkserver
import pytest
import torch
from media import write_video

from aks.run_dir import RunDir

# Processes with a pool of threads each wait for one another on few cores. One thread each is faster, and
# every process then adds numbers in the same order.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
os.environ["AKS_CACHE_GB"] = "0"  # A test that keeps features must not answer another one.
os.environ["AKS_CACHE"] = os.devnull + "/aks"  # Nor does a background of the user.

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = Path(os.environ.get("AKS_REFERENCE_DATA", ROOT.parent / "shared/reference/data"))

# Test files that import lmms-eval, LAVIS, Ray or MCP, which takes longer than most tests.
SLOW_FILES = {
    "test_benchmarks",
    "test_blip_lavis",
    "test_evaluation_scripts",
    "test_internvl",
    "test_lavis_cli",
    "test_llava",
    "test_llava_on_transformers",
    "test_mcp",
    "test_message_models",
    "test_qwen",
    "test_ray",
    "test_recipes",
    "test_sevila",
    "test_tasks",
}
# Files whose tests share an expensive fixture: a checkpoint, a Ray cluster, a fork server.
WHOLE_FILES = SLOW_FILES - {"test_recipes", "test_tasks"} | {"test_feature_store"}


def pytest_ignore_collect(collection_path, config):
    """With ``-m "not slow"``, do not import the slow files, nor with ``-k WORD`` those without the word.

    A word that only a computed parameter holds, such as the name of a document, needs pytest without this -m.
    """
    if config.option.markexpr != "not slow" or not collection_path.match("test_*.py"):
        return None
    word = config.option.keyword.lower()
    has_word = not word.isidentifier() or word in (collection_path.name + collection_path.read_text()).lower()
    return collection_path.stem in SLOW_FILES or not has_word or None


@pytest.hookimpl(tryfirst=True)  # before pytest chooses tests by their marks
def pytest_collection_modifyitems(items):
    """Mark the tests of the slow files, others have the mark as a decorator; leave out the long ones."""
    for item in items:
        if item.path.stem in SLOW_FILES:
            item.add_marker("slow")
        if item.get_closest_marker("long") and "AKS_TESTS_LONG" not in os.environ:
            item.add_marker(pytest.mark.skip(reason="AKS_TESTS_LONG=1 runs it"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Of several pytest processes, one runs a file of WHOLE_FILES; other tests are scheduled one by one."""
    from xdist.scheduler import LoadScopeScheduling

    class FileScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return file if Path(file).stem in WHOLE_FILES else nodeid

    return FileScheduling(config, log)


def check_mistake(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """A command ended at a user's mistake: with status 2 and one line, which holds the words."""
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


@pytest.fixture(autouse=True)
def log_level():
    """Undo what a command's ``--quiet`` changes in this process, or later tests would see no log."""
    logger = logging.getLogger("aks")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder with the real label files and the published selections, which the project does not hold."""
    if not REFERENCE.is_dir():
        pytest.skip("AKS_REFERENCE_DATA names no folder with the real label files")
    return REFERENCE


@pytest.fixture
def run_script():
    """A function that runs a script of the project as a user would and returns the finished process.

    A fork server runs it; with ``fresh=True`` a new interpreter does. ``kind`` is the fork server's.
    """

    def run(*arguments, cwd: Path = ROOT, fresh: bool = False, kind: str = "torch", **options):
        script, *rest = map(str, arguments)
        return subprocess.run(
            [
                sys.executable if fresh else forkserver.python(kind),
                script if script == "-m" else ROOT / script,
                *rest,
            ],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
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


@pytest.fixture
def run(tmp_path) -> RunDir:
    """The folder of a run, not yet there."""
    return RunDir(tmp_path / "out")


@pytest.fixture(scope="session")
def names() -> list[str]:
    """The file names of the fifty videos."""
    return [f"v{index:02}.mkv" for index in range(50)]


@pytest.fixture(scope="session")
def many(names, tmp_path_factory) -> Path:
    """A folder with fifty tiny videos of 2 to 6 s."""
    folder = tmp_path_factory.mktemp("many")
    for seconds in range(2, 7):
        write_video(folder / f"{seconds}.mkv", frames=5 * seconds, fps=5, size=(48 + 16 * seconds, 48))
    for index, name in enumerate(names):
        shutil.copy(folder / f"{2 + index % 5}.mkv", folder / name)
    return folder


@pytest.fixture(scope="session")
def whole(many, names, tmp_path_factory) -> dict[str, bytes]:
    """The results of one process without decoding processes on the fifty videos."""
    from extraction_setup import ToyScorer, results, write_labels

    from aks.extraction.api import extract

    run = RunDir(tmp_path_factory.mktemp("whole") / "out")
    extract(write_labels(many, names), ToyScorer(), run)
    return results(run)
