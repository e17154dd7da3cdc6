"""An answerer that needs no language model: the option whose text is closest to any frame shown.

It lets the whole evaluation run for real where no 7B model is at hand (``demo.sh``): the same frames, the
same tasks, the same tables. Image and text meet in ConSE's space (``aks/scorers/conse.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lmms_eval.api.model import lmms
from tqdm import tqdm

from aks.labels import Question
from aks.scorers.base import load_scorer
from evaluation.frame_policy import read_frames, uniform_linspace
from evaluation.keyframe_mixin import KeyframeMixin
from evaluation.task import MAX_OPTIONS, NO_OPTION


class _ConseBase(lmms):
    """``max_frames_num`` uniform frames, first to last, as LLaVA-OneVision shows them."""

    def __init__(
        self, max_frames_num: int = 32, device: str = "cpu", batch_size: int | str = 1, **unknown: object
    ) -> None:
        super().__init__()
        if unknown:
            raise TypeError(f"conse_qa has no argument {', '.join(unknown)}")
        self.max_frames_num = max_frames_num
        self._scorer = load_scorer("conse", device=str(device))
        self._features: dict[tuple[str, int], torch.Tensor] = {}

    def generate_until(self, requests: list[Any]) -> list[str]:
        answers = []
        for request in tqdm(requests, desc="answering", disable=self.rank != 0):
            _, _, doc_to_visual, doc_id, task, split = request.arguments
            doc = self.task_dict[task][split][doc_id]
            features = self._encoded(doc_to_visual(doc)[0], doc)
            options = [Question(0, "", "", text) for text in parse_options(doc)]
            encoded = [self._scorer.encode_question(option) for option in options]
            scores = self._scorer.score(features, encoded)  # (options, frames)
            answers.append(chr(ord("A") + int(np.argmax(scores.max(axis=1)))))
        return answers

    def load_video(self, path: str, doc: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and pixels of the frames shown."""
        frames, _ = read_frames(
            path, lambda video: uniform_linspace(video.num_frames, self.max_frames_num), doc
        )
        return frames.frame_indices, frames.pixels

    def _encoded(self, path: str, doc: Mapping[str, Any]) -> torch.Tensor:
        numbers, pixels = self.load_video(path, doc)
        new = [at for at, number in enumerate(numbers) if (path, int(number)) not in self._features]
        if new:
            encoded = self._scorer.encode_frames(
                torch.stack([self._scorer.preprocess(pixels[at]) for at in new])
            )
            for at, features in zip(new, encoded, strict=True):
                self._features[path, int(numbers[at])] = features
        return torch.stack([self._features[path, int(number)] for number in numbers])

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("conse_qa answers questions, it has no likelihoods")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError("conse_qa answers one question at a time")


class ConseQA(KeyframeMixin, _ConseBase):
    """``use_topk=True`` looks at the keyframes, otherwise at uniform frames."""

    def load_video(self, path: str, doc: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and pixels of the frames shown."""
        numbers = self.showing.keyframes(doc)
        if numbers is None:
            return super().load_video(path, doc)
        frames, _ = read_frames(path, numbers, doc)
        return frames.frame_indices, frames.pixels


def parse_options(doc: Mapping[str, Any]) -> list[str]:
    """A document's answer candidates without their letters (LongVideoBench's and VideoMME's fields)."""
    if "options" in doc and "option0" not in doc:
        return [option.split(". ", 1)[-1] for option in doc["options"]]
    options = [doc[f"option{at}"] for at in range(MAX_OPTIONS)]
    return [option for option in options if option != NO_OPTION]
