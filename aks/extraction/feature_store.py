"""Stored frame features: encode a video once, score new questions later, without the video.

A store's folder, ``features/<dataset>/<model>/``, holds ``run.json`` (model, checkpoint, precision,
stored type), ``failures.json``, and under ``videos/`` one safetensors file a video:

- ``frames``: candidate frame numbers, (n,) int64
- ``times_s``: their times in seconds, (n,) float64
- ``features``: (n, ...) in the stored type
- ``lost_frames``: candidates that could not be decoded and are not in ``frames``, (m,) int64
- metadata: ``video``, ``fps`` and others (docs/files.md lists them all)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from aks.errors import UserError, VideoError
from aks.extraction.batching import FeatureBatch
from aks.extraction.decoding import EndOfVideo, VideoInfo
from aks.jsonio import read_json
from aks.labels import LabelSet
from aks.run_dir import RunDir
from aks.scorers.base import Scorer

# safetensors' names of the types that a store may have
STORED_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
FRAME_FEATURES = "frame"
PER_QUESTION = "question-bound itm-e"


class FeatureStore(RunDir):
    """A folder of stored features; a video that has a file is finished.

    Attributes:
        dtype_name: the type of the features on disk; None for the scorer's, until :meth:`open_for`.
        kind: ``frame``, or ``question-bound itm-e`` for vectors that fit their own question alone.
    """

    has_lists = False

    def __init__(self, folder: Path, dtype: str | None, kind: str = FRAME_FEATURES) -> None:
        super().__init__(folder, parts="videos", suffix=".safetensors")
        self.dtype_name, self.kind = dtype, kind

    @classmethod
    def open(cls, folder: Path) -> FeatureStore:
        """An existing store.

        Raises:
            UserError: the folder is none.
        """
        record = read_json(folder / "run.json")
        if not isinstance(record, dict) or record.get("stored_dtype") not in STORED_TYPES:
            raise UserError(f"{folder}: no stored features; make them with feature_extract_store.py")
        return cls(folder, record["stored_dtype"], record.get("kind", FRAME_FEATURES))

    def open_for(self, scorer: Scorer, labels: LabelSet, decode_record: dict[str, Any]) -> None:
        """Create the folder, or check that it holds the same model's features in the same type.

        Raises:
            UserError: it holds others, or cannot be written; or the type is unknown.
        """
        self.dtype_name = self.dtype_name or str(scorer.dtype).removeprefix("torch.")
        if self.dtype_name not in STORED_TYPES:
            raise UserError(
                f"{self.folder}: features of type {self.dtype_name}; use one of {', '.join(STORED_TYPES)}"
            )
        settings = {
            "dataset": labels.dataset,
            "kind": self.kind,
            "stored_dtype": self.dtype_name,
            **scorer.fingerprint(),
            **decode_record,
        }
        if self.kind == PER_QUESTION:
            settings["label_sha256"] = labels.sha256
        self.open_or_create(settings, labels.jobs)
        self.check_videos(labels.jobs)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the features on disk."""
        return getattr(torch, self.dtype_name)

    def open_part(self, video: str) -> Any:
        """Open a stored video's file and check it.

        Raises:
            UserError: the file is damaged, or another video's.
        """
        path = self.part_path(video)
        try:
            file = safe_open(path, framework="pt")
            metadata = file.metadata() or {}
            lengths = [file.get_slice(key).get_shape()[0] for key in ("frames", "times_s", "features")]
            if metadata.get("video") != video or len(set(lengths)) != 1:
                raise ValueError("another file's content")
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(path, error) from None
        return file

    def stored_videos(self) -> list[str]:
        """The names of the stored videos.

        Raises:
            UserError: a file is damaged.
        """
        names = []
        for path in sorted(self.parts.glob(f"[!.]*{self.suffix}")):
            try:
                with safe_open(path, framework="pt") as file:
                    names.append(file.metadata()["video"])
            except (SafetensorError, OSError, TypeError, KeyError) as error:
                raise _damaged(path, error) from None
        return names

    def describe_part(self, video: str) -> dict[str, Any]:
        """As for scores. The files of the first version name no format."""
        with self.open_part(video) as file:
            metadata = {"format": 1, **file.metadata()}
            columns = {key: file.get_tensor(key).tolist() for key in ("frames", "times_s")}
        facts = {"format": int(metadata["format"]), "video_bytes": json.loads(metadata["video_bytes"])}
        return {**metadata, **columns, **facts}

    def check(self, scorer: Scorer, labels: LabelSet) -> None:
        """Refuse features that this scorer cannot score, and damaged ones.

        Raises:
            UserError: another model or setting made them (told by name), or a file is truncated.
        """
        if self.kind == PER_QUESTION:
            raise UserError(
                f"{self.folder}: holds question-bound vectors, which score no other question; store frame "
                "features with --blip_features patch"
            )
        self.check_scorer(scorer)
        self.check_labels(labels)

    def check_scorer(self, scorer: Scorer) -> None:
        """Refuse features that another model or setting made.

        Raises:
            UserError: says what differs.
        """
        record = read_json(self.folder / "run.json")
        differences = [
            f"{key} {record.get(key)!r} stored, {value!r} now"
            for key, value in scorer.fingerprint().items()
            if record.get(key) != value
        ]
        if differences:
            raise UserError(f"{self.folder}: features of another model ({'; '.join(differences)})")

    def check_labels(self, labels: LabelSet) -> None:
        """Refuse features of another data set's videos, and damaged ones.

        Raises:
            UserError: says which.
        """
        dataset = read_json(self.folder / "run.json").get("dataset")
        if dataset != labels.dataset:
            raise UserError(f"{self.folder}: features of {dataset}, not of {labels.dataset}")
        self.check_videos(labels.jobs)
        if misread := self.misread(labels.jobs):
            raise UserError(
                f"{self.folder}: of {len(misread)} videos ({misread[0].name}) an earlier version may have "
                "stored other frames than a player shows; feature_extract_store.py reads these again"
            )

    def quantization(self) -> dict[str, str]:
        """What storing lost, for the record of scores made from these features; empty if nothing."""
        record = read_json(self.folder / "run.json")
        is_lossless = self.dtype_name in ("float32", record.get("dtype"))
        return {} if is_lossless else {"features": self.dtype_name}

    def count_frames(self, name: str) -> int:
        """The number of stored frames of a video; 0 where it is not stored."""
        if not self.has_part(name):
            return 0
        with self.open_part(name) as file:
            return int(file.get_slice("frames").get_shape()[0])

    def read_vectors(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The frame numbers of a stored video, (n,) int64, and a vector for each frame, (n, d) float32.

        Raises:
            UserError: the video is not stored, its file is damaged, or a frame has more than one vector.
        """
        if not self.has_part(name):
            raise UserError(f"{self.folder}: has no features of {name}; run feature_extract_store.py again")
        with self.open_part(name) as file:
            features = file.get_tensor("features").float().numpy()
            frame_indices = file.get_tensor("frames").numpy()
        check_vectors(features.shape, self.folder)
        return frame_indices, features

    def read(self, name: str, batch_frames: int) -> Iterator[VideoInfo | FeatureBatch | EndOfVideo]:
        """Read a stored video: its description, its batches, its end.

        Raises:
            VideoError: the video is not stored.
            UserError: its file is damaged.
        """
        if not self.has_part(name):
            raise VideoError(f"no stored features in {self.folder}")
        with self.open_part(name) as file:
            metadata = file.metadata()
            indices, times = file.get_tensor("frames").numpy(), file.get_tensor("times_s").numpy()
            yield VideoInfo(
                fps=float(metadata["fps"]),
                num_frames=int(metadata["num_frames"]),
                video_bytes=json.loads(metadata["video_bytes"]),
                decoder=metadata["decoder"],
                num_candidates=len(indices),
                is_edited=metadata.get("is_edited") == "true",
            )
            features = file.get_slice("features")
            for start in range(0, len(indices), batch_frames):
                part = slice(start, start + batch_frames)
                # A copy: a product's last bits depend on the memory's alignment, and the file's is none.
                yield FeatureBatch(start, indices[part], times[part], features[part].clone())
            if "lost_frames" in file.keys():  # noqa: SIM118 - no dictionary
                missing, reason = file.get_tensor("lost_frames").tolist(), metadata.get("lost_reason", "")
            else:  # the first files did not name missing frames; the record of failures beside them does
                path = self.failure_path(name)
                failure = read_json(path) if path.exists() else {}
                missing, reason = failure.get("lost_frames", []), failure.get("reason", "")
        yield EndOfVideo(missing, reason)


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path}: damaged or incomplete ({str(error).splitlines()[0]}); delete it and store that video again"
    )


def check_vectors(shape: Sequence[int], source: object) -> None:
    """Refuse features of a shape (n, ...) that is not one vector a frame, by which frames can be compared.

    Raises:
        UserError: names where they come from, and what has such vectors.
    """
    if len(shape) != 2:
        raise UserError(
            f"{source}: {' x '.join(map(str, shape[1:]))} values a frame, and frames are compared by one "
            "vector each; use features of siglip, clip or conse, or --blip_features itc"
        )


def bytes_per_frame(scorer: Scorer, dtype: torch.dtype) -> int:
    """The bytes that one stored frame takes, found by encoding a black one."""
    black = scorer.preprocess(np.zeros((32, 32, 3), dtype=np.uint8))
    return scorer.encode_frames(black[None])[0].numel() * dtype.itemsize + 16


def check_free_space(folder: Path, num_bytes: int) -> None:
    """Refuse to begin what does not fit on the disk of a folder, which need not exist.

    Raises:
        UserError: the disk has less free space.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if num_bytes > free:
        raise UserError(
            f"{folder}: the features need about {num_bytes / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
            "use --feature_dtype float16, smaller features, or another --output_file"
        )
