"""Other footage that a video's best scores are judged by: encoded once, kept as stored features.

Its frames are scored for a new question without decoding anything; :mod:`aks.match` compares.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aks.errors import UserError
from aks.extraction.api import Summary, store_features
from aks.extraction.batching import FeatureBatch
from aks.extraction.config import BATCH_FRAMES
from aks.extraction.feature_cache import cache_folder, digest, scorer_identity
from aks.extraction.feature_store import FeatureStore
from aks.labels import LabelSet, Question
from aks.match import MIN_FRAMES, Match, compare_scores
from aks.scorers.base import Scorer
from aks.video.files import is_utf8

logger = logging.getLogger("aks.keyframes")


def default_folder(scorer: Scorer) -> Path:
    """Where a scorer's background lies if no folder is named: beside the cache, which deletes files."""
    cache = cache_folder()
    return cache.with_name(f"{cache.name}-background") / f"{scorer.name}-{digest(scorer_identity(scorer))}"


def store_background(
    videos: Sequence[Path], scorer: Scorer, folder: Path | None = None, **decode: Any
) -> tuple[FeatureStore, Summary]:
    """Store the features of other footage, going on where an earlier run stopped; more can be added later.

    Args:
        videos: the footage.
        scorer: whose features.
        folder: where they go; None for :func:`default_folder`.
        decode: as of :func:`aks.extraction.api.store_features`.

    Raises:
        UserError: the folder holds another scorer's features or frames at another rate, or cannot be written.
    """
    if folder is None and not (folder := default_folder(scorer)).is_absolute():  # a user without a home
        raise UserError(f"{folder}: no place for the background; name one with --output_file")
    paths, bad = [], []
    for path in (str(video.absolute()) for video in videos):
        (paths if is_utf8(path) else bad).append(path)  # stored features hold it as text
    questions = [Question(index, str(index), path, "") for index, path in enumerate(paths)]
    store = FeatureStore(folder, None)
    labels = LabelSet("custom", store.folder, "", Path("/"), questions, [])
    summary = store_features(labels, scorer, store, **decode)
    summary.failures += [{"video": path, "reason": "the path is no UTF-8 text; rename it"} for path in bad]
    return store, summary


@dataclass(frozen=True)
class Background:
    """A scorer's background, without the videos that are searched.

    Attributes:
        store: all of it.
        names: the stored videos that others are judged by.
        scorer: whose.
    """

    store: FeatureStore
    names: list[str]
    scorer: Scorer

    @classmethod
    def open(
        cls, scorer: Scorer, folder: str | Path | bool = True, searched: Iterable[str | Path] = ()
    ) -> Background | None:
        """The background in a folder, or with True the scorer's own; None where that cannot be used.

        Raises:
            UserError: the folder that is named holds none, another scorer's, a damaged or too small one.
        """
        if folder is not True:
            return cls._open(scorer, Path(folder), searched)
        path = default_folder(scorer)
        if not os.path.exists(path / "run.json"):  # Path's raises in a locked folder
            return None
        try:
            return cls._open(scorer, path, searched)
        except UserError as error:
            logger.warning("the background is not used: %s", error)
            return None

    @classmethod
    def _open(cls, scorer: Scorer, path: Path, searched: Iterable[str | Path]) -> Background:
        if not os.path.exists(path / "run.json"):
            raise UserError(f"{path}: no background; make it with aks background VIDEO --output_file {path}")
        store = FeatureStore.open(path)
        store.check_scorer(scorer)
        without = {os.path.realpath(video) for video in searched}  # a link leads to the same video
        names = [name for name in store.stored_videos() if os.path.realpath(name) not in without]
        if (count := sum(map(store.count_frames, names))) < MIN_FRAMES:
            raise UserError(
                f"{path}: {count} frames of other videos than those searched, {MIN_FRAMES} are needed; add "
                "footage with aks background"
            )
        return cls(store, names, scorer)

    def scores(self, questions: Sequence[str]) -> np.ndarray:
        """The scores of its frames for each question, (questions, frames) float64."""
        encoded = [self.scorer.encode_question(Question(0, "0", "", text)) for text in questions]
        rows = [
            self.scorer.score(event.features, encoded)
            for name in self.names
            for event in self.store.read(name, BATCH_FRAMES)
            if isinstance(event, FeatureBatch)
        ]
        return np.concatenate(rows, axis=1)

    def match(
        self, questions: Sequence[str], scores: Sequence[np.ndarray], num_candidates: int
    ) -> list[Match]:
        """Judge the scores of what was searched, (n,) for each question, which had so many candidates."""
        others = self.scores(questions)
        return [compare_scores(*rows, num_candidates) for rows in zip(scores, others, strict=True)]
