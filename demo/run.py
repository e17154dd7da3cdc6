"""Run the demo: film, scores, selections, recall table, pictures, answers. demo.sh starts it.

Every step is one of the project's commands, which is printed before it runs. Steps with a result of an
earlier run are skipped.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from aks import errors
from aks.arguments import ArgumentParser
from aks.labels import LabelSet, load_labels
from aks.recall import recall_table
from aks.score_lists import read_number_lists, read_scores

ROOT = Path(__file__).resolve().parent.parent

STRATEGIES = ("uniform", "top", "bin", "ada")  # the paper's
BUDGETS = (8, 16, 32)
PICTURED = 8  # the budget whose keyframes are shown
GROUPS = {"imagenet": "content ImageNet knows", "other": "other content", "all": "all questions"}
ATTRIBUTION = "Big Buck Bunny, (c) copyright 2008 Blender Foundation, www.bigbuckbunny.org, CC BY 3.0"
PHOTO_CREDIT = "photos: scikit-image's and scikit-learn's sample data (flower.jpg, china.jpg: CC BY 2.0)"


def step(*command: str) -> None:
    """Print a command as a user would type it, then run it.

    Raises:
        SystemExit: the command failed; with its status.
    """
    print("$ python " + shlex.join(command), flush=True)
    status = subprocess.run([sys.executable, *command], cwd=ROOT).returncode
    if status:
        sys.exit(status if status > 0 else 128 - status)


def newer(result: Path, *sources: Path) -> bool:
    """Whether a result exists and none of its sources is newer."""
    return result.exists() and all(result.stat().st_mtime_ns >= s.stat().st_mtime_ns for s in sources)


def selection_path(work: Path, strategy: str, budget: int) -> Path:
    """The file of a selection's frame indices."""
    return work / f"selected_frames/{strategy}_{budget}/custom/conse/selected_frames.json"


def print_table(work: Path, labels: LabelSet, tolerance_s: float = 1.0) -> None:
    """Print the evidence recall of every strategy at every budget, for both kinds of needles."""
    table: dict[tuple[int, str, str], float] = {}
    counts: dict[str, int] = {}
    for budget in BUDGETS:
        for strategy in STRATEGIES:
            path = selection_path(work, strategy, budget)
            times = read_number_lists(path.with_name("selected_times.json"))
            rows, _ = recall_table(labels.questions, read_number_lists(path), budget, times_s=times)
            for row in rows:
                table[budget, row.group, strategy] = row.selected[tolerance_s]
                counts[row.group] = row.questions
    print(f"\nEvidence recall: share of questions with a keyframe within {tolerance_s:g} s of their photo")
    print(f"{'':32}" + "".join(f"{strategy:>9}" for strategy in STRATEGIES))
    for budget in BUDGETS:
        for group, words in GROUPS.items():
            name = f"{words} ({counts[group]})"
            cells = "".join(f"{table[budget, group, strategy]:9.3f}" for strategy in STRATEGIES)
            print(f"{f'{budget} frames' if group == 'imagenet' else '':10}{name:22}{cells}")


def draw(work: Path, labels: LabelSet) -> None:
    """Draw a contact sheet of ADA's keyframes, and a score curve for every question."""
    from PIL import Image

    from aks.contact_sheet import contact_sheet
    from aks.video.reader import Video
    from demo.figures import clock, question_figure

    scores, frames = read_scores(work / "outscores/custom/conse/scores.json", frames_path(work))
    times = read_number_lists(frames_path(work).with_name("times.json"))
    chosen = {
        strategy: [
            np.searchsorted(row, selected)
            for row, selected in zip(
                frames, read_number_lists(selection_path(work, strategy, PICTURED)), strict=True
            )
        ]
        for strategy in ("ada", "uniform")
    }
    pictures: dict[int, np.ndarray] = {}
    wanted = np.unique(
        np.concatenate([row[selected] for row, selected in zip(frames, chosen["ada"], strict=True)])
    )
    with Video(labels.video_path(labels.questions[0].video)) as video:
        for batch in video.read(wanted):
            # A third of the width is enough for a thumbnail, and keeps a hundred frames small.
            pictures.update(zip(batch.frame_indices.tolist(), batch.pixels[:, ::3, ::3].copy(), strict=True))

    folder = work / "pictures"
    folder.mkdir(exist_ok=True)
    sheet = []
    for question in labels.questions:
        i = question.index
        selected = chosen["ada"][i]
        thumbnails = [pictures[index] for index in frames[i][selected].tolist()]
        captions = [f"{clock(times[i][p])}   {scores[i][p]:.3f}" for p in selected]
        sheet.append((f"{question.id}: {question.text}", [*map(Image.fromarray, thumbnails)], captions))
        question_figure(
            question.text,
            times[i],
            scores[i],
            {strategy: rows[i] for strategy, rows in chosen.items()},
            thumbnails,
            folder / f"{question.id}.png",
            evidence_s=question.evidence_times_s,
        )
    contact_sheet(sheet, folder / f"keyframes_ada_{PICTURED}.jpg")


def evaluate(work: Path, label_file: Path, device: str) -> None:
    """Answer the questions in lmms-eval from uniform frames and from ADA's; print the tables."""
    folders = []
    for frames in ("uni", "aks"):
        folder = work / f"results/conse_qa/custom_{frames}_{PICTURED}"
        folders.append(str(folder))
        results = max(folder.glob("*_results.json"), default=folder / "none")
        if newer(results, label_file, selection_path(work, "ada", PICTURED)):
            continue
        step(
            *("evaluation/run.py", "--model", "conse_qa", "--dataset", "custom", "--frames", frames),
            *("--labels", str(label_file), "--max_frames", str(PICTURED), "--output", str(folder)),
            *(("--selection", str(selection_path(work, "ada", PICTURED))) if frames == "aks" else ()),
            *(("--gpus", "0") if device == "cpu" else ()),
        )
    step("evaluation/tables.py", *folders, "--output", str(work / "results/tables"))


def frames_path(work: Path) -> Path:
    """The file of step 1's frame indices."""
    return work / "outscores/custom/conse/frames.json"


@errors.when_interrupted("finished steps are kept, the same command goes on with the others")
def main() -> None:
    """Run the steps without a result, then print the tables."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--device", default="cpu", help="cuda scores on the GPU")
    args = parser.parse_args()
    began = time.monotonic()
    work = Path(os.environ.get("DEMO_DIR") or ROOT / "demo/work").resolve()
    os.chdir(ROOT)
    if work.is_relative_to(ROOT):
        work = work.relative_to(ROOT)
    print(ATTRIBUTION)
    print(PHOTO_CREDIT)

    label_file = work / "labels.json"
    step("-m", "demo.make_film", "--output", str(work))
    scores = work / "outscores/custom/conse/scores.json"
    record = scores.with_name("run.json")
    if record.exists() and not newer(record, label_file):  # the demo made these scores for older labels
        shutil.rmtree(scores.parent)
    if not newer(scores, label_file):
        step(
            *("feature_extract.py", "--dataset_name", "custom", "--label_file", str(label_file)),
            *("--extract_feature_model", "conse", "--device", args.device),
            *("--output_file", str(work / "outscores")),
        )
    for budget in BUDGETS:
        for strategy in STRATEGIES:
            if not newer(selection_path(work, strategy, budget), scores):
                step(
                    *("frame_select.py", "--dataset_name", "custom", "--extract_feature_model", "conse"),
                    *("--score_path", str(scores), "--max_num_frames", str(budget)),
                    *("--strategy", strategy),
                    *("--output_file", str(work / f"selected_frames/{strategy}_{budget}")),
                )
    labels = load_labels("custom", label_file=label_file)
    sheet = work / f"pictures/keyframes_ada_{PICTURED}.jpg"
    if not newer(sheet, selection_path(work, "ada", PICTURED), selection_path(work, "uniform", PICTURED)):
        draw(work, labels)
    print_table(work, labels)
    print()
    evaluate(work, label_file, args.device)
    print(f"\npictures: {sheet} (ADA's keyframes), {work}/pictures/<question>.png (score curves)")
    print(f"done in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    errors.run_main(main)
