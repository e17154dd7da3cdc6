"""Chooses the videos of a run: all, some by name, or one share of them, for processes on several machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aks.errors import UserError
from aks.jsonio import read_json, write_json
from aks.labels import LabelSet, VideoJob
from aks.run_dir import RunDir


def choose_jobs(
    labels: LabelSet,
    run: RunDir,
    shard: tuple[int, int] | None,
    names: Sequence[str] | None,
    count_frames: Callable[[list[VideoJob]], dict[str, int]],
) -> list[VideoJob]:
    """The videos of the names given, in their order; else those of the share, else all, in label order.

    Shares are made by giving the longest video first, and each to the share with the fewest frames so far.
    The first process writes the division down, so that all processes have the same, whatever they see of the
    videos. ``shard`` is (i, n), share i of n, from 1.

    Raises:
        UserError: the division that is written down is damaged.
    """
    if names is not None:
        by_name = {job.name: job for job in labels.jobs}
        return [by_name[name] for name in names]
    if shard is None:
        return labels.jobs
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
    try:
        divided = sorted(name for shard_names in shards for name in shard_names)
    except TypeError:
        divided = None
    if divided != sorted(job.name for job in labels.jobs) or len(shards) != num_shards:
        raise UserError(f"{record}: damaged; remove it")
    own = set(shards[index - 1])
    return [job for job in labels.jobs if job.name in own]
