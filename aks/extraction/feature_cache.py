"""A cache of frame features: another question about the same video decodes nothing and encodes no frame.

The features lie in the user's cache folder, a :class:`~aks.extraction.feature_store.FeatureStore` a scorer,
in the type that the scorer gives, so that scores from them are those without the cache. A video's file
is written whole when its last frame is encoded; its name is made of all that the features depend on. Where
the files take more than the limit, those not used for the longest time are deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aks import __version__
from aks.errors import UserError, VideoError
from aks.extraction.batching import FeatureBatch
from aks.extraction.decoding import EndOfVideo, VideoInfo
from aks.extraction.feature_store import FRAME_FEATURES, STORED_TYPES, FeatureStore
from aks.extraction.writers import FeatureWriter
from aks.jsonio import writing_to
from aks.labels import VideoJob
from aks.scorers.base import Scorer
from aks.scorers.weights import weights_identity
from aks.video.reader import CandidateRule

logger = logging.getLogger("aks.keyframes")

DEFAULT_LIMIT_GB = 10.0
DIGEST_LENGTH = 20


def cache_folder() -> Path:
    """``$AKS_CACHE``, or ``aks/features`` in the user's cache folder (``$XDG_CACHE_HOME``, ``~/.cache``)."""
    if folder := os.environ.get("AKS_CACHE"):
        return Path(folder).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "aks/features"


def limit_bytes() -> int:
    """The most that all files may take: ``$AKS_CACHE_GB`` gigabytes; 0 keeps nothing.

    Raises:
        UserError: that is no number.
    """
    text = os.environ.get("AKS_CACHE_GB", "")
    try:
        gigabytes = float(text or DEFAULT_LIMIT_GB)
        return int(max(0.0, gigabytes) * 1e9)
    except (ValueError, OverflowError):
        raise UserError(f"AKS_CACHE_GB={text}: must be a number of gigabytes, 0 for no cache") from None


@dataclass(frozen=True)
class CachedVideo:
    """A video's file in the cache.

    Attributes:
        path: the file.
        num_bytes: its size.
        used: when it was written or last read, seconds since 1970.
    """

    path: Path
    num_bytes: int
    used: float


def cached_videos() -> list[CachedVideo]:
    """All files of the cache, the one used last at the end."""
    found = []
    for path in cache_folder().glob(f"*-{'[0-9a-f]' * DIGEST_LENGTH}/videos/[!.]*.safetensors"):
        with contextlib.suppress(OSError):  # another process deletes it, or it is another user's
            state = path.stat()
            found.append(CachedVideo(path, state.st_size, state.st_mtime))
    return sorted(found, key=lambda video: (video.used, video.path))


def evict(limit: int) -> None:
    """Delete files, those first that were not used for the longest time, until the others fit the limit."""
    videos = cached_videos()
    total = sum(video.num_bytes for video in videos)
    for video in videos:
        if total <= limit:
            break
        with contextlib.suppress(PermissionError):  # another user's
            video.path.unlink(missing_ok=True)
            total -= video.num_bytes


def clear() -> int:
    """Delete the whole cache; return how many videos were deleted."""
    count = len(cached_videos())
    for record in cache_folder().glob(f"*-{'[0-9a-f]' * DIGEST_LENGTH}/run.json"):  # what was made here alone
        shutil.rmtree(record.parent, ignore_errors=True)
    return count - len(cached_videos())


class CacheEntry(contextlib.AbstractContextManager):
    """The features of one video in the cache, to be read or to be written.

    The end of the context discards what is not finished.

    Args:
        video: the file.
        scorer: whose features.
        rule: which frames are candidates.
        decoder: who reads the video.
    """

    def __init__(self, video: Path, scorer: Scorer, rule: CandidateRule, decoder: str) -> None:
        settings = {
            **scorer_identity(scorer),
            "device": scorer.device.type,
            "versions": [__version__, torch.__version__],
        }
        self._settings = json.loads(json.dumps(settings, default=str))
        self._video = video
        state = video.stat()
        # 5 and 5.0 are the same rate.
        part = [float(value) for value in (rule.per_second, rule.start_s, rule.end_s)]
        facts = [str(video.absolute()), state.st_size, state.st_mtime_ns, part, decoder]
        if rule.positions is not None:
            facts.append(rule.positions)
        stem = re.sub(r"[^A-Za-z0-9_]+", "_", video.stem)[:60]  # a file name that needs no escapes
        self.name = f"{stem}-{digest(facts)}"
        self._folder = cache_folder() / f"{scorer.name}-{digest(self._settings)}"
        self._limit = limit_bytes()
        self._writer: FeatureWriter | None = None
        self._info: VideoInfo | None = None
        # A user without a home has no cache folder.
        self._is_off = self._limit == 0 or not self._folder.is_absolute()

    def open(self) -> FeatureStore | None:
        """The store that holds the video; None where none does."""
        if self._is_off or not os.path.exists(self._folder / "run.json"):  # Path's raises in a locked folder
            return None
        try:
            store = FeatureStore.open(self._folder)
        except UserError:  # a damaged record, which is written anew with the features
            return None
        if not store.has_part(self.name):
            return None
        try:
            with store.open_part(self.name):  # raises where the file is damaged
                logger.debug("%s: features of an earlier question", self._video)
        except UserError:
            path = store.part_path(self.name)
            logger.warning("%s: a damaged file of the cache; the video is encoded anew", path)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):  # a cache that may only be read
            os.utime(store.part_path(self.name))
        return store

    def begin(self, info: VideoInfo) -> None:
        """Start to write; what an earlier attempt in this process wrote is discarded."""
        self.abort()
        self._info = info

    def add(self, batch: FeatureBatch) -> None:
        """Write a batch. What cannot be kept costs a line in the log, not the answer."""
        if self._is_off:
            return
        try:
            if self._writer is None:
                self._writer = self._open_writer(batch.features)
            self._writer.add(batch)
        except (UserError, VideoError) as error:
            self._give_up(error)

    def close(self, end: EndOfVideo) -> None:
        """Give the file its name, and delete what no longer fits the limit."""
        if self._writer is None:
            return
        try:
            self._writer.close(end)
        except UserError as error:
            self._give_up(error)
        else:
            self._writer = None
            evict(self._limit)

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self._writer is not None and kind is KeyboardInterrupt:
            logger.warning("%s: its features are not kept; the next call starts anew", self._video)
        self.abort()

    def abort(self) -> None:
        """Discard what is not finished."""
        if self._writer is not None:
            self._writer.abort()
            self._writer = None

    def _give_up(self, error: Exception) -> None:
        logger.warning("the features of %s are not kept for the next question: %s", self._video, error)
        self.abort()
        self._is_off = True

    def _open_writer(self, features: torch.Tensor) -> FeatureWriter:
        """A writer of features like these.

        Raises:
            UserError: they cannot be kept.
        """
        dtype = str(features.dtype).removeprefix("torch.")
        if dtype not in STORED_TYPES:
            raise UserError(f"they are of type {dtype}")
        store = FeatureStore(self._folder, dtype)
        try:
            store.parts.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{store.parts}: {error.strerror} (AKS_CACHE names another folder)") from None
        parts = list(store.parts.glob(f".{self.name}.*.tmp.*"))
        settings = {"kind": FRAME_FEATURES, "stored_dtype": dtype, **self._settings}
        record = store.folder / "run.json"
        try:
            store.open_or_create(settings)
        except UserError:
            if not record.exists():
                raise
            # The folder's name is made of the settings, so that it holds no others.
            logger.warning("%s: a damaged file of the cache; it is written anew", record)
            with writing_to(record):
                record.unlink(missing_ok=True)
            store.open_or_create(settings)
        if any(not part.exists() for part in parts):  # open_or_create() deletes what dead processes left
            logger.warning("%s: an earlier call was interrupted; encoding it from the start", self._video)
        num_bytes = features[0].nbytes * self._info.num_candidates
        size = f"they take {num_bytes / 1e9:.3g} GB"
        if num_bytes > self._limit:
            raise UserError(f"{size} (AKS_CACHE_GB sets the limit)")
        if num_bytes > shutil.disk_usage(store.parts).free:
            raise UserError(
                f"{size}, and the disk of {store.folder} has less (AKS_CACHE names another folder)"
            )
        return FeatureWriter(store, VideoJob(self.name, self._video), self._info)


def scorer_identity(scorer: Scorer) -> dict[str, Any]:
    """A scorer's class, settings and weights: where they are equal, so are the features but for rounding."""
    names = [scorer.checkpoint, getattr(scorer, "base", None)]
    return {
        **scorer.fingerprint(),
        "class": f"{type(scorer).__module__}.{type(scorer).__qualname__}",
        "weights": [weights_identity(name) for name in names if name],
    }


def digest(facts: Any) -> str:
    """Of JSON values, to name a file."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:DIGEST_LENGTH]
