"""Tell by which reader's frame numbers scores or a selection were made, for videos with an edit list.

    python evaluation/frame_numbering.py --dataset_name longvideobench \\
        --frames_path outscores/longvideobench/blip/frames.json
    python evaluation/frame_numbering.py --dataset_name longvideobench \\
        --selected_frames selected_frames/longvideobench/blip/selected_frames.json --output player.json

A player leaves out the frames that an edit list hides, and so does this project. decord, by which the
released files were made, counts them, so that its frame n is an earlier one. ``--output`` writes a selection
again in a player's numbers. Videos without an edit list have the same numbers in both.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from anywhere

from aks import errors
from aks.arguments import ArgumentParser
from aks.console import progress
from aks.errors import UserError, VideoError, error_message
from aks.labels import DATASETS, LabelSet, load_labels
from aks.score_lists import check_frame_numbers, write_selection
from aks.selected_frames import read_lists
from aks.video.backends import open_container, select_video_stream
from aks.video.codec_log import reset_decoder_globals
from aks.video.reader import Video

DECORD, PLAYER, BOTH, NEITHER = "decord's", "a player's", "both", "neither"


@dataclass(frozen=True)
class EditedVideo:
    """A video with an edit list, as both readers count it.

    Attributes:
        decord: the candidates' numbers, (n,) int64, as decord counts.
        player: the same as a player counts.
        hidden_in_front: stored frames before the first that a player shows.
        num_frames: frames that a player shows.
        fps: frames a second.
    """

    decord: np.ndarray
    player: np.ndarray
    hidden_in_front: int
    num_frames: int
    fps: float

    def numbering(self, rows: list[np.ndarray], complete: bool) -> str:
        """Which numbers the lists of this video's questions hold; ``complete``: all candidates of each."""

        def fits(candidates: np.ndarray) -> bool:
            if complete:
                return all(np.array_equal(row, candidates) for row in rows if len(row))
            return all(np.isin(row, candidates).all() for row in rows)

        return {(True, False): DECORD, (False, True): PLAYER, (True, True): BOTH}.get(
            (fits(self.decord), fits(self.player)), NEITHER
        )

    def in_player_numbers(self, row: np.ndarray) -> np.ndarray:
        """decord's frame numbers, (n,), as a player counts; frames that it never shows are left out."""
        shifted = row - self.hidden_in_front
        return shifted[(shifted >= 0) & (shifted < self.num_frames)]


def read_edited(path: Path) -> EditedVideo | None:
    """A video with an edit list; None for one without.

    Raises:
        VideoError: it cannot be read.
    """
    reset_decoder_globals()
    hidden, shown = [], []
    try:
        with open_container(path.absolute()) as container:
            for packet in container.demux(select_video_stream(container)):
                if packet.size and packet.pts is not None:
                    (hidden if packet.is_discard else shown).append(packet.pts)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"cannot be read: {error_message(error)}") from None
    if not hidden or not shown:
        return None
    with Video(path, "decord", partial=True) as video:
        decord = video.candidates()
    with Video(path, partial=True) as video:
        in_front = sum(pts < min(shown) for pts in hidden)
        return EditedVideo(decord, video.candidates(), in_front, video.num_frames, video.fps)


def read_edited_videos(labels: LabelSet) -> tuple[dict[str, EditedVideo], dict[str, str]]:
    """The videos with an edit list by name, and those that cannot be read with the reason."""
    edited, failed = {}, {}
    for job in progress(iterable=labels.jobs, desc="videos", unit="video"):
        try:
            if not job.path.is_file():
                raise VideoError("file not found")
            if found := read_edited(job.path):
                edited[job.name] = found
        except VideoError as error:
            failed[job.name] = str(error)
    return edited, failed


def main() -> int:
    """Print what the edited videos' frame numbers are, and write them in a player's where asked."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--dataset_name", required=True, help=f"one of {', '.join(DATASETS)}")
    parser.add_argument("--dataset_path", help="the data set's folder (default: ./datasets/<dataset_name>)")
    parser.add_argument("--label_file", help="labels (default: the data set's own)")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--frames_path", type=Path, help="frames.json: all candidates of each question")
    which.add_argument("--selected_frames", type=Path, help="selected_frames.json")
    parser.add_argument("--output", type=Path, help="write decord's selection again, in a player's numbers")
    args = parser.parse_args()
    if args.output and args.frames_path:
        raise UserError("--output goes with --selected_frames: scores.json would not fit other candidates")
    labels = load_labels(args.dataset_name.lower(), args.dataset_path, args.label_file)
    path = args.frames_path or args.selected_frames
    rows = check_frame_numbers(path, read_lists(path, labels))

    edited, failed = read_edited_videos(labels)
    for name, reason in failed.items():
        print(f"{name}: {reason}", file=sys.stderr)
    rows_of = {
        name: [rows[question.index] for question in labels.questions if question.video == name]
        for name in edited
    }
    kinds = {
        name: video.numbering(rows_of[name], complete=args.frames_path is not None)
        for name, video in edited.items()
    }
    counts = Counter(kinds.values())
    print(f"{len(labels.jobs) - len(failed)} videos read, {len(edited)} with an edit list")
    for kind in (DECORD, PLAYER, BOTH, NEITHER):
        if names := [name for name in kinds if kinds[name] == kind]:
            more = ", ..." if len(names) > 5 else ""
            print(f"frame numbers are {kind}: {len(names)} ({', '.join(names[:5])}{more})")
    by_decord = counts[DECORD] > 0 and not counts[PLAYER] + counts[NEITHER]
    if by_decord:
        shifts_s = [video.hidden_in_front / video.fps for video in edited.values()]
        print(
            f"{path} has decord's numbers; a player shows frame n of it {min(shifts_s):.2f} to "
            f"{max(shifts_s):.2f} s too late in these videos"
        )
    elif counts[PLAYER] and not counts[DECORD] + counts[NEITHER]:
        print(f"{path} has a player's numbers, as the evaluation reads them")
    elif edited:
        print(f"{path}: these videos do not tell which numbers it has")
    if args.output:
        if not by_decord:
            raise UserError(f"--output: nothing to write, as {path} is not seen to have decord's numbers")
        if failed:
            raise UserError(f"--output: {len(failed)} videos cannot be read (above); nothing is written")
        for question in labels.questions:
            if video := edited.get(question.video):
                rows[question.index] = video.in_player_numbers(rows[question.index])
        write_selection(args.output, [row.tolist() for row in rows])
        print(f"wrote {args.output}, in a player's numbers")
    return int(bool(failed))


if __name__ == "__main__":
    errors.run_main(main)
