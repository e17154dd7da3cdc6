"""Writers: each takes the batches of one video, in any order, and leaves one complete file, or none.

``add(batch)`` takes a batch, ``close(end)`` completes the file, ``abort()`` discards it. They raise a
VideoError where a score or a feature is not finite, and a UserError where the file cannot be written.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence

import numpy as np
import torch

from aks.errors import VideoError
from aks.extraction.batching import FeatureBatch
from aks.extraction.decoding import EndOfVideo, VideoInfo
from aks.extraction.feature_store import STORED_TYPES, FeatureStore
from aks.jsonio import publish, temporary_path, writing_to
from aks.labels import Question, VideoJob
from aks.run_dir import FORMAT, RunDir, VideoScores
from aks.scorers.base import Scorer

MAX_REASON = 500  # characters kept of the reason why frames are missing
# Bytes for what is known only at the end: the reason, of which JSON may escape a character by twelve bytes,
# and the lengths of the columns.
HEADER_RESERVE = 12 * MAX_REASON + 1024


class ScoreTable:
    """The scores of one video for its questions, filled batch by batch.

    All memory is allocated at the start: small arrays that stay, among large ones that come and go, would
    make the process grow with the length of the video.

    Args:
        scorer: the model.
        questions: the video's questions.
        num_candidates: frames in the video, at most.
        frames_together: batches wait until so many neighbouring frames are there to be scored together.
            Which these are depends on the video alone, so that a score depends on no other video. With 1
            every batch is scored at once.
    """

    def __init__(
        self, scorer: Scorer, questions: Sequence[Question], num_candidates: int, frames_together: int = 1
    ) -> None:
        self._scorer, self._questions = scorer, questions
        self._frames_together = frames_together
        self._waiting: dict[int, list[FeatureBatch]] = {}
        self._encoded_questions = [scorer.encode_question(question) for question in questions]
        self._frame_indices = np.empty(num_candidates, dtype=np.int64)
        self._times_s = np.empty(num_candidates)
        self._scores = np.empty((len(questions), num_candidates))
        self._num_filled = 0

    def add(self, batch: FeatureBatch) -> None:
        """Take a batch, and score it as soon as it need not wait for others."""
        part = slice(batch.offset, batch.offset + len(batch.frame_indices))
        self._frame_indices[part], self._times_s[part] = batch.frame_indices, batch.times_s
        self._num_filled += len(batch.frame_indices)
        group = batch.offset // self._frames_together
        together = self._waiting.setdefault(group, [])
        together.append(batch)
        if sum(len(waiting.frame_indices) for waiting in together) >= self._frames_together:
            self._score(self._waiting.pop(group))

    def _score(self, batches: list[FeatureBatch]) -> None:
        features = [batch.features for batch in batches]
        positions = np.concatenate([b.offset + np.arange(len(b.frame_indices)) for b in batches])
        scores = self._scorer.score(
            features[0] if len(features) == 1 else torch.cat(features), self._encoded_questions
        )
        if not np.isfinite(scores).all():
            question, frame = np.argwhere(~np.isfinite(scores))[0]
            raise VideoError(
                f"{self._scorer.name} gives {scores[question, frame]} for frame "
                f"{self._frame_indices[positions[frame]]}, question {self._questions[question].id} "
                "(in half precision? try --dtype float32)"
            )
        self._scores[:, positions] = scores

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Frame numbers (n,) int64, times in seconds (n,), and scores (questions, n)."""
        while self._waiting:
            self._score(self._waiting.popitem()[1])
        n = self._num_filled
        return self._frame_indices[:n], self._times_s[:n], self._scores[:, :n]


class ScoreWriter(ScoreTable):
    """Scores one video and writes its part file."""

    def __init__(
        self, run: RunDir, scorer: Scorer, job: VideoJob, info: VideoInfo, frames_together: int
    ) -> None:
        """Encode the video's questions; the arguments are those of :class:`ScoreTable`."""
        super().__init__(scorer, job.questions, info.num_candidates, frames_together)
        self._run, self._job, self._info = run, job, info

    def close(self, end: EndOfVideo) -> None:
        """Score what waits, and write the part file."""
        frame_indices, times_s, scores = self.result()
        self._run.write_part(
            VideoScores(
                video=self._job.name,
                fps=self._info.fps,
                num_frames=self._info.num_frames,
                video_bytes=self._info.video_bytes,
                decoder=self._info.decoder,
                frames=frame_indices.tolist(),
                times_s=times_s.tolist(),
                scores={q.id: row.tolist() for q, row in zip(self._job.questions, scores, strict=True)},
                is_edited=self._info.is_edited,
                lost_frames=end.missing_frames,
                lost_reason=end.reason,
            )
        )

    def abort(self) -> None:
        """Nothing is on disk yet."""


class FeatureWriter:
    """Writes one video's features as they come, so that memory does not grow with its length.

    safetensors' own writer needs all features at once. The format puts a header in front that states the
    number of frames, which is known only at the end: room is left for it, and it is written last.
    """

    def __init__(
        self,
        store: FeatureStore,
        job: VideoJob,
        info: VideoInfo,
        transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """Open a temporary file.

        ``transform`` turns a batch's features into those that are stored, bound to the video's questions.
        """
        self._store, self._job = store, job
        self._transform = transform or (lambda features: features)
        self._metadata = {
            "format": str(FORMAT),
            "video": job.name,
            "fps": repr(info.fps),
            "num_frames": str(info.num_frames),
            "video_bytes": json.dumps(info.video_bytes),
            "decoder": info.decoder,
            **({"is_edited": "true"} if info.is_edited else {}),
            **({"questions": json.dumps([q.id for q in job.questions])} if transform else {}),
        }
        self._frame_indices = np.empty(info.num_candidates, dtype="<i8")
        self._times_s = np.empty(info.num_candidates, dtype="<f8")
        self._num_filled, self._data_start = 0, 0
        self._path = store.part_path(job.name)
        self._temporary = temporary_path(self._path)
        with writing_to(self._path):
            self._file = open(self._temporary, "wb")  # noqa: SIM115 - open until close() or abort()

    def add(self, batch: FeatureBatch) -> None:
        """Write a batch at its position."""
        features = self._transform(batch.features).detach().to("cpu", self._store.dtype).contiguous()
        if not torch.isfinite(features).all():
            raise VideoError(f"a feature does not fit {self._store.dtype_name}; store bfloat16 or float32")
        if not self._data_start:
            self._shape, self._row_bytes = features.shape[1:], features[0].nbytes
            self._data_start = len(self._header(len(self._times_s), 0)) + HEADER_RESERVE
        with writing_to(self._path):
            self._file.seek(self._data_start + batch.offset * self._row_bytes)
            self._file.write(features.view(torch.uint8).numpy().tobytes())
        part = slice(batch.offset, batch.offset + len(features))
        self._frame_indices[part], self._times_s[part] = batch.frame_indices, batch.times_s
        self._num_filled += len(features)

    def close(self, end: EndOfVideo) -> None:
        """Write the other columns and the header, and give the file its name."""
        n, missing = self._num_filled, end.missing_frames
        if missing:
            self._metadata["lost_reason"] = end.reason[:MAX_REASON]
        ids = [question.id for question in self._job.questions]
        recording = self._store.recording_missing_frames(self._job.name, end.reason, ids, missing, n)
        with recording, writing_to(self._path):
            self._file.seek(self._data_start + n * self._row_bytes)
            self._file.write(self._frame_indices[:n].tobytes() + self._times_s[:n].tobytes())
            self._file.write(np.array(missing, dtype="<i8").tobytes())
            self._file.seek(0)
            self._file.write(self._header(n, len(missing), self._data_start))
            self._file.close()
            publish(self._temporary, self._path)

    def abort(self) -> None:
        """Delete the temporary file."""
        with contextlib.suppress(OSError):  # of a full disk, which refuses what is still to be written
            self._file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def _header(self, num_frames: int, num_missing: int, size: int = 0) -> bytes:
        """The head of a safetensors file: a length, then names, types, shapes and offsets as JSON.

        Args:
            num_frames: rows of the columns.
            num_missing: length of ``lost_frames``.
            size: bytes to fill up with spaces; 0 for as few as the format allows.
        """
        columns = {
            "features": (STORED_TYPES[self._store.dtype_name], [num_frames, *self._shape], self._row_bytes),
            "frames": ("I64", [num_frames], 8),
            "times_s": ("F64", [num_frames], 8),
            "lost_frames": ("I64", [num_missing], 8),
        }
        entries: dict[str, object] = {"__metadata__": self._metadata}
        offset = 0
        for name, (dtype, shape, row_bytes) in columns.items():
            end = offset + shape[0] * row_bytes
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)  # aligned, as the format asks
        text += b" " * (size - 8 - len(text))
        return len(text).to_bytes(8, "little") + text
