"""Other footage, by which keyframes tells whether a question's best frame stands out.

    %(prog)s holidays/ lecture.mp4
    %(prog)s holidays/ --fps 0.1 --extract_feature_model clip

Any videos do in which the questions' things are rare. Add more, or go on, with the same command.
"""

from __future__ import annotations

from pathlib import Path

from aks import errors
from aks.arguments import ArgumentParser, at_least
from aks.cli import (
    add_log_flags,
    add_own_scorer_flags,
    add_worker_flags,
    count_workers,
    load_scorer_from_args,
)
from aks.console import configure_logging
from aks.video.files import videos_in


@errors.when_interrupted("finished videos are kept, the same command goes on with the others")
def main() -> int:
    """Encode and store frames of the videos, then say how many there are; 1 if a video failed."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("video", nargs="+", type=Path, help="video files, and folders of them")
    parser.add_argument(
        "--fps",
        type=at_least(1e-6, float),
        default=1.0,
        help="frames a second (default: 1; a few thousand frames in all are enough)",
    )
    parser.add_argument("--output_file", type=Path, help="folder for it (default: beside the cache)")
    add_own_scorer_flags(parser, "scorer, as of keyframes")
    add_worker_flags(parser)
    add_log_flags(parser)
    args = parser.parse_args()
    configure_logging(args.log_level)
    workers = count_workers(args)
    for path in args.video:
        if not path.exists():
            raise errors.UserError(f"{path}: file not found{errors.nearest_file(path)}")
    videos = [file for path in args.video for file in (videos_in(path) if path.is_dir() else [path])]

    from aks.extraction.background import store_background

    store, summary = store_background(
        *(videos, load_scorer_from_args(args), args.output_file),
        fps=args.fps,
        workers=workers,
        video_timeout=args.video_timeout,
    )
    for failure in summary.failures:
        print(f"failed: {failure['video']}: {failure['reason']}")
    names = store.stored_videos()
    print(f"{store.folder}: {sum(map(store.count_frames, names))} frames of {len(names)} videos")
    return 1 if summary.failures else 0
