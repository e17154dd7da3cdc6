"""A scorer without a model, runs of extraction as processes of their own, and decoders that go wrong."""

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

from aks.extraction.api import Summary, extract
from aks.labels import LabelSet, load_labels
from aks.run_dir import RunDir
from aks.scorers.base import Scorer


class ToyScorer(Scorer):
    """Scores by brightness in a place that the question's length names."""

    name, checkpoint, device, dtype = "toy", "none", torch.device("cpu"), torch.float32
    preprocessor = staticmethod(preprocess_small)

    def __init__(self, batch_s: float = 0.0, preprocessor=preprocess_small) -> None:
        self.batch_s, self.preprocessor = batch_s, preprocessor

    def encode_frames(self, inputs):
        time.sleep(self.batch_s)
        return inputs.flatten(1) / 255

    def encode_question(self, question):
        return len(question.text)

    def score(self, features, questions):
        return features[:, questions].T.double().numpy()


def write_labels(folder: Path, videos: list[str]) -> LabelSet:
    """``labels.json`` in the folder: for every second video two questions, else one."""
    entries = [{"video": name, "question": "?" * (1 + at % 50)} for at, name in enumerate(videos)]
    entries += [{"video": name, "question": "Where?"} for name in videos[::2]]
    (folder / "labels.json").write_text(json.dumps(entries))
    return load_labels("custom", label_file=folder / "labels.json")


def results(run: RunDir) -> dict[str, bytes]:
    """The assembled files and the parts."""
    names = ("scores.json", "frames.json", "times.json")
    return {
        path.name: path.read_bytes() for path in [*map(run.folder.joinpath, names), *run.parts.glob("[!.]*")]
    }


def of_version_1(path: Path, **changes) -> None:
    """Let a part, or a run's record, be one of an earlier version."""
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 1, **changes}))


def start(folder: Path, out: Path, batch_s: float = 0.0, **decode):
    """Score ``folder/labels.json`` to ``out`` in another process; see :func:`main`."""
    here = Path(__file__).resolve().parent
    code = (
        "import signal, extraction_setup, aks.errors\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in background jobs
        "aks.errors.run_main(extraction_setup.main)"
    )
    arguments = [folder / "labels.json", out, json.dumps(decode), str(batch_s)]
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": f"{here}:{here.parents[1]}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children(pid: int) -> list[int]:
    """The processes that a process has started and that have not ended; not the tests' own servers."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state not in "ZX":
            with suppress(OSError):
                if b"forkserver.py" not in path.with_name("cmdline").read_bytes():
                    found.append(int(path.parent.name))
    return found


def alive(pid: int) -> bool:
    """Whether a process has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def lock_holders(run: RunDir) -> list[int]:
    """The processes that have a lock file of a run open."""
    found = []
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # ended or closed meanwhile
            file = path.readlink()
            if file.parent == run.parts and file.suffix == ".lock":
                found.append(int(path.parts[2]))
    return found


def wait_until(condition, seconds: float = 60.0) -> None:
    """Wait for a condition; fails after a while."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def main() -> int:
    """Score; arguments: label file, folder, decode settings as JSON, seconds a batch shall take."""
    label_file, out, decode, batch_s = sys.argv[1:]
    torch.set_num_threads(1)
    labels = load_labels("custom", label_file=label_file)
    settings = json.loads(decode)
    summary: Summary = extract(labels, ToyScorer(float(batch_s)), RunDir(Path(out)), **settings)
    print(json.dumps(asdict(summary)))
    return 1 if summary.failures else 0
