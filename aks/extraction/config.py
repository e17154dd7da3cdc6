"""The settings by which videos are read, and the decoder and encoder that they call for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from aks.extraction.batching import CrossVideoBatcher, PerVideoEncoder, max_batch_size
from aks.extraction.decoding import DecodeSpec
from aks.extraction.workers import SerialSource, WorkerPool, make_decoder
from aks.scorers.base import Scorer
from aks.video.reader import CandidateRule

BATCH_FRAMES = 16


@dataclass(frozen=True)
class DecodeConfig:
    """How videos are read. Only the choice of decord changes frames or scores.

    Attributes:
        decoder: ``auto``, ``decord`` or ``pyav``.
        batch_frames: frames encoded at a time; bounds memory. None for 16, and on a GPU for as many as fit,
            up to 128.
        batch_across_videos: fill each pass through the model with frames of several videos; None for only on
            a GPU.
        workers: decoding processes; 0 decodes in this one, where nothing limits a decoder that hangs.
        video_timeout: seconds that decoding one video may take, with workers; None for 60 s
            plus four times its length.
        on_corrupt: ``skip`` a video with frames that cannot be decoded, or ``partial``: use its other frames.
        shard: (i, n): process only share i of n, from 1; None for all videos.
        fps: candidates a second, see :class:`~aks.video.reader.CandidateRule`.
    """

    decoder: str = "auto"
    batch_frames: int | None = None
    batch_across_videos: bool | None = None
    workers: int = 0
    video_timeout: float | None = None
    on_corrupt: str = "skip"
    shard: tuple[int, int] | None = None
    fps: float = 1.0

    @classmethod
    def for_scorer(cls, scorer: Scorer, **settings: Any) -> DecodeConfig:
        """These settings, with what depends on the scorer's device filled in."""
        config = cls(**settings)
        if config.batch_across_videos is None:
            config = replace(config, batch_across_videos=scorer.device.type == "cuda")
        if config.batch_frames is None and config.batch_across_videos and scorer.device.type == "cuda":
            config = replace(config, batch_frames=max_batch_size(scorer))
        return config

    @property
    def encode_batch_size(self) -> int:
        """Frames encoded at a time."""
        return self.batch_frames or BATCH_FRAMES

    @property
    def decode_batch_size(self) -> int:
        """Frames in a decoder's batch."""
        size = self.encode_batch_size
        return min(size, BATCH_FRAMES) if self.batch_across_videos else size

    @property
    def frames_together(self) -> int:
        """Neighbouring frames of a video scored together; 1 scores the batches as they come."""
        size = self.decode_batch_size
        return self.encode_batch_size // size * size if self.batch_across_videos else 1

    def make_decoder(self, scorer: Scorer) -> WorkerPool | SerialSource:
        """The decoder of these settings, with the scorer's preprocessing."""
        rule = CandidateRule(self.fps)
        spec = DecodeSpec(scorer.preprocessor, self.decoder, self.decode_batch_size, self.on_corrupt, rule)
        return make_decoder(spec, self.workers, self.video_timeout)

    def make_encoder(self, scorer: Scorer) -> CrossVideoBatcher | PerVideoEncoder:
        """The encoder of these settings."""
        if not self.batch_across_videos:
            return PerVideoEncoder(scorer)
        return CrossVideoBatcher(scorer, self.encode_batch_size)

    def record(self) -> dict[str, Any]:
        """The settings that change frames, for the record of a run."""
        decoder = {"decoder": "decord"} if self.decoder == "decord" else {}
        return decoder if self.fps == 1 else {**decoder, "candidate_fps": self.fps}
