"""Answers with the option whose text is closest to any frame shown; needs no language model.

So the whole evaluation can run where no 7B model is at hand (``demo.sh``): with the same frames, tasks and
tables. Images and texts meet in ConSE's space (``aks/scorers/conse.py``).
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
from evaluation.frame_policy import read_frames
from evaluation.keyframe_mixin import KeyframeMixin
from evaluation.task import MAX_OPTIONS, NO_OPTION


class _ConseBase(lmms):
    """Shows ``max_frames_num`` uniform frames, first to last, as LLaVA-OneVision does."""

    def __init__(
        self, max_frames_num: int = 32, device: str = "cpu", batch_size: int | str = 1, **unknown: object
    ) -> None:
        super().__init__()
        if unknown:
            raise TypeError(f"conse_qa has no argument {', '.join(unknown)}")
        self.max_frames_num = max_frames_num
        self._scorer = load_scorer("conse", device=str(device))
        self._features: dict[tuple[str, int], torch.Tensor] = {}  # by path and frame index

    def generate_until(self, requests: list[Any]) -> list[str]:
        answers = []
        for request in tqdm(requests, desc="answering", disable=self.rank != 0):
            _, _, doc_to_visual, doc_id, task, split = request.arguments
            doc = self.task_dict[task][split][doc_id]
            features = self._encode_video(doc_to_visual(doc)[0], doc)
            answers.append(self.model.generate(images=[features], options=parse_options(doc)))
        return answers

    @property
    def model(self) -> _ConseBase:
        """This is no wrapper around another module, as lmms-eval's models are."""
        return self

    def generate(self, images: list[torch.Tensor], options: list[str]) -> str:
        """The letter of the option closest to any frame of a video, whose features are (n, dim)."""
        texts = [self._scorer.encode_question(Question(0, "", "", text)) for text in options]
        scores = self._scorer.score(images[0], texts)  # (options, frames)
        return chr(ord("A") + int(np.argmax(scores.max(axis=1))))

    def frames_to_show(self, doc: Mapping[str, Any]) -> np.ndarray | int:
        """Frame indices, or a number of uniform frames."""
        return self.max_frames_num

    def _encode_video(self, path: str, doc: Mapping[str, Any]) -> torch.Tensor:
        """Features of the frames shown, (n, dim); each frame is encoded once for all questions."""
        frames, _ = read_frames(path, self.frames_to_show(doc), doc)
        frame_indices = frames.frame_indices.tolist()
        new = [i for i, index in enumerate(frame_indices) if (path, index) not in self._features]
        if new:
            pixels = torch.stack([self._scorer.preprocess(frames.pixels[i]) for i in new])
            for i, features in zip(new, self._scorer.encode_frames(pixels), strict=True):
                self._features[path, frame_indices[i]] = features
        return torch.stack([self._features[path, index] for index in frame_indices])

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("conse_qa answers questions, it has no likelihoods")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError("conse_qa answers one question at a time")


class ConseQA(KeyframeMixin, _ConseBase):
    """``use_topk=True`` looks at the keyframes, otherwise at uniform frames."""

    def frames_to_show(self, doc: Mapping[str, Any]) -> np.ndarray | int:
        """The keyframes' indices, or a number of uniform frames."""
        keyframes = self.policy.keyframes(doc)
        return super().frames_to_show(doc) if keyframes is None else keyframes


def parse_options(doc: Mapping[str, Any]) -> list[str]:
    """A document's answer candidates without their letters."""
    if "option0" in doc:  # LongVideoBench's fields
        options = [doc[f"option{index}"] for index in range(MAX_OPTIONS)]
        return [option for option in options if option != NO_OPTION]
    if "candidates" in doc:
        return doc["candidates"]
    return [option.split(". ", 1)[-1] for option in doc["options"]]  # VideoMME's
