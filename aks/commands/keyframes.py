"""The keyframes of one video for one question: frame number, time and score, tab-separated.

python keyframes.py talk.mp4 "When does the speaker show a bicycle?" --budget 8 --images frames/
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
from pathlib import Path

from aks import errors
from aks.cli import add_log_flags, add_worker_flags, at_least, count_workers
from aks.console import configure_logging
from aks.cores import limit_threads
from aks.selection import STRATEGIES

logger = logging.getLogger("aks.keyframes")

COMMENT = b"keyframe by aks"  # in the pictures, by which they are known again


def parse_arguments() -> argparse.Namespace:
    """The command's flags."""
    parser = errors.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("video", help="a video file")
    parser.add_argument("question", help="what to look for")
    parser.add_argument("--budget", type=at_least(1), default=8, help="number of keyframes (default: 8)")
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="write the keyframes there as JPEG pictures, in place of an earlier question's",
    )
    parser.add_argument("--strategy", default="ada", choices=STRATEGIES, help="(default: ada)")
    parser.add_argument(
        "--extract_feature_model",
        default="conse",
        help="blip, clip, sevila (the paper's), siglip, or conse, which needs no download (default: conse)",
    )
    parser.add_argument("--checkpoint", help="weights: a hub name or a folder (default: the model's own)")
    parser.add_argument("--device", help="cuda, cuda:N or cpu (default: cuda where there is one)")
    add_worker_flags(parser)
    add_log_flags(parser)
    return parser.parse_args()


def earlier_pictures(folder: Path) -> list[Path]:
    """The pictures that an earlier question left in a folder, to be replaced by those of this one.

    Raises:
        UserError: a file of such a name was not written here.
    """
    from PIL import Image

    found = sorted(folder.glob(f"frame_{'[0-9]' * 7}.jpg"))
    for path in found:
        comment = None
        with contextlib.suppress(OSError), Image.open(path) as image:
            comment = image.info.get("comment")
        if comment != COMMENT:
            raise errors.UserError(
                f"--images {folder}: {path.name} there is no picture of this command's, or of an older "
                "version's; name another folder, or remove it"
            )
    return found


def main() -> None:
    """Score the video, print the keyframes, write the pictures."""
    args = parse_arguments()
    configure_logging(args.log_level)
    if any("\ud800" <= letter <= "\udfff" for letter in args.question):
        raise errors.UserError("the question holds bytes that are no UTF-8 text")
    if not args.question.strip():
        raise errors.UserError("the question is empty; say what to look for")

    workers = count_workers(args)

    import torch
    from PIL import Image

    from aks.extraction.api import find_keyframes
    from aks.jsonio import write_atomically
    from aks.labels import Question
    from aks.scorers.base import load_scorer
    from aks.video.reader import Video

    folder = Path(args.images) if args.images else None
    if folder is not None:  # a mistake here must not cost the scoring
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise errors.UserError(f"--images {folder}: cannot be created: {error.strerror}") from None
        earlier = earlier_pictures(folder)
    try:
        with Video(args.video) as video:
            limit_threads()
            device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
            scorer = load_scorer(args.extract_feature_model, checkpoint=args.checkpoint, device=device)
            if scorer.name == "conse":
                logger.warning(
                    "scored by conse, a small stand-in that knows ImageNet's objects; for the paper's scorer "
                    "add --extract_feature_model blip"
                )
            question = Question(0, "question", args.video, args.question)
            keyframes = find_keyframes(
                *(video, question, scorer, args.budget),
                strategy=args.strategy,
                workers=workers,
                video_timeout=args.video_timeout,
            )
            print("frame\ttime_s\tscore")
            for keyframe in keyframes:
                print(f"{keyframe.frame_index}\t{keyframe.time_s:.3f}\t{keyframe.score:.6f}")
            if folder is not None:
                frame_indices = [keyframe.frame_index for keyframe in keyframes]
                for frames in video.read(frame_indices, chunk_frames=1):
                    while earlier:  # only now: a video that cannot be read costs no earlier picture
                        earlier.pop().unlink(missing_ok=True)
                    path = folder / f"frame_{frames.frame_indices[0]:07d}.jpg"
                    image = Image.fromarray(frames.pixels[0])
                    save = functools.partial(image.save, quality=95, comment=COMMENT)
                    write_atomically(path, save)
                logger.warning("%d pictures in %s", len(keyframes), folder)
    except errors.VideoError as error:
        raise errors.UserError(f"{args.video}: {error}") from None
