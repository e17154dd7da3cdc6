"""The evaluation scripts, from start to results file, and what stops them before they start."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import forkserver
import pytest
import torch
from evaluation_setup import (
    ROOT,
    STARTUP,
    change_entry,
    results_in,
    samples_in,
    write_labels,
    write_longvideobench_labels,
    write_numbered_video,
    write_videomme_labels,
)
from internvl_setup import has_internvl
from internvl_setup import write_checkpoint as write_internvl_checkpoint
from llava_setup import LLAVA_NEXT, TESTS, write_checkpoint
from media import write_video
from qwen_setup import QWEN2, QWEN2_5, QWEN3, has_qwen3
from qwen_setup import write_checkpoint as write_qwen_checkpoint

import evaluation.run
from aks import UserError
from aks.jsonio import write_json
from evaluation.llava_implementation import choose
from evaluation.results import read_runs

SCRIPTS = ROOT / "evaluation/scripts"
DOCUMENTED = {
    "llava_vid": "llava_video_7b/{dataset}_{frames}_llava_video_7b.sh",
    "llava_onevision": "llava_onevision/llava_onevision_{dataset}_{frames}.sh",
    "qwen2_vl": "qwen2_vl/qwen2_vl_{dataset}_{frames}.sh",
    "qwen2_5_vl": "qwen2_5_vl/qwen2_5_vl_{dataset}_{frames}.sh",
    "qwen3_vl": "qwen3_vl/qwen3_vl_{dataset}_{frames}.sh",
    "internvl3_5": "internvl3_5/internvl3_5_{dataset}_{frames}.sh",
}
NEED_NEWER_TRANSFORMERS = {"qwen3_vl": has_qwen3(), "internvl3_5": has_internvl()}
SELECTION = [[3, 40, 41, 100], [7, 77]]  # the second row has fewer than four frames


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Labels and videos of both benchmarks, a selection, and a small checkpoint of every model."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("a", "b"):
        write_numbered_video(folder / f"videos/{name}.mp4", frames=120)
    write_longvideobench_labels(folder, ["a.mp4", "b.mp4"])
    write_videomme_labels(folder, ["a", "b"])
    write_json(folder / "chosen.json", SELECTION)
    hub = folder / "hub"
    write_checkpoint(folder / "checkpoints/llava_vid", hub)
    shutil.copytree(folder / "checkpoints/llava_vid", folder / "checkpoints/llava_onevision")
    for qwen in (QWEN2, QWEN2_5, *([QWEN3] if has_qwen3() else [])):
        write_qwen_checkpoint(folder / "checkpoints" / qwen.name, qwen)
    if has_internvl():
        write_internvl_checkpoint(folder / "checkpoints/internvl3_5")
    return folder


def environment(world: Path, python: str | None = None, **overrides: object) -> dict[str, str]:
    """The environment of a user's shell, offline and without GPUs.

    Args:
        world: the folder with the caches.
        python: the interpreter that the scripts start; None for a fork server's, but not with LLaVA-NeXT,
            whose vision tower is not in the fork server's cache of the hub.
        overrides: further variables.
    """
    python = python or (sys.executable if LLAVA_NEXT else forkserver.python("lmms_eval"))
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(python).parent), os.environ["PATH"]]),
        "FORKSERVER_PYTHON": python,
        "PYTHONPATH": os.pathsep.join(map(str, [TESTS, STARTUP])),
        "HF_HUB_CACHE": str(world / "hub"),
        "HF_DATASETS_CACHE": str(world / "datasets_cache"),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        **{name: str(value) for name, value in overrides.items()},
    }


def run(command: list[object], env: dict[str, str], cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=env,
        text=True,
        capture_output=True,
        timeout=600,
        errors="replace",
    )


@pytest.mark.parametrize("frames", ["aks", "uni"])
@pytest.mark.parametrize("dataset", ["longvideobench", "videomme"])
@pytest.mark.parametrize("model", list(DOCUMENTED))
def test_a_documented_script_ends_in_a_results_file(world, tmp_path, model, dataset, frames):
    if not NEED_NEWER_TRANSFORMERS.get(model, True):
        pytest.skip("tests/newer_models.sh runs it")
    labels = world / {"longvideobench": "lvb_val.json", "videomme": "videomme.json"}[dataset]
    output = tmp_path / "results"
    # One case starts as a user starts it, with lmms-eval's own tasks beside ours.
    plainly = (model, dataset, frames) == ("llava_vid", "longvideobench", "aks")
    env = environment(
        world,
        sys.executable if plainly else None,
        **({"AKS_TESTS_ALL_TASKS": 1} if plainly else {}),
        CHECKPOINT=world / "checkpoints" / model,
        LABELS=labels,
        VIDEOS=world / "videos",
        SELECTION=world / "chosen.json",
        MAX_FRAMES=4,
        OUTPUT=output,
        **(
            {"MODEL_ARGS": "min_pixels=3136"} if model in ("qwen2_5_vl", "qwen3_vl") else {}
        ),  # small pictures stay small
    )
    script = SCRIPTS / DOCUMENTED[model].format(dataset=dataset, frames=frames)
    if (dataset, frames) not in (("longvideobench", "aks"), ("videomme", "uni")):
        # Every benchmark and both kinds of frames are evaluated with each model, but not all four pairs.
        done = run(["bash", script, "--check_only"], env)
        assert (done.returncode, "inputs are fine" in done.stdout) == (0, True), done.stderr[-3000:]
        assert f"{model} on {dataset}, {frames}: 2 questions" in done.stdout
        return
    done = run(["bash", script], env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    [results] = results_in(output)
    config = json.loads(results.read_text())["config"]
    assert config["model"] == model
    assert f"use_topk={frames == 'aks'}" in config["model_args"]
    if model.startswith("llava"):
        assert f"(LLAVA={choose()})" in done.stderr
        assert [run.implementation for run in read_runs(results)[0]] == [choose()]
    assert [sample["doc_id"] for sample in samples_in(output)] == [0, 1]
    expected = (
        "1 of 2 questions have fewer: they are shown as selected" if frames == "aks" else "uniform frames"
    )
    assert expected in done.stderr
    assert "| all " in done.stdout  # the report by group
    assert not (labels.parent / "include_frame_idx.json").exists()  # merged beside the results


def test_all_that_is_wrong_is_told_at_once_before_anything_loads(world, tmp_path):
    checkpoint = tmp_path / "llava"
    checkpoint.mkdir()
    write_json(checkpoint / "config.json", {"model_type": "qwen2_vl"})
    shutil.copy(world / "lvb_val.json", tmp_path)
    write_json(tmp_path / "chosen.json", SELECTION)
    env = environment(
        world,
        sys.executable,
        CHECKPOINT=checkpoint,
        LABELS=tmp_path / "lvb_val.json",
        SELECTION=tmp_path / "chosen.json",
        VIDEOS=tmp_path / "nowhere",
        OUTPUT=tmp_path / "out",
        LLAVA="nxt",
    )
    done = run(["bash", SCRIPTS / "llava_video_7b/longvideobench_aks_llava_video_7b.sh"], env)
    assert done.returncode == 2
    taken, *lines = done.stderr.strip().split("\n")
    assert taken.startswith(f"taken from the environment: CHECKPOINT={checkpoint} SELECTION=")
    expected = [
        "selected for 4 frames a question, the model is to show 64",
        "2 of 2 videos are not there (a.mp4, b.mp4)",
        "LLAVA=nxt: use next or transformers",
        "holds a qwen2_vl model, llava_vid needs llava",
        "no weights",
        "5 problems above; nothing was evaluated",
    ]
    assert len(lines) == len(expected)
    for line, text in zip(lines, expected, strict=True):
        assert line.startswith("error: ") and text in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--frames", "topk"), "--frames topk: use one of aks, uni"),
        (("--model", "llava"), "--model llava: use one of llava_vid"),
        (("--model", ""), "--model is missing: use one of llava_vid"),
        (("--max_frames", "0"), "--max_frames 0: must be a whole number, 1 or more"),
        (("--limit", "ten"), "--limit ten: must be a whole number"),
        (("--labels", "/nowhere.json"), "/nowhere.json: label file not found"),
        (("--selection", "/nowhere.json"), "/nowhere.json: file not found"),
        (("--checkpoint", "/nowhere"), "/nowhere: no checkpoint there"),
        (("--short_selection", "fill"), "--short_selection fill: use strict or paper"),
        (("--output", "/tmp/a,b"), "--output /tmp/a,b: lmms-eval takes a comma"),
    ],
)
def test_a_mistake_is_named(world, flags, complaint):
    options = {
        "--model": "qwen2_vl",
        "--dataset": "longvideobench",
        "--frames": "aks",
        "--labels": world / "lvb_val.json",
        "--videos": world / "videos",
        "--selection": world / "chosen.json",
        "--max_frames": "4",
        "--checkpoint": world / "checkpoints/qwen2_vl",
        "--gpus": "0",
        flags[0]: flags[1],
    }
    flags = [part for pair in options.items() for part in pair]
    command = [forkserver.python("lmms_eval"), ROOT / "evaluation/run.py", *flags, "--check_only"]
    done = run(command, environment(world))
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_variables_that_change_a_run_are_told_in_one_line(world):
    command = [forkserver.python("lmms_eval"), ROOT / "evaluation/run.py", "--model", "gpt", "--limit", 3]
    env = environment(world, MODEL="conse_qa", LIMIT=7, OUTPUT="my results", GPUS="")
    first, second = run(command, env).stderr.splitlines()
    assert (
        first == "taken from the environment: OUTPUT='my results'"
    )  # flags take precedence; an empty variable counts as none
    assert second.startswith("error: --model gpt")


def own_questions(folder: Path, count: int) -> Path:
    """A label file of one's own questions for conse_qa, and their video."""
    write_numbered_video(folder / "a.mp4", frames=120)
    entry = {"video": "a.mp4", "question": "Which?", "options": ["a chessboard", "a cat"], "answer": 0}
    return write_labels(
        folder / "mine.json", [{**entry, "question": f"Which of {index}?"} for index in range(count)]
    )


def conse_qa(python: str, labels: Path, output: Path, *flags: object) -> list[object]:
    command = [python, ROOT / "evaluation/run.py", "--model", "conse_qa", "--dataset", "custom"]
    command += ["--frames", "uni", "--max_frames", 2, "--labels", labels, "--output", output, "--gpus", 0]
    return [*command, *flags]


def test_a_run_without_results_fails_although_lmms_eval_ends_well(world, tmp_path):
    labels = own_questions(tmp_path, 1)
    python = forkserver.python("lmms_eval")
    done = run(conse_qa(python, labels, tmp_path / "out", "--model_args", "colour=red"), environment(world))
    assert done.returncode == 1
    assert "conse_qa has no argument colour" in done.stdout + done.stderr
    assert done.stderr.strip().split("\n")[-1].startswith("error: ")
    assert not results_in(tmp_path / "out")


def test_labels_that_pass_the_check_are_evaluated(world, tmp_path):
    entry = own_questions(tmp_path, 1).read_text().strip("[]\n").replace("\n", " ")
    labels = tmp_path / "mine.jsonl"
    labels.write_text("\ufeff\n" + entry.replace("{", '{"note": NaN, ', 1) + "\n")
    command = conse_qa(forkserver.python("lmms_eval"), labels, tmp_path / "out")
    for flags in (["--check_only"], []):
        done = run([*command, *flags], environment(world))
        assert done.returncode == 0, done.stderr[-3000:]
    assert len(samples_in(tmp_path / "out")) == 1


def test_questions_that_cannot_be_evaluated_are_told_by_the_check(world, tmp_path):
    labels = own_questions(tmp_path, 2)
    change_entry(labels, 1, answer=None)
    command = conse_qa(forkserver.python("lmms_eval"), labels, tmp_path / "out", "--check_only")
    done = run(command, environment(world))
    assert done.returncode == 2
    assert "entry 1 (id 1): evaluation needs 'options' and an 'answer'" in done.stderr


def test_a_killed_evaluation_goes_on_where_it_stopped(world, tmp_path):
    labels = own_questions(tmp_path, 70)
    command = conse_qa(forkserver.python("lmms_eval"), labels, tmp_path / "out")
    # run.py does not run in a fork itself, so that the signal reaches it and the fork server's command that
    # it starts; that command's fork ends with it.
    code = "import runpy, sys; sys.path[0] = 'evaluation'; sys.argv = sys.argv[1:]; "
    code += "sys.executable = sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, command)],
        cwd=ROOT,
        env=environment(world),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stderr:
        if "of 70 questions answered and kept" in line:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert not results_in(tmp_path / "out")
    [answers] = (tmp_path / "out/answers").glob("rank*.jsonl")
    answers.write_bytes(answers.read_bytes() + b'\n{"key": "cut sho')

    done = run(command, environment(world))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "32 of 70 questions were answered before" in done.stderr
    assert len(samples_in(tmp_path / "out")) == 70

    labels.write_text(labels.read_text().replace("a chessboard", "a crossword puzzle"))
    done = run([*command, "--limit", 1], environment(world))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "answered before" not in done.stderr  # other questions


def copy_project(folder: Path) -> None:
    """What an evaluation needs of the project, without labels, videos and selections."""
    for name in ("aks", "evaluation", "datasets"):
        ignored = shutil.ignore_patterns(
            "__pycache__", "*.json" if name == "datasets" else "", "data", "videos"
        )
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)


def test_the_released_files_run_where_they_lie(reference, world, tmp_path):
    """Labels and selections as published, with the released repository's places and names; two questions."""
    dataset, max_frames, label_name, video = "videomme", 32, "videomme.json", "data/fFjv93ACGo8.mp4"
    copy_project(tmp_path)
    chosen = tmp_path / f"selected_frames/{dataset}/blip"
    chosen.mkdir(parents=True)
    names = {64: "selected_frames.json", 32: f"{dataset}_32.json"}
    for frames, name in names.items():
        shutil.copy(reference / dataset / f"selected_frames_{frames}.json", chosen / name)
    shutil.copy(reference / dataset / label_name, tmp_path / "datasets" / dataset)
    rows = json.loads((chosen / names[max_frames]).read_text())
    path = tmp_path / "datasets" / dataset / video
    path.parent.mkdir()
    write_video(path, frames=int(max(map(max, rows[:2]))) + 1, size=(64, 64))
    script = tmp_path / f"evaluation/scripts/qwen2_vl/qwen2_vl_{dataset}_aks.sh"
    checkpoint = world / "checkpoints" / QWEN2.name
    env = environment(world, CHECKPOINT=checkpoint, MAX_FRAMES=max_frames, LIMIT=2)
    done = run(["bash", script], env, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (merged,) = (tmp_path / "results").rglob("include_frame_idx.json")
    assert [entry["frame_idx"] for entry in json.loads(merged.read_text())] == rows
    assert len(samples_in(tmp_path / "results")) == 2


def test_reproduce_table1_runs_the_rows_that_it_can(world, tmp_path):
    copy_project(tmp_path)
    home = tmp_path / "datasets/longvideobench"
    shutil.copy(world / "lvb_val.json", home)
    shutil.copytree(world / "videos", home / "videos")
    shutil.copytree(world / "checkpoints/qwen2_vl", tmp_path / "checkpoints/Qwen2-VL-7B-Instruct")
    chosen = tmp_path / "selected_frames/longvideobench/blip/longvideobench_32.json"
    chosen.parent.mkdir(parents=True)
    write_json(chosen, [list(range(32)), [7, 77]])
    script = tmp_path / "evaluation/scripts/reproduce_table1.sh"
    checked = run(["bash", script, "--check_only"], environment(world), cwd=tmp_path)
    assert checked.returncode == 1 and not (tmp_path / "results").exists()
    assert checked.stdout.startswith("2 of 12 rows can run: qwen2_vl longvideobench uni, qwen2_vl longvid")
    missing = [line for line in checked.stderr.splitlines() if line.startswith("missing: ")]
    # And the setting from the environment, and whose the flags are.
    assert len(missing) == len(checked.stderr.splitlines()) - 2
    # Two checkpoints, VideoMME's labels, its selections of 32 and 64 frames, LongVideoBench's of 64.
    assert len(missing) == len(set(missing)) == 6
    (labels,) = (line for line in missing if "label file not found" in line)
    assert labels.endswith("(for videomme)")
    assert (
        sum("--max_num_frames 64 --preset paper --output_file selected_frames_64" in x for x in missing) == 2
    )

    done = run(["bash", script], environment(world), cwd=tmp_path)
    assert done.returncode == 1  # ten of the twelve rows lack their inputs
    assert "taken from the environment: SHORT_SELECTION=paper" in done.stderr
    assert len(results_in(tmp_path / "results")) == 2
    rows = {path.name for path in (tmp_path / "results/qwen2_vl").iterdir()}
    assert rows == {"longvideobench_uni_32", "longvideobench_aks_32"}  # as the single scripts name them
    table = (tmp_path / "results/tables/tables.md").read_text()
    assert "55.5" in table and "60.5" in table  # the paper's row beside ours
    assert done.stdout.count("== ") == 2


def test_the_command_is_told_before_it_runs(tmp_path, monkeypatch):
    captured = tmp_path / "told.txt"

    def ends(command, env):
        assert captured.read_text() == f"$ {shlex.join(command)}\n"
        assert env["PYTHONWARNINGS"] == "once,ignore:Failed to load image Python extension"
        return subprocess.CompletedProcess(command, 3)

    command = conse_qa(sys.executable, own_questions(tmp_path, 1), tmp_path / "out")
    monkeypatch.setattr(sys, "argv", list(map(str, command[1:])))
    monkeypatch.setenv("PYTHONWARNINGS", "once")
    monkeypatch.setattr(subprocess, "run", ends)
    with captured.open("w") as stdout:  # a file, which is buffered
        monkeypatch.setattr(sys, "stdout", stdout)
        assert evaluation.run.main() == 1  # not 3


def test_a_missing_selection_is_told_beside_missing_labels(tmp_path, monkeypatch, capsys):
    missing = [tmp_path / name for name in ("labels.json", "chosen.json")]
    command = ["run.py", "--model", "conse_qa", "--dataset", "custom", "--frames", "aks", "--gpus", "0"]
    command += ["--labels", str(missing[0]), "--selection", str(missing[1])]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(UserError, match="2 problems above; nothing was evaluated"):
        evaluation.run.main()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [["error", str(path)] for path in missing]


def test_the_check_names_its_own_flags_and_gpus_that_are_not_there(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    command = ["run.py", "--model", "qwen2_vl", "--dataset", "custom", "--frames", "uni", "--gpus", "99"]
    monkeypatch.setattr(sys, "argv", [*command, "--checkpoint", str(tmp_path)])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="nothing was evaluated"):
        evaluation.run.main()
    printed = capsys.readouterr().err
    assert "error: --dataset custom needs --labels, a .json or .jsonl file\n" in printed
    assert "error: --gpus 99: this machine has 0; " in printed
