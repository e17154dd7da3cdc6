"""Runs of extraction for the tests: a scorer without a model, label files, runs as processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from preprocessors import preprocess_small

from aks.extraction.api import extract
from aks.labels import LabelSet, load_labels
from aks.run_dir import RunDir
from aks.scorers.base import Scorer

SUPPORT = Path(__file__).resolve().parent
PYTHON_PATH = f"{SUPPORT}:{SUPPORT.parents[1]}"  # for processes that import this module


class ToyScorer(Scorer):
    """Scores a frame by the brightness of one spot; the length of the question chooses the spot."""

    name, checkpoint, device, dtype = "toy", "none", torch.device("cpu"), torch.float32
    preprocessor = staticmethod(preprocess_small)

    def __init__(self, batch_s: float = 0.0, preprocessor=preprocess_small) -> None:
        """``batch_s``: the seconds that encoding a batch takes."""
        self.batch_s, self.preprocessor = batch_s, preprocessor

    def encode_frames(self, inputs):
        time.sleep(self.batch_s)
        return inputs.flatten(1) / 255

    def encode_question(self, question):
        return len(question.text)

    def score(self, features, questions):
        return features[:, questions].T.double().numpy()


def write_labels(folder: Path, videos: list[str]) -> LabelSet:
    """Write ``labels.json`` to the folder: two questions about every second video, one about the others."""
    entries = [{"video": name, "question": "?" * (1 + index % 50)} for index, name in enumerate(videos)]
    entries += [{"video": name, "question": "Where?"} for name in videos[::2]]
    (folder / "labels.json").write_text(json.dumps(entries))
    return load_custom(folder)


def flags_for(folder: Path, out: Path, model: str = "conse") -> list:
    """The flags of the extraction scripts for ``folder/labels.json``."""
    labels = ["--dataset_name", "custom", "--label_file", folder / "labels.json"]
    return [*labels, "--extract_feature_model", model, "--device", "cpu", "--output_file", out]


def load_custom(folder: Path, name: str = "labels.json") -> LabelSet:
    """The label set of a custom data set's folder."""
    return load_labels("custom", label_file=folder / name)


def results(run: RunDir) -> dict[str, bytes]:
    """The contents of the run's record, of the assembled files and of the parts, by file name."""
    names = ("run.json", "scores.json", "frames.json", "times.json")
    return {path.name: path.read_bytes() for path in [*map(run.folder.joinpath, names), *finished_parts(run)]}


def finished_parts(run: RunDir) -> list[Path]:
    """The part files of a run, without locks and temporary files."""
    return list(run.parts.glob("[!.]*.json"))


def of_version_1(path: Path, **changes) -> None:
    """Turn a part, or a run's record, into one of an earlier version."""
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 1, **changes}))


def start_extraction(folder: Path, out: Path, batch_s: float = 0.0, **settings):
    """Start a process that scores ``folder/labels.json`` to ``out`` and prints its summary as JSON."""
    code = (
        "import signal, extraction_setup, aks.errors\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in background jobs
        "aks.errors.run_main(extraction_setup.main)"
    )
    arguments = [folder, out, json.dumps(settings), str(batch_s)]
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": PYTHON_PATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def main() -> int:
    """The main function of the process that :func:`start_extraction` starts."""
    folder, out, settings, batch_s = sys.argv[1:]
    torch.set_num_threads(1)
    summary = extract(
        load_custom(Path(folder)), ToyScorer(float(batch_s)), RunDir(Path(out)), **json.loads(settings)
    )
    print(json.dumps(asdict(summary)))
    return 1 if summary.failures else 0


def child_pids(pid: int) -> list[int]:
    """The running processes that a process has started, without the tests' own fork servers."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # The process ended meanwhile.
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            is_server = b"forkserver.py" in path.with_name("cmdline").read_bytes()
            if int(parent) == pid and state not in "ZX" and not is_server:
                pids.append(int(path.parent.name))
    return pids


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def lock_holders(run: RunDir) -> list[int]:
    """The processes that have a lock file of a run open."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # The process ended, or closed the file, meanwhile.
            file = path.readlink()
            if file.parent == run.parts and file.suffix == ".lock":
                pids.append(int(path.parts[2]))
    return pids


def wait_until(condition, seconds: float = 60.0) -> None:
    """Wait until a condition holds; fail after some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
