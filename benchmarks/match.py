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
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import needles

from aks import errors
from aks.arguments import ArgumentParser
from aks.match import STANDS_OUT, compare_scores
from aks.scorers import SCORERS
from aks.video.files import videos_in
from demo.make_film import FILM, save

ROOT = Path(__file__).resolve().parent.parent
CLIPS = {  # repository and commit -> short videos of real things, nine minutes in all; none is repeated
    "DAMO-NLP-SG/Video-LLaMA@64888c0a77e8e66af606c37629fbbf79c4582959": "examples/applausing.mp4 "
    "examples/birthday.mp4 examples/boat.mp4 examples/dog_barking.mp4 examples/IronMan.mp4 "
    "examples/silence_girl.mp4 examples/skateboarding_dog.mp4",
    "DAMO-NLP-SG/VideoLLaMA2@c0bb03abf6b8a6b9a8dccac006fb4db5d4d9e414": "videollama2/serve/examples/"
    "1034346401.mp4",
    "facebookresearch/co-tracker@82e02e8029753ad4ef13cf06be7f4fc5facdda4d": "assets/apple.mp4 "
    "gradio_demo/videos/backpack.mp4 gradio_demo/videos/bear.mp4 gradio_demo/videos/cat.mp4 "
    "gradio_demo/videos/paragliding-launch.mp4 gradio_demo/videos/paragliding.mp4 "
    "gradio_demo/videos/pillow.mp4 gradio_demo/videos/teddy.mp4",
    "facebookresearch/sam2@2b90b9f5ceec907a1c18123530e92e794ad901a4": "demo/data/gallery/01_dog.mp4 "
    "demo/data/gallery/02_cups.mp4 demo/data/gallery/03_blocks.mp4 demo/data/gallery/04_coffee.mp4 "
    "demo/data/gallery/05_default_juggle.mp4 notebooks/videos/bedroom.mp4 "
    "demo/frontend/src/assets/videos/sam2_720px_dark.mp4",
    "PKU-YuanGroup/Video-LLaVA@984e65bf8e8fd97072258547c4c8061fdd2416b7": "assets/demo.mp4 "
    "videollava/serve/examples/sample_demo_1.mp4 videollava/serve/examples/sample_demo_22.mp4 "
    "videollava/serve/examples/sample_demo_3.mp4 videollava/serve/examples/sample_demo_9.mp4",
    "OpenGVLab/Ask-Anything@4dd8210b030374bb0c510a57dfbe916f70d3ef71": "example/hitting_baseball.mp4 "
    "example/yoga.mp4 video_chat/example/jesse_dance.mp4 "
    "video_chat_text/video_chat_with_ChatGPT/images/making_cake.mp4 "
    "video_chat_text/video_chat_with_ChatGPT/images/playing_guitar.mp4",
    "OpenGVLab/InternVideo@3965eef16e2dadd0ea6c8d0cc29c8a3039df52e3": "Data/InternVid/example1.mp4",
    "dmlc/decord@d2e56190286ae394032a8141885f76d5372bd44b": "examples/flipping_a_pancake.mkv",
    "open-mmlab/mmaction2@4d6c93474730cad2f25e51109adcf96824efc7a3": "demo/demo.mp4 "
    "demo/demo_skeleton.mp4 demo/demo_spatiotemporal_det.mp4 demo/test_video_structuralize.mp4 "
    "tests/data/test.avi tests/data/test.mp4 tools/data/skeleton/S001C001P001R001A001_rgb.avi",
    "LLaVA-VL/LLaVA-NeXT@df179663ae8b83207df100a1f7af24caec633ff9": "docs/jobs.mp4 "
    "playground/demo/xU25MMA2N4aVtYay.mp4",
    "magic-research/PLLaVA@6f49fd281a855c4fa3103595ba2800a4dce7ec88": "example/1917.mp4 example/cooking.mp4",
    "omerbt/TokenFlow@5dd6a696277e9d18c23adc034dc4c052ccd64cb5": "data/wolf.mp4 data/woman-running.mp4",
    "showlab/Tune-A-Video@7d4a89a2b90067e8d805ef1287beb4e4adf37e18": "data/car-turn.mp4 data/man-skiing.mp4 "
    "data/man-surfing.mp4 data/rabbit-watermelon.mp4",
    "rese1f/MovieChat@ba9bb802ea209c6d8e8b4333ec917ae3aee55b1d": "src/video_fragment/output.mp4",
}
FPS = 4  # of the background: its clips are short
THRESHOLDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
SHARES = (8, 4, 2, 1)  # one of so many of the background's videos


def fetch_clips(folder: Path) -> list[Path]:
    """Download the clips that are missing, and no other file of their repositories.

    Raises:
        UserError: git cannot get them.
    """
    clips = []
    for source, names in CLIPS.items():
        repository, commit = source.split("@")
        wanted = {
            name: folder / f"{repository.replace('/', '_')}_{Path(name).name}" for name in names.split()
        }
        clips += wanted.values()
        if all(path.exists() for path in wanted.values()):
            continue
        with tempfile.TemporaryDirectory() as clone:
            for command in (
                ["init", "--quiet"],
                ["remote", "add", "origin", f"https://github.com/{repository}"],
                ["fetch", "--quiet", "--depth", "1", "--filter=blob:none", "origin", commit],
                ["checkout", "--quiet", commit, "--", *wanted],
            ):
                done = subprocess.run(["git", "-C", clone, *command], capture_output=True, text=True)
                if done.returncode:
                    reason = (done.stderr.strip().splitlines() or ["git gives no reason"])[-1]
                    raise errors.UserError(f"{repository}: {reason}; check the network, or see --clips")
            for name, path in wanted.items():
                save(path, (Path(clone) / name).read_bytes())
    return clips


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
    clips = videos_in(args.clips) if args.clips else fetch_clips(args.demo / "clips")
    scorer = aks.load_scorer(args.extract_feature_model, checkpoint=args.checkpoint, device=args.device)
    store, summary = store_background(clips, scorer, args.output / "background" / scorer.name, fps=FPS)
    for failure in summary.failures:
        print(f"left out: {failure['video']}: {failure['reason']}", file=sys.stderr)
    names = [str(path.absolute()) for path in clips if store.has_part(str(path.absolute()))]
    print(f"background: {sum(map(store.count_frames, names))} frames of {len(names)} videos\n")

    def scores(video: Path, texts: list[str]) -> list[np.ndarray]:
        found = aks.keyframes(video, texts, scorer=scorer, cache=True)
        return [each.curve.scores for each in found]

    def others(texts: list[str]) -> list[list[np.ndarray]]:
        ends = np.cumsum([store.count_frames(name) for name in names])[:-1]
        rows = Background(store, names, scorer).scores(texts)
        return [np.split(row, ends) for row in rows]

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
    parser = ArgumentParser(__doc__)
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
