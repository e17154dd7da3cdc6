"""Swapping the keyframes into lmms-eval: plain commands show them, and restore gives back every byte."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import forkserver
import pytest
import torch
from evaluation_setup import (
    ROOT,
    merge_selection,
    read_frame_indices,
    results_in,
    run_lmms_eval,
    write_longvideobench_labels,
    write_numbered_video,
    write_videomme_labels,
)
from llava_recorder import Call
from llava_setup import TESTS, write_checkpoint

import evaluation.swap_in
from evaluation.models import AVAILABLE_MODELS
from evaluation.results import read_runs
from evaluation.swap_in import TASKS, hand_copies

ORIGINAL = Path(importlib.util.find_spec("lmms_eval").origin).parent
NUM_FRAMES = 240
KEYFRAMES = [[0, 31, 77, 200], [1, 2, 3, 239]]


def not_needed(folder: str, names: list[str]) -> set[str]:
    """Tasks of other benchmarks, which would only be copied."""
    tasks = {"longvideobench", "videomme", "_task_utils"} if Path(folder).name == "tasks" else set(names)
    return {name for name in names if name not in tasks and "." not in name} | {"__pycache__"}


@pytest.fixture
def package(tmp_path) -> Path:
    """A copy of the installed lmms-eval with two benchmarks' tasks."""
    return shutil.copytree(ORIGINAL, tmp_path / "site/lmms_eval", ignore=not_needed)


def digests(package: Path) -> dict[str, tuple[str, int]]:
    """Digest and mode of every file but Python's caches."""
    return {
        str(path.relative_to(package)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mode)
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def swap_in(*arguments: object) -> tuple[int, str]:
    """Status and output of the command."""
    done = subprocess.run(
        [forkserver.python("torch"), ROOT / "evaluation/swap_in.py", *map(str, arguments)],
        text=True,
        capture_output=True,
    )
    return done.returncode, (done.stdout + done.stderr).strip()


def test_install_verify_and_restore(package):
    before = digests(package)
    assert swap_in("verify", package) == (1, f"{package}: not installed; lmms-eval's files are its own")
    installed = (0, f"{package}: installed: keyframes from {ROOT}")
    assert swap_in("install", package) == installed
    changed = {path for path, digest in digests(package).items() if before.get(path) != digest}
    added = {
        "tasks/longvideobench/longvideobench_val_v_aks.yaml",
        "tasks/videomme/videomme_aks.yaml",
    }
    assert {path for path in changed if not path.startswith(".aks")} == {"__init__.py", *TASKS, *added}
    assert swap_in("verify", package.parent) == installed  # a checkout is the folder above
    assert swap_in("install", package) == installed  # once more is the same
    assert swap_in("restore", package)[0] == 0
    assert digests(package) == before
    assert swap_in("restore", package)[0] == 0
    assert not (package / ".aks_swap_in").exists()


def test_install_or_restore_killed_anywhere_is_restored(package):
    before = digests(package)

    def killed(action, at: int) -> bool:
        """Whether the action is killed before its call number ``at`` that changes a folder."""
        if child := os.fork():
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        left = at

        def count_down(original, *args, **kwargs):
            nonlocal left
            if not left:
                os._exit(9)
            left -= 1
            return original(*args, **kwargs)

        for name in ("mkdir", "link", "replace", "unlink", "rmdir"):
            setattr(os, name, functools.partial(count_down, getattr(os, name)))
        action()
        os._exit(0)

    steps = 0
    while killed(lambda: evaluation.swap_in.install(package, None), steps):
        evaluation.swap_in.restore(package)
        assert digests(package) == before, f"install killed at step {steps}"
        steps += 1
    assert steps > 10
    steps = 0
    while killed(lambda: evaluation.swap_in.restore(package), steps):
        if steps % 2:
            evaluation.swap_in.install(package, None)  # also begins anew
            assert evaluation.swap_in.describe(package)[0] == "install"
        evaluation.swap_in.restore(package)
        assert digests(package) == before, f"restore killed at step {steps}"
        evaluation.swap_in.install(package, None)
        steps += 1
    assert steps > 6
    assert digests(package) == before


def test_an_interrupted_install_is_told(package, monkeypatch):
    replace = os.replace

    def interrupted(source, target):
        if str(target).endswith("videomme.yaml"):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupted)
        evaluation.swap_in.install(package, None)
    assert swap_in("verify", package) == (
        1,
        f"{package}: an install or restore was interrupted; run either again",
    )


def test_what_an_installer_shares_with_its_cache_is_not_written_into(package, tmp_path):
    cached = tmp_path / "cached.yaml"
    os.link(package / "tasks/videomme/videomme.yaml", cached)
    content = cached.read_bytes()
    evaluation.swap_in.install(package, None)
    assert cached.read_bytes() == content
    evaluation.swap_in.restore(package)
    assert cached.samefile(package / "tasks/videomme/videomme.yaml")


def test_a_file_changed_since_is_left_and_told(package):
    before = digests(package)
    evaluation.swap_in.install(package, None)
    task = package / "tasks/videomme/videomme.yaml"
    task.write_text(task.read_text() + "# mine\n")
    assert "tasks/videomme/videomme.yaml changed since install" in swap_in("verify", package)[1]
    status, output = swap_in("restore", package)
    assert status == 2
    assert "tasks/videomme/videomme.yaml: changed since install and left as found; where" in output
    assert task.read_text().endswith("# mine\n")
    assert digests(package)["__init__.py"] == before["__init__.py"]


@pytest.mark.parametrize(
    ("prepare", "arguments", "problem"),
    [
        (lambda p: (p / "__main__.py").unlink(), (), "not lmms-eval 0.3.0 or newer: __main__.py is missing"),
        (
            lambda p: (p / "tasks/videomme/videomme.yaml").write_text("group: x\n"),
            (),
            "has no line 'task: videomme'; get the original back first",
        ),
        (lambda p: None, ("--llava", ROOT), "no checkout of LLaVA-NeXT (llava/model/builder.py is missing)"),
    ],
)
def test_what_is_no_lmms_eval_is_refused_and_left(package, prepare, arguments, problem):
    prepare(package)
    before = digests(package)
    status, output = swap_in("install", package, *arguments)
    assert status == 2 and problem in output and output.count("\n") == 0
    assert {path: digest for path, digest in digests(package).items() if ".aks" not in path} == before
    assert "--llava goes with install" in swap_in("verify", "--llava", ROOT)[1]


def test_lmms_eval_says_where_the_project_is_gone_from(package, tmp_path, monkeypatch):
    project = tmp_path / "project"
    (project / "evaluation").mkdir(parents=True)
    monkeypatch.setattr(evaluation.swap_in, "ROOT", project)
    evaluation.swap_in.install(package, None)
    shutil.rmtree(project)
    done = subprocess.run(
        [sys.executable, "-c", "import lmms_eval"], cwd=package.parent, text=True, capture_output=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {project}: gone;") and done.stderr.count("\n") == 1
    assert f"{project}, which it was told to use, is gone" in swap_in("verify", package)[1]
    assert swap_in("install", package)[0] == 0  # from the copy that is there


COPIES = {
    "evaluation/llava_vid.py": "models/simple/llava_vid.py",
    "evaluation/llava_onevision.py": "models/simple/llava_onevision.py",
    "evaluation/qwen2_vl.py": "models/simple/qwen2_vl.py",
    "evaluation/qwen2_load_video.py": "models/model_utils/qwen/qwen2_load_video.py",
    "evaluation/evaluator.py": "evaluator.py",
    "evaluation/task.py": "api/task.py",
    "datasets/longvideobench/utils.py": "tasks/longvideobench/utils.py",
    "datasets/videomme/utils.py": "tasks/videomme/utils.py",
    "datasets/videomme/videomme.yaml": "tasks/videomme/videomme.yaml",
}


@pytest.mark.parametrize(("ours", "theirs"), COPIES.items(), ids=COPIES)
def test_a_file_copied_over_by_hand_says_what_to_do_instead(package, ours, theirs):
    (package / theirs).parent.mkdir(exist_ok=True, parents=True)
    shutil.copy(ROOT / ours, package / theirs)
    if ours.endswith(".py"):
        name = "lmms_eval." + theirs.removesuffix(".py").replace("/", ".")
        spec = importlib.util.spec_from_file_location(name, package / theirs)
        with pytest.raises(SystemExit) as ended:
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
        assert str(ended.value.code).startswith(f"error: {package / theirs} is a file of Adaptive Keyframe")
        assert (
            "pip install --force-reinstall" in ended.value.code and "swap_in.py install" in ended.value.code
        )
    for command, status in {"install": 2, "verify": 1, "restore": 1}.items():
        found, output = swap_in(command, package)
        assert found == status
        assert f"{theirs} is a copy of this project's; get lmms-eval's own back" in output


def test_llava_next_can_be_a_checkout(package, tmp_path):
    checkout = tmp_path / "LLaVA-NeXT"
    (checkout / "llava/model").mkdir(parents=True)
    for name in ("__init__.py", "model/__init__.py", "model/builder.py"):
        (checkout / "llava" / name).touch()
    assert swap_in("install", package, "--llava", checkout) == (
        0,
        f"{package}: installed: keyframes from {ROOT} and LLaVA-NeXT from {checkout}",
    )
    script = (
        "import lmms_eval, llava, evaluation.llava_implementation as i; print(llava.__file__, i.choose())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=package.parent, text=True, capture_output=True, check=True
    )
    assert done.stdout.split() == [str(checkout / "llava/__init__.py"), "next"]
    shutil.copy(ROOT / "evaluation/mm_utils.py", checkout / "llava/mm_utils.py")
    status, output = swap_in("install", package, "--llava", checkout)
    assert status == 2 and "llava/mm_utils.py is a copy of this project's; git checkout it first" in output


def test_no_file_of_lmms_eval_is_taken_for_one_of_ours():
    assert hand_copies(ORIGINAL) == []


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A video, label files with keyframes, a checkpoint."""
    world = tmp_path_factory.mktemp("world")
    write_numbered_video(world / "videos/a.mp4", NUM_FRAMES)
    merge_selection(write_longvideobench_labels(world, ["a.mp4"] * 2), KEYFRAMES, 4)
    merge_selection(write_videomme_labels(world / "videomme", ["a"] * 2), KEYFRAMES, 4, "videomme")
    write_checkpoint(world / "llava", world / "hub")
    return world


@pytest.mark.slow
def test_a_plain_command_shows_the_keyframes(package, world, tmp_path):
    """Uniform frames, and other versions: ``python tests/lmms_eval_versions.py --swap_in``."""
    evaluation.swap_in.install(package, None)
    done = run_lmms_eval(
        "llava_vid",
        f"pretrained={world / 'llava'},conv_template=chatml_direct,torch_dtype=bfloat16,device_map=auto,"
        "overwrite=False,max_frames_num=4,use_topk=True",
        "longvideobench_val_v,videomme",
        tmp_path / "out",
        labels=world / "include_frame_idx.json",
        videos=world / "videos",
        python=sys.executable,
        python_path=[TESTS],
        environment={
            "LMMS_EVAL_PLUGINS": "llava_recorder",  # a plug-in of one's own stays one
            "AKS_RECORDED_CALLS": str(tmp_path / "calls"),
            "AKS_VIDEOMME_LABELS": str(world / "videomme/include_frame_idx.json"),
            "AKS_VIDEOMME_VIDEOS": str(world / "videos"),
            "HF_HUB_CACHE": str(world / "hub"),
            "LLAVA": "transformers",
        },
        swapped_in=package.parent,
    )
    assert done.returncode == 0 and results_in(tmp_path / "out"), done.stdout[-2000:] + done.stderr[-2000:]
    calls = [Call(**torch.load(path, weights_only=False)) for path in sorted((tmp_path / "calls").iterdir())]
    assert [read_frame_indices(call.pixels) for call in calls] == KEYFRAMES * 2
    (results,) = results_in(tmp_path / "out")
    runs, unknown = read_runs(results)  # the tables know them, under the names of upstream
    assert {(run.task, run.benchmark) for run in runs} == {
        ("longvideobench_val_v", "LongVideoBench"),
        ("videomme", "VideoMME"),
    }
    assert all(run.use_topk for run in runs) and not unknown


def test_lmms_eval_finds_an_installed_project_s_models_under_names_of_their_own(tmp_path, monkeypatch):
    """The metadata are those that pip writes from pyproject.toml for an installation of this checkout."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    metadata = tmp_path / "site/aks_keyframes-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0\n")
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in points.items())
        for group, points in project["entry-points"].items()
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(metadata.parent)
    from lmms_eval.models import _build_builtin_manifests
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    registry = ModelRegistryV2()
    for manifest in _build_builtin_manifests():
        registry.register_manifest(manifest)
    builtin = set(registry.list_model_names())
    registry.load_entrypoint_manifests(overwrite=True)
    assert set(registry.list_model_names()) - builtin == {f"{name}_aks" for name in AVAILABLE_MODELS}
    assert registry.resolve("llava_vid").class_path.startswith("lmms_eval.")
    model = registry.get_model_class("conse_qa_aks")
    assert (model.__module__, model.__name__) == ("evaluation.models.conse_qa", "ConseQA")


def test_an_installed_project_is_found_through_a_link(tmp_path):
    (tmp_path / "link").symlink_to(ROOT)
    script = "from aks.lmms_eval_models import manifests; print(len(manifests()))"
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "link")}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=env, text=True, capture_output=True
    )
    assert done.stdout.split() == [str(len(AVAILABLE_MODELS))], done.stderr
