"""Stored frame features: encode a video once, score new questions later, without the video.

A store's folder, ``features/<dataset>/<model>/``, holds ``run.json`` (model, checkpoint, precision,
stored type), ``failures.json``, and under ``videos/`` one safetensors file a video:

- ``frames``: candidate frame numbers, (n,) int64
- ``times_s``: their times in seconds, (n,) float64
- ``features``: (n, ...) in the stored type
- ``lost_frames``: candidates that could not be decoded and are not in ``frames``, (m,) int64
- metadata: ``video``, ``fps``, ``num_frames``, ``video_bytes``, ``decoder``; where m > 0 ``lost_reason``
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from aks.errors import UserError, VideoError
from aks.extraction.decoding import EndOfVideo, VideoInfo
from aks.jsonio import atomic, read_json
from aks.labels import LabelSet, Question
from aks.run_dir import FORMAT, RunDir, check_same_video
from aks.scorers.base import DTYPES, Scorer

# safetensors' names of the types a store may have.
STORED_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
FRAME_FEATURES = "frame"
PER_QUESTION = "question-bound itm-e"
MAX_REASON = 500  # characters of it that are kept
HEADER_ROOM = 4096  # bytes: that many characters as JSON may have, and what else is known only at the end


@dataclass(frozen=True)
class FeatureBatch:
    """A batch of frames after the model: place, numbers (n,), times in seconds (n,), features (n, ...)."""

    offset: int
    frame_indices: np.ndarray
    times_s: np.ndarray
    features: torch.Tensor


# What becomes of one video, started with next(): is sent its batches, in any order, then its end.
Sink = Generator[None, FeatureBatch | EndOfVideo, None]


class FeatureFiles(RunDir):
    """The files of a store; a video with a part is finished."""

    def __init__(self, folder: Path) -> None:
        """Name the folder."""
        super().__init__(folder, parts="videos", suffix=".safetensors")

    def open(self, video: str) -> Any:
        """A stored video's file, checked.

        Raises:
            UserError: it is damaged, or another video's.
        """
        path = self.part_path(video)
        try:
            file = safe_open(path, framework="pt")
            facts = file.metadata() or {}
            shapes = [file.get_slice(key).get_shape()[0] for key in ("frames", "times_s", "features")]
            if facts.get("video") != video or len(set(shapes)) != 1:
                raise ValueError("another file's content")
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f"{path}: damaged or incomplete ({str(error).splitlines()[0]}); delete it and store that "
                "video again"
            ) from None
        return file

    def facts(self, video: str) -> dict[str, Any]:
        """As for scores; of what was stored by a first version, whose files do not name it."""
        with self.open(video) as file:
            known = {"format": 1, **file.metadata()}
            columns = {key: file.get_tensor(key).tolist() for key in ("frames", "times_s")}
        return {**known, **columns, "format": int(known["format"])}


class FeatureStore:
    """A folder of stored features.

    Attributes:
        folder: where it lies.
        dtype: type on disk.
        kind: ``frame``, or ``question-bound itm-e`` for vectors that fit their own question alone.
        run: its files; a video with a part is finished.
    """

    def __init__(self, folder: Path, dtype: str, kind: str = FRAME_FEATURES) -> None:
        """Name a store; nothing is created before :meth:`begin`.

        Raises:
            UserError: unknown type.
        """
        if dtype not in STORED_TYPES:
            raise UserError(f"{folder}: features of type {dtype}; use one of {', '.join(STORED_TYPES)}")
        self.folder, self.kind, self._dtype_name = folder, kind, dtype
        self.dtype = DTYPES[dtype]
        self.run = FeatureFiles(folder)

    @classmethod
    def open(cls, folder: Path) -> FeatureStore:
        """An existing store.

        Raises:
            UserError: there is none.
        """
        record = read_json(folder / "run.json")
        if not isinstance(record, dict) or "stored_dtype" not in record:
            raise UserError(f"{folder}: no stored features; make them with feature_extract_store.py")
        return cls(folder, record["stored_dtype"], record.get("kind", FRAME_FEATURES))

    def open_or_create(self, scorer: Scorer, labels: LabelSet, reading: dict[str, str]) -> None:
        """Create the folder, or check that it holds the same model's features in the same type."""
        settings = {
            "dataset": labels.dataset,
            "kind": self.kind,
            "stored_dtype": self._dtype_name,
            **scorer.fingerprint(),
            **reading,
        }
        if self.kind == PER_QUESTION:
            settings["label_sha256"] = labels.sha256
        self.run.open_or_create(settings)
        self.check_videos(labels)
        self.run.upgrade(labels)

    def check(self, scorer: Scorer, labels: LabelSet) -> None:
        """Refuse to score features that another model made, or that are damaged.

        Raises:
            UserError: they are not this scorer's; says what differs. Or a file is truncated.
        """
        if self.kind == PER_QUESTION:
            raise UserError(
                f"{self.folder}: holds question-bound vectors, which score no other question; store frame "
                "features with --blip_features patch"
            )
        record = read_json(self.folder / "run.json")
        differing = [
            f"{key} {record.get(key)!r} stored, {value!r} now"
            for key, value in scorer.fingerprint().items()
            if record.get(key) != value
        ]
        if differing:
            raise UserError(f"{self.folder}: features of another model ({'; '.join(differing)})")
        if record.get("dataset") != labels.dataset:
            raise UserError(f"{self.folder}: features of {record.get('dataset')}, not of {labels.dataset}")
        self.check_videos(labels)
        if misread := self.run.misread(labels):
            raise UserError(
                f"{self.folder}: of {len(misread)} videos ({misread[0]}) an earlier version may have "
                "stored other frames than a player shows; feature_extract_store.py reads these again"
            )

    def check_videos(self, labels: LabelSet) -> None:
        """Refuse damaged files, and features of other videos of the same names.

        Raises:
            UserError: names the first.
        """
        for name in labels.by_video():
            if self.run.has_part(name):
                with self.run.open(name) as file:
                    recorded = json.loads(file.metadata()["video_bytes"])
                check_same_video(self.run.part_path(name), recorded, labels.video_path(name))

    def quantization(self) -> dict[str, str]:
        """What storing did to the numbers, for the record of scores made from them; empty if nothing."""
        record = read_json(self.folder / "run.json")
        lossless = self._dtype_name in ("float32", record.get("dtype"))
        return {} if lossless else {"features": self._dtype_name}

    def count(self, name: str) -> int:
        """Frames stored of a video; 0 where it is not stored."""
        if not self.run.has_part(name):
            return 0
        with self.run.open(name) as file:
            return int(file.get_slice("frames").get_shape()[0])

    def writing(
        self,
        name: str,
        questions: list[Question],
        header: VideoInfo,
        metadata: dict[str, str] | None = None,
    ) -> Sink:
        """Store a video, batch by batch: memory does not grow with its length.

        Raises:
            VideoError: the video cannot be decoded, or a feature does not fit the stored type.
            UserError: the file cannot be written.
        """
        facts = {
            "format": str(FORMAT),
            "video": name,
            "fps": repr(header.fps),
            "num_frames": str(header.num_frames),
            "video_bytes": json.dumps(header.video_bytes),
            "decoder": header.decoder,
            **({"is_edited": "true"} if header.is_edited else {}),
            **(metadata or {}),
        }
        numbers, times = np.empty(header.count, dtype="<i8"), np.empty(header.count, dtype="<f8")
        start, filled = 0, 0
        with atomic(self.run.part_path(name)) as path, open(path, "wb") as file:
            while isinstance(event := (yield), FeatureBatch):
                stored = event.features.detach().to("cpu", self.dtype).contiguous()
                if not torch.isfinite(stored).all():
                    raise VideoError(f"a feature does not fit {self._dtype_name}; store bfloat16 or float32")
                start = start or len(self._header(header.count, stored.shape[1:], facts)) + HEADER_ROOM
                file.seek(start + event.offset * stored[0].nbytes)
                file.write(stored.view(torch.uint8).numpy().tobytes())
                place = slice(event.offset, event.offset + len(stored))
                numbers[place], times[place] = event.frame_indices, event.times_s
                filled += len(stored)
            file.seek(start + filled * stored[0].nbytes)
            file.write(numbers[:filled].tobytes() + times[:filled].tobytes())
            file.write(np.array(event.missing_frames, dtype="<i8").tobytes())
            file.seek(0)
            if event.missing_frames:
                facts["lost_reason"] = event.reason[:MAX_REASON]
            file.write(self._header(filled, stored.shape[1:], facts, len(event.missing_frames), size=start))
        ids = [question.id for question in questions]
        self.run.record_missing_frames(name, event.reason, ids, event.missing_frames, filled)

    def read(self, name: str, batch_frames: int) -> Iterator[VideoInfo | FeatureBatch | EndOfVideo]:
        """A stored video: a header, batches, the end.

        Raises:
            VideoError: it is not stored.
            UserError: its file is damaged.
        """
        if not self.run.has_part(name):
            raise VideoError(f"no stored features in {self.folder}")
        with self.run.open(name) as file:
            facts, frames, times = file.metadata(), file.get_tensor("frames"), file.get_tensor("times_s")
            frames, times = frames.numpy(), times.numpy()
            yield VideoInfo(
                float(facts["fps"]),
                int(facts["num_frames"]),
                json.loads(facts["video_bytes"]),
                facts["decoder"],
                len(frames),
            )
            rows = file.get_slice("features")
            for start in range(0, len(frames), batch_frames):
                stop = min(start + batch_frames, len(frames))
                yield FeatureBatch(start, frames[start:stop], times[start:stop], rows[start:stop])
            if "lost_frames" in file.keys():  # noqa: SIM118 - no dictionary
                lost, reason = file.get_tensor("lost_frames").tolist(), facts.get("lost_reason", "")
            else:  # stored before features said so; the note beside them does
                note = self.run.failure_path(name)
                noted = read_json(note) if note.exists() else {}
                lost, reason = noted.get("lost_frames", []), noted.get("reason", "")
        yield EndOfVideo(lost, reason)

    def _header(
        self, count: int, shape: torch.Size, facts: dict[str, str], lost: int = 0, size: int = 0
    ) -> bytes:
        """The head of a safetensors file: a length, then names, types, shapes and places as JSON.

        Filled up with spaces to ``size`` bytes.
        """
        end = count * shape.numel() * self.dtype.itemsize
        entries = {
            "__metadata__": facts,
            "features": {
                "dtype": STORED_TYPES[self._dtype_name],
                "shape": [count, *shape],
                "data_offsets": [0, end],
            },
            "frames": {"dtype": "I64", "shape": [count], "data_offsets": [end, end + 8 * count]},
            "times_s": {
                "dtype": "F64",
                "shape": [count],
                "data_offsets": [end + 8 * count, end + 16 * count],
            },
            "lost_frames": {
                "dtype": "I64",
                "shape": [lost],
                "data_offsets": [end + 16 * count, end + 16 * count + 8 * lost],
            },
        }
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)  # aligned, as the format asks
        text += b" " * (size - 8 - len(text))
        return len(text).to_bytes(8, "little") + text


def bytes_per_frame(scorer: Scorer, dtype: torch.dtype) -> int:
    """Bytes that one stored frame takes, by encoding a black one."""
    black = scorer.preprocess(np.zeros((32, 32, 3), dtype=np.uint8))
    return scorer.encode_frames(black[None])[0].numel() * dtype.itemsize + 16


def check_free_space(folder: Path, needed: int) -> None:
    """Compare an estimate with the free disk.

    Args:
        folder: where to write; need not exist.
        needed: bytes.

    Raises:
        UserError: it does not fit.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(
            f"{folder}: the features need about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; use "
            "--feature_dtype float16, smaller features, or another --output_file"
        )
