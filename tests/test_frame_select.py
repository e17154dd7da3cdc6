"""Step 2: the files it reads and writes, its options, and the mistakes it reports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import check_mistake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aks import UserError, score_lists, select_keyframes

ROOT = Path(__file__).resolve().parent.parent
RNG = np.random.default_rng(3)
SCORES = [RNG.random(200).tolist(), RNG.random(50).tolist(), [0.5] * 100, [1, 2, 3]]
FRAMES = [(np.arange(len(row)) * 29).tolist() for row in SCORES]


def write(folder: Path, scores=SCORES, frames=FRAMES) -> list:
    """Write the scores and the frames, as data or as text; return the flags that name the files."""
    for name, data in (("scores", scores), ("frames", frames)):
        text = data if isinstance(data, str) else json.dumps(data)
        (folder / f"{name}.json").write_text(text)
    return ["--score_path", folder / "scores.json", "--frame_path", folder / "frames.json"]


def selected_frames(folder: Path) -> list[list[int]]:
    """What the command wrote below the folder of ``--output_file``."""
    return json.loads((folder / "longvideobench/blip/selected_frames.json").read_text())


@pytest.fixture
def select(tmp_path, run_script):
    """Run the command on scores and frames, to the folder ``sel``; returns the finished process."""

    def run(*flags, scores=SCORES, frames=FRAMES, **options):
        files = write(tmp_path, scores, frames)
        return run_script("frame_select.py", *files, *flags, "--output_file", tmp_path / "sel", **options)

    return run


def test_precomputed_scores_give_the_documented_files(tmp_path, select):
    done = select(fresh=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "sel/longvideobench/blip"
    selected = selected_frames(tmp_path / "sel")
    assert selected == [select_keyframes(s, f, 64) for s, f in zip(SCORES, FRAMES, strict=True)]
    assert [len(row) for row in selected] == [64, 50, 64, 3]
    assert "2 questions have fewer candidates than the budget of 64" in done.stdout
    record = json.loads((folder / "selection.json").read_text())
    options = {
        "strategy": "ada",
        "ratio": 1,
        "t1": 0.8,
        "t2": -100,
        "max_depth": 5,
        "quota": "full",
        "options": {},
    }
    assert record.items() >= {"max_num_frames": 64, **options}.items()
    assert record["strides"] == [29] * 4
    assert record["scored_by"] is None and len(record["scores_sha256"]) == 64
    assert not (folder / "selected_times.json").exists()


def test_the_default_paths_are_the_documented_ones(tmp_path, run_script):
    folder = tmp_path / "outscores/videomme/clip"
    folder.mkdir(parents=True)
    write(folder)
    done = run_script(
        "frame_select.py", "--dataset_name", "videomme", "--extract_feature_model", "clip", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "selected_frames/videomme/clip/selected_frames.json").exists()


def test_questions_with_fewer_candidates_than_the_ratio_are_counted(select):
    done = select("--ratio", 60)
    assert done.returncode == 0, done.stderr
    assert "2 questions have fewer candidates than --ratio 60" in done.stdout


def test_frame_indices_written_as_floats_become_whole_numbers(tmp_path, select):
    done = select(frames=[[float(index) for index in row] for row in FRAMES])
    assert done.returncode == 0, done.stderr
    last = selected_frames(tmp_path / "sel")[3]
    assert last == [0, 29, 58] and all(type(index) is int for index in last)


def test_the_flags_set_the_options_of_the_selection(tmp_path, select):
    options = {
        "strategy": "ada",
        "ratio": 2,
        "t1": 0.2,
        "t2": 0.01,
        "max_depth": 3,
        "quota": "paper",
        "options": {},
    }
    flags = ["--ratio", 2, "--t1", 0.2, "--t2", 0.01, "--all_depth", 3, "--quota", "paper"]
    done = select(*flags, "--max_num_frames", 20)
    assert done.returncode == 0, done.stderr
    selected = selected_frames(tmp_path / "sel")
    expected = [select_keyframes(s, f, 20, **options) for s, f in zip(SCORES, FRAMES, strict=True)]
    assert selected == expected
    assert "--quota paper loses fractions" in done.stdout


@pytest.mark.parametrize(
    ("dataset", "budget", "flags", "settings"),
    [
        ("longvideobench", 32, [], {"t1": 0.2, "max_depth": 4, "quota": "released"}),
        ("videomme", 32, [], {"t1": 0.8, "max_depth": 5, "quota": "released"}),
        ("videomme", 31, [], {"t1": 0.8, "max_depth": 5, "quota": "full"}),  # the released one leaves none
        ("videomme", 31, ["--t1", 0.5, "--all_depth", 4], {"t1": 0.5, "max_depth": 4, "quota": "released"}),
        ("videomme", 31, ["--quota", "released"], {"t1": 0.8, "max_depth": 5, "quota": "released"}),
    ],
)
def test_the_preset_of_the_paper_picks_settings_and_flags_win(
    tmp_path, select, dataset, budget, flags, settings
):
    done = select("--preset", "paper", "--dataset_name", dataset, "--max_num_frames", budget, *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "preset paper: " + ", ".join(
        f"{k} {v}" for k, v in settings.items()
    )
    folder = tmp_path / "sel" / dataset / "blip"
    rows = [select_keyframes(s, f, budget, **settings) for s, f in zip(SCORES, FRAMES, strict=True)]
    assert json.loads((folder / "selected_frames.json").read_text()) == rows
    record = json.loads((folder / "selection.json").read_text())
    assert {name: record[name] for name in settings} == settings


def test_times_are_written_where_step_1_left_them_and_stale_ones_are_removed(tmp_path, select):
    times = [[index / 29.97 for index in row] for row in FRAMES]
    (tmp_path / "times.json").write_text(json.dumps(times))
    output = tmp_path / "sel/longvideobench/blip"
    assert select().returncode == 0
    selected_times = json.loads((output / "selected_times.json").read_text())
    for indices, row in zip(selected_frames(tmp_path / "sel"), selected_times, strict=True):
        np.testing.assert_allclose(row, np.array(indices) / 29.97)
    (tmp_path / "times.json").write_text(json.dumps(times[:-1]))
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    done = select()
    assert done.returncode == 2 and "times.json: does not fit" in done.stderr
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    (tmp_path / "times.json").unlink()
    assert select().returncode == 0
    assert not (output / "selected_times.json").exists()


@pytest.mark.parametrize(
    ("scores", "frames", "flags", "words"),
    [
        (SCORES[:3], FRAMES, [], "holds 3 questions and"),
        ([*SCORES[:3], [1, 2]], FRAMES, [], "entry 3 has 2 scores, but 3 frames"),
        ("[[0.1, NaN]]", [[0, 1]], [], "entry 0, position 1: nan is no finite number"),
        ("[[-Infinity, 1]]", [[0, 1]], [], "entry 0, position 0: -inf is no finite number"),
        ("[[1e999, 1]]", [[0, 1]], [], "entry 0, position 0: inf"),
        ([[1, None]], [[0, 1]], [], "entry 0, position 1: None is no number"),
        ([[1, True]], [[0, 1]], [], "True is no number"),
        ([["1", 2]], [[0, 1]], [], "'1' is no number"),
        ([0.5], [[0, 1]], [], "entry 0 is float, not a list"),
        ('{"a": 1}', [[0]], [], "holds dict"),
        ("[[1, 2", [[0]], [], "scores.json: not JSON"),
        ([[1, 2]], [[29, 0]], [], "entry 0, position 1: frame 0 follows 29"),
        ([[1, 2]], [[5, 5]], [], "frame 5 follows 5"),
        ([[1, 2]], [[0, 2.5]], [], "2.5 is no frame number"),
        ([[1, 2]], [[-1, 2]], [], "-1 is no frame number"),
        ([[1, 2]], [[0, 1e300]], [], "1e+300 is no frame number"),
        ([[1, 10**400]], [[0, 1]], [], "too large for a float"),
        ("[[1, " + "9" * 5000 + "]]", [[0, 1]], [], "not JSON"),
        ("[" * 100000, [[0]], [], "not JSON"),
        (SCORES, FRAMES, ["--max_num_frames", 0], "budget is 0"),
        (SCORES, FRAMES, ["--ratio", 0], "ratio is 0"),
        (
            SCORES,
            FRAMES,
            ["--score_path", "absent.json", "--strategy", "apart", "--option", "distance=-1"],
            "distance is -1.0",
        ),
        (SCORES, FRAMES, ["--all_depth", -1], "max_depth is -1"),
        (SCORES, FRAMES, ["--t1", "nan"], "t1 and t2 must be numbers"),
        (SCORES, FRAMES, ["--strategy", "best"], "--strategy: invalid choice: 'best'"),
        (SCORES, FRAMES, ["--quota", "half"], "--quota: invalid choice: 'half'"),
        (SCORES, FRAMES, ["--option", "seed=1"], "option 'seed': strategy ada has no options"),
        (SCORES, FRAMES, ["--option", "seed"], "--option seed: use NAME=VALUE with a number"),
        (SCORES, FRAMES, ["--strategy", "gumbel", "--option", "seed=inf"], "use NAME=VALUE with a number"),
        (SCORES, FRAMES, ["--strategy", "bolt", "--option", "power=-1"], "power is -1.0; it must be above 0"),
        (
            SCORES,
            FRAMES,
            ["--preset", "paper", "--dataset_name", "mlvu"],
            "longvideobench and videomme, not of",
        ),
        (SCORES, FRAMES, ["--score_path", "absent.json"], "absent.json: file not found"),
    ],
)
def test_a_mistake_is_reported_in_one_line_and_nothing_is_written(
    tmp_path, select, scores, frames, flags, words
):
    check_mistake(select(*flags, scores=scores, frames=frames), words)
    assert not (tmp_path / "sel").exists()


def test_an_older_selection_that_cannot_be_removed_is_named_in_one_line(tmp_path, select):
    (tmp_path / "sel/longvideobench/blip/selected_frames.json").mkdir(parents=True)
    check_mistake(select(), "selected_frames.json: cannot be written")


def test_the_command_imports_no_slow_library():
    code = "import sys, frame_select; print(*sys.modules)"
    output = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    slow = {"torch", "transformers", "matplotlib", "av", "decord", "PIL", "aks.labels", "aks.video.reader"}
    assert not slow & set(output.split())


# --- The fast reader of the lists gives what the careful one gives -----------------------------------


def read_with(reader, path: Path) -> list[np.ndarray] | str:
    """The rows, or the error message."""
    try:
        return reader(path)
    except UserError as error:
        return str(error)


def check_readers_agree(path: Path) -> None:
    expected = read_with(score_lists._read_carefully, path)
    found = read_with(score_lists.read_number_lists, path)
    assert isinstance(found, str) == isinstance(expected, str), (found, expected)
    if isinstance(expected, str):
        assert found == expected
    else:
        assert [row.tobytes() for row in found] == [row.tobytes() for row in expected]
        assert all(row.dtype == np.float64 for row in found)


@pytest.mark.parametrize(
    ("text", "fast"),
    [
        ("[[1, 2.5], [], [-0.0, 1e-7]]", True),
        (" [\n[1 ,\t2]\r\n] ", True),
        ("[]", True),
        ("[[5e-324, 1e-400, 2.4703282292062328e-324, 1.7976931348623157e308]]", True),
        ("[[9007199254740993, 18446744073709551615, -9223372036854775808]]", True),
        ("[[0.1000000000000000055511151231257827021181583404541015625000000000001]]", True),
        ("[[18446744073709551616, " + "9" * 300 + "]]", False),  # json reads integers of any size.
        ("[[1, 2], [[3], [4]]]", False),
        ("[[[1]], [[2]]]", False),
        ("[[1], 2]", False),
        ('[[1], "[2]"]', False),
        ('[[1], {"[": 2}]', False),
        ("{}", False),
        ('"["', False),
        ("null", False),
        ("3", False),
        ("", False),
        ("[[1, 2]", False),
        ("[[1, 2]] [", False),
        ("[[01]]", False),
        ("[[1.]]", False),
        ("[[+1]]", False),
        ("[[1, NaN]]", False),
        ("[[1e999]]", False),
        ("[[true]]", False),
        ("[[null, [2]]]", False),
        ("[" * 2000, False),
    ],
)
def test_the_fast_reader_reads_plain_lists_and_leaves_the_rest_to_json(tmp_path, text, fast):
    path = tmp_path / "scores.json"
    path.write_text(text)
    check_readers_agree(path)
    try:
        score_lists._read_fast(path)
    except (ValueError, TypeError, AttributeError, RuntimeError):
        assert not fast
    else:
        assert fast


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_json_in_other_encodings_is_read(tmp_path, encoding):
    path = tmp_path / "scores.json"
    path.write_text("[[1, 2.5]]", encoding=encoding)
    check_readers_agree(path)


values = st.one_of(
    st.floats(), st.integers(), st.integers(-(2**70), 2**70), st.none(), st.booleans(), st.text(max_size=2)
)
documents = st.lists(st.one_of(st.lists(st.floats(allow_nan=False)), st.lists(values), values), max_size=5)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=documents, offset=st.integers(0, 200), typo=st.sampled_from(["", *'[]{},:.-+eE01 "\\N\n']))
def test_both_readers_read_every_file_alike(tmp_path, document, offset, typo):
    path = tmp_path / "scores.json"
    text = json.dumps(document)
    path.write_text(text)
    check_readers_agree(path)
    path.write_text(text[:offset] + typo + text[offset + 1 :])
    check_readers_agree(path)
