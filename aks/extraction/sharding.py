"""Divides the videos of a label file among processes that know nothing of one another."""

from __future__ import annotations

from collections.abc import Callable

from aks.errors import UserError
from aks.jsonio import read_json, write_json
from aks.labels import LabelSet, VideoJob
from aks.run_dir import RunDir


def assign_shard(
    shard: tuple[int, int],
    labels: LabelSet,
    run: RunDir,
    count_frames: Callable[[list[VideoJob]], dict[str, int]],
) -> list[VideoJob]:
    """The videos of one share, in label order.

    The longest video goes first, each to the share with the fewest frames so far. The first process writes
    the division down, so that all processes have the same, whatever they see of the videos.

    Args:
        shard: (i, n): share i of n, from 1.
        labels: the label file.
        run: the run's folder, which holds the division.
        count_frames: estimates the frames of videos by name.

    Raises:
        UserError: the division that is written down is damaged.
    """
    index, num_shards = shard
    record = run.folder / f"shards-{num_shards}-{labels.sha256[:12]}.json"
    if not record.exists():
        counts = count_frames(labels.jobs)
        totals = [0] * num_shards
        shards: list[list[str]] = [[] for _ in totals]
        for job in sorted(labels.jobs, key=lambda job: -counts[job.name]):
            smallest = totals.index(min(totals))
            totals[smallest] += counts[job.name] + 1  # unreadable videos are spread evenly, too
            shards[smallest].append(job.name)
        write_json(record, shards, indent=1, exclusive=True)
    shards = read_json(record)
    if sorted(name for names in shards for name in names) != sorted(job.name for job in labels.jobs):
        raise UserError(f"{record}: damaged; remove it")
    own = set(shards[index - 1])
    return [job for job in labels.jobs if job.name in own]
