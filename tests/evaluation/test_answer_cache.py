"""Kept answers are used again for the same question to the same model, and for nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evaluation import answer_cache, keyframe_mixin, llava_keyframes
from evaluation.answer_cache import PACKAGES, AnswerCache
from evaluation.keyframe_mixin import KeyframeMixin
from evaluation.llava_keyframes import LlavaKeyframes


@dataclass
class Request:
    """What lmms-eval hands to a model."""

    arguments: tuple[Any, ...]


class Upstream:
    """An upstream model that answers with the prompt, as text or as a result that has it."""

    rank = 0

    def __init__(
        self,
        max_frames_num: int = 8,
        pretrained: str = "a/b",
        fps: float | None = None,
        revision: str | None = None,
    ) -> None:
        self.asked: list[int] = []
        self.model = SimpleNamespace(generate=lambda prompt, images: prompt)

    def generate_until(self, requests: list[Request]) -> list[Any]:
        answers = []
        for prompt, _, doc_to_visual, index, task, split in (request.arguments for request in requests):
            videos = doc_to_visual(self.task_dict[task][split][index])
            self.asked.append(index)
            answer = self.model.generate(prompt, images=videos)
            answers.append(SimpleNamespace(text=answer) if index else answer)
        return answers


class Model(KeyframeMixin, Upstream):
    def check_video(self, path: str, frame_indices: object) -> None:
        """Accept every video; none here can be decoded."""


class OtherModel(Model):
    pass


class World:
    """Two questions about two videos, for a model with weights in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.weights = folder, folder / "weights"
        self.weights.mkdir()
        self.videos = [folder / "0.mp4", folder / "1.mp4"]
        for path in (*self.videos, self.weights / "config.json", self.weights / "model.safetensors"):
            path.write_text(path.name)
        self.docs = [
            {"id": f"q{index}", "frame_idx": [0, 24], "video": video}
            for index, video in enumerate(self.videos)
        ]
        self.prompts, self.generation = ["first", "second"], {"max_new_tokens": 16}
        self.task, self.model, self.arguments = "mine", Model, {"pretrained": str(self.weights)}

    def asked(self, use_topk: bool = True, **arguments: Any) -> list[int]:
        """Evaluate all questions; returns which of them the model was asked."""
        arguments = {**self.arguments, "use_topk": use_topk, "answers": self.folder / "answers", **arguments}
        model = self.model(**arguments)
        model.task_dict = {self.task: {"test": self.docs}}
        answers = model.generate_until(
            [
                Request((prompt, self.generation, lambda doc: [str(doc["video"])], index, self.task, "test"))
                for index, prompt in enumerate(self.prompts)
            ]
        )
        assert answers == self.prompts
        return model.asked


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    monkeypatch.setattr(keyframe_mixin, "_decord_differs", lambda path: False)
    world = World(tmp_path)
    assert world.asked() == [0, 1]
    return world


def test_answers_are_used_again_wherever_and_by_whichever_process(world, tmp_path, monkeypatch):
    assert world.asked() == []
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(Upstream, "rank", 1)
    assert world.asked() == []


def test_a_model_without_a_checkpoint_keeps_its_answers_whatever_lies_in_the_folder(world, monkeypatch):
    world.arguments = {}
    monkeypatch.chdir(world.folder)
    assert world.asked() == [0, 1]
    (world.folder / "log.txt").write_text("a line")
    assert world.asked() == []


def grow(path: Path) -> None:
    """Change a file's size, but not its time."""
    stat = path.stat()
    path.write_bytes(path.read_bytes() + b".")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def touch(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def show_another_video(world: World) -> None:
    stat = world.videos[0].stat()
    other = world.videos[0].rename(world.folder / "other.mp4")
    assert (other.stat().st_size, other.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    world.docs[0]["video"] = other


# What changes, and which questions are asked again.
CHANGES: dict[str, tuple[Callable[[World], object], list[int]]] = {
    "frames": (lambda world: world.docs[0].update(frame_idx=[0, 25]), [0]),
    "fewer frames": (lambda world: world.docs[0].update(frame_idx=[0]), [0]),
    "question": (lambda world: world.docs[1].update(id="q2"), [1]),
    "prompt": (lambda world: world.prompts.__setitem__(1, "third"), [1]),
    "video": (show_another_video, [0]),
    "size of a video": (lambda world: grow(world.videos[1]), [1]),
    "time of a video": (lambda world: touch(world.videos[1]), [1]),
    "generation": (lambda world: world.generation.update(max_new_tokens=32), [0, 1]),
    "task": (lambda world: setattr(world, "task", "other"), [0, 1]),
    "model": (lambda world: setattr(world, "model", OtherModel), [0, 1]),
    "argument": (lambda world: world.arguments.update(fps=2), [0, 1]),
    "budget": (lambda world: world.arguments.update(max_frames_num=2), [0, 1]),
    "rule of short selections": (lambda world: world.arguments.update(short_selection="paper"), [0, 1]),
    "size of the weights": (lambda world: grow(world.weights / "model.safetensors"), [0, 1]),
    "time of the weights": (lambda world: touch(world.weights / "model.safetensors"), [0, 1]),
    "a file of the weights": (lambda world: (world.weights / "adapter.json").touch(), [0, 1]),
    "name of a file of the weights": (
        lambda world: (world.weights / "model.safetensors").rename(world.weights / "old.safetensors"),
        [0, 1],
    ),
}


@pytest.mark.parametrize(("change", "again"), CHANGES.values(), ids=CHANGES)
def test_what_changes_an_answer_is_asked_again(world, change, again):
    change(world)
    assert world.asked() == again
    assert world.asked() == []


@pytest.mark.parametrize(
    "package",
    ["lmms-eval", "transformers", "torch", "torchvision", "qwen-vl-utils", "llava", "av", "decord"],
)
def test_another_version_of_a_package_is_asked_again(world, monkeypatch, package):
    assert package in PACKAGES
    monkeypatch.setattr(answer_cache, "version", lambda name: "0" if name == package else version(name))
    assert world.asked() == [0, 1]


def test_frames_that_are_read_otherwise_are_asked_again(world, monkeypatch):
    monkeypatch.setattr(keyframe_mixin, "_decord_differs", lambda path: path.endswith("1.mp4"))
    assert world.asked() == [1]


def test_uniform_frames_are_not_taken_for_those_in_place_of_a_short_selection(world):
    assert world.asked(short_selection="paper") == [0, 1]
    assert world.asked(use_topk=False) == [0, 1]


def test_another_revision_of_a_checkpoint_of_the_hub_is_asked_again(world, monkeypatch):
    world.arguments = {"pretrained": "owner/model", "revision": "main"}
    for revision in ("1a", "2b"):
        found = world.folder / "snapshots" / revision / "config.json"

        def cached(name, file, revision, found=found):
            return str(found) if (name, file, revision) == ("owner/model", "config.json", "main") else None

        monkeypatch.setattr(keyframe_mixin, "try_to_load_from_cache", cached)
        assert world.asked() == [0, 1]
        assert world.asked() == []


class LlavaUpstream(Upstream):
    """An upstream LLaVA; its module has the function that loads a checkpoint."""

    def __init__(self, pretrained: str, conv_template: str = "qwen_1_5", max_frames_num: int = 8) -> None:
        super().__init__(max_frames_num, pretrained)


class LlavaModel(LlavaKeyframes, LlavaUpstream):
    upstream = SimpleNamespace(load_pretrained_model=lambda *arguments, **options: None)
    check_video = Model.check_video


def test_another_implementation_of_llava_is_asked_again(world, monkeypatch):
    from evaluation.llava_on_transformers import checkpoint

    monkeypatch.setattr(checkpoint, "find_checkpoint", Path)
    monkeypatch.setattr(llava_keyframes, "model_name_for", lambda pretrained: "llava_qwen")
    world.model = LlavaModel
    for implementation, options in (
        ("next", {}),
        ("transformers", {}),
        ("transformers", {"tower_attention": "sdpa"}),
    ):
        monkeypatch.setattr(llava_keyframes, "choose", lambda chosen=implementation: chosen)
        assert world.asked(**options) == [0, 1]
        assert world.asked(**options) == []


def cached_answers(folder: Path, keys: Iterable[str]) -> list[str | None]:
    found = AnswerCache(folder, 0, {})
    return [found.get(key) for key in keys]


def test_a_line_cut_by_a_kill_costs_no_other_answer(tmp_path):
    AnswerCache(tmp_path, 0, {}).add({"a": "a text\nof two lines", "b": "cut"})
    path = tmp_path / "rank0.jsonl"
    whole = path.read_bytes()
    for length in range(whole.index(b"b", whole.index(b"lines")) - 9, len(whole)):
        path.write_bytes(whole[:length])
        AnswerCache(tmp_path, 0, {}).add({"c": "next"})
        first, cut, following = cached_answers(tmp_path, "abc")
        assert (first, following) == ("a text\nof two lines", "next") and cut in (None, "cut")


def test_answers_are_on_disk_when_they_count_as_kept(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file)))
    AnswerCache(tmp_path / "answers", 3, {}).add({"a": "yes", "b": "no"})
    written = (tmp_path / "answers/rank3.jsonl").stat()
    assert [(found.st_ino, found.st_size) for found in synced] == [(written.st_ino, written.st_size)]
    assert cached_answers(tmp_path / "answers", "ab") == ["yes", "no"]
