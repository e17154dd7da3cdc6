"""The features that ``keyframes`` keeps, so that a later question about a video is answered at once.

AKS_CACHE names another folder than the user's own, AKS_CACHE_GB the most that it may take.

    %(prog)s
    %(prog)s --clear
"""

from __future__ import annotations

import time

from aks.arguments import ArgumentParser


def main() -> None:
    """Show what is kept, the one used last at the end; or delete it."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--clear", action="store_true", help="delete all of it")
    args = parser.parse_args()

    from aks.extraction import feature_cache

    folder = feature_cache.cache_folder()
    if args.clear:
        print(f"{folder}: {feature_cache.clear()} videos deleted")
        return
    limit, videos = feature_cache.limit_bytes(), feature_cache.cached_videos()
    for video in videos:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(video.used))
        scorer, name = (part.rpartition("-")[0] for part in (video.path.parts[-3], video.path.stem))
        print(f"{day}  {video.num_bytes / 1e6:9.1f} MB  {scorer:8} {name}")
    total = sum(video.num_bytes for video in videos)
    print(f"{folder}: {len(videos)} videos, {total / 1e9:.2f} of at most {limit / 1e9:g} GB (AKS_CACHE_GB)")
