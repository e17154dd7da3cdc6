"""InternVL3.5 and InternVL3 in transformers' own format ("-HF") on selected keyframes.

lmms-eval's class for them is the chat class ``internvl_hf``; its ``internvl3_5`` runs code out of the
checkpoint, of which nothing is known here. transformers' processor reads the videos; here it gets frames from
this project's reader, and still resizes them. Its own readers hold all frames of a video in memory (that of
torchvision, which newer versions lack) or need FFmpeg's libraries (torchcodec). Its prompt numbers the frames
and tells no times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig
from transformers.video_utils import VideoMetadata

from aks.video.reader import Video
from evaluation.chat import ChatKeyframes
from evaluation.errors import EvaluationError
from evaluation.frame_policy import KeyframePath, read_frames
from evaluation.upstream import import_model

MODEL_TYPE = "internvl"


class InternVL(ChatKeyframes, import_model("internvl_hf", "chat").InternVLHf):
    """``use_topk=True`` shows the keyframes; otherwise the uniform frames that transformers chooses."""

    frames_argument = "num_frames"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take upstream's arguments and ours."""
        super().__init__(*args, **kwargs)
        self.processor.video_processor.fetch_videos = self.fetch_videos

    def validate_model_args(self, arguments: dict[str, Any]) -> None:
        """Raise EvaluationError for arguments that upstream passes over, and for other checkpoints."""
        for name in arguments:
            try:
                self.upstream_default(name)
            except TypeError:
                raise EvaluationError(
                    f"model argument {name}: lmms-eval's InternVLHf has no such argument"
                ) from None
        if "pretrained" in arguments:
            config, _ = PretrainedConfig.get_config_dict(arguments["pretrained"])
            if (model_type := config.get("model_type")) != MODEL_TYPE:
                raise EvaluationError(
                    f"{arguments['pretrained']}: holds a {model_type} model, internvl3_5 needs {MODEL_TYPE}; "
                    "take the checkpoint whose name ends in -HF"
                )

    def wrap_visuals(self, doc: Mapping[str, Any], visuals: list[Any]) -> list[Any]:
        """Paths with the document's frames; pictures as they are."""
        return [KeyframePath.of(v, doc, self.policy) if isinstance(v, str) else v for v in visuals]

    def fetch_videos(
        self, paths: list[KeyframePath], sample_indices_fn: Callable[..., torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[VideoMetadata]]:
        """What transformers asks of a reader: frames (n, 3, height, width) uint8 of each video, and metadata.

        Args:
            paths: the videos.
            sample_indices_fn: transformers' choice of uniform frames.

        Raises:
            EvaluationError: a video cannot be read, or transformers cannot choose.
        """
        videos = [self.load_uniform_frames(self._read, path, sample_indices_fn) for path in paths]
        return [frames for frames, _ in videos], [metadata for _, metadata in videos]

    def _read(
        self, path: KeyframePath, sample_indices_fn: Callable[..., torch.Tensor]
    ) -> tuple[torch.Tensor, VideoMetadata]:
        def choose(video: Video) -> np.ndarray:
            return sample_indices_fn(metadata=VideoMetadata(video.num_frames, video.fps)).numpy()

        decoded, video = read_frames(str(path), choose if path.frames is None else path.frames, path.doc)
        path.num_read = len(decoded.pixels)
        metadata = VideoMetadata(
            video.num_frames,
            video.fps,
            video_backend=video.decoder,
            frames_indices=decoded.frame_indices.tolist(),
        )
        return torch.from_numpy(decoded.pixels).permute(0, 3, 1, 2).contiguous(), metadata

    def have_arrived(self, inputs: Mapping[str, Any], visuals: Sequence[Any]) -> bool:
        """Whether the prompt has a place for each frame and picture; the model compares pixels with it."""
        count = sum(v.num_read if isinstance(v, KeyframePath) else 1 for v in visuals)
        has_pixels = inputs.get("pixel_values") is not None
        starts = inputs["input_ids"] == self.processor.start_image_token_id
        return int(starts.sum()) == count and has_pixels == (count > 0)
