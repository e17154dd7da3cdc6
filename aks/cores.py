"""How many CPU cores this process may use, and how they are divided between the model and decoding."""

from __future__ import annotations

import os

MAX_WORKERS = 16  # some 200 MB each; a GPU of today wants the frames of twice as many


def count_cores() -> int:
    """The CPU cores that this process may use, no more than its container's quota."""
    from loky import cpu_count

    return cpu_count()


def count_local_processes() -> int:
    """The processes that torchrun or accelerate started on this machine; 1 without them."""
    size = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(size)) if size.isdecimal() else 1


def limit_threads() -> None:
    """Keep torch, which ignores quotas, from starting more threads than there are cores."""
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), count_cores()))


def default_workers(cores: int) -> int:
    """The number of decoding processes beside a model on so many cores: one core is the model's."""
    return min(max(cores - 1, 1), MAX_WORKERS)
