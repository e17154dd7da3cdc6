"""Label files: every format, the real files, and one line that names each mistake."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from benchmark_setup import (
    lvbench_lines,
    mlvu_files,
    videomme_v2_rows,
    write_lvbench_labels,
    write_mlvu_files,
)
from conftest import check_mistake

from aks import UserError
from aks.labels import load_labels

LVB = {
    "id": "abc_0",
    "video_path": "abc.mp4",
    "question": "What is on the table?",
    "candidates": ["a cup", "a book"],
    "correct_choice": 1,
    "position": [100, 250],
    "duration_group": 600,
    "duration": 321.5,
}
VIDEOMME = {
    "video_id": "001",
    "duration": "short",
    "domain": "Knowledge",
    "sub_category": "Humanity & History",
    "url": "https://www.example.org/watch?v=abc",
    "videoID": "abc",
    "question_id": "001-1",
    "task_type": "Counting Problem",
    "question": "How many candles?",
    "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."],
    "answer": "C",
}
LVBENCH = lvbench_lines()[0]
CUSTOM = {"id": "q", "video": "sub/my film.mp4", "question": "Where is the dog?"}


def write(path: Path, data) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_longvideobench_s_format_is_read(tmp_path):
    write(tmp_path / "lvb_val.json", [LVB])
    labels = load_labels("longvideobench", tmp_path)
    (question,) = labels.questions
    assert labels.video_path(question.video) == tmp_path / "videos/abc.mp4"
    named = load_labels("longvideobench", label_file=tmp_path / "lvb_val.json")
    assert named.video_path(question.video) == Path("datasets/longvideobench/videos/abc.mp4")
    assert (question.id, question.text, question.answer) == ("abc_0", "What is on the table?", 1)
    assert question.options_prompt == "A. a cup B. a book "
    assert (question.group, question.duration_s) == ("600", 321.5)
    assert question.evidence_frames == ((100, 100), (250, 250))


def test_videomme_s_format_is_read(tmp_path):
    write(tmp_path / "videomme.json", [VIDEOMME])
    labels = load_labels("videomme", tmp_path)
    (question,) = labels.questions
    assert labels.video_path(question.video) == tmp_path / "data/abc.mp4"
    assert (question.id, question.answer, question.group) == ("001-1", 2, "short")
    assert question.options_prompt == "A. One.B. Two.C. Three.D. Four."


def test_videomme_s_videos_may_have_every_extension_of_lmms_eval(tmp_path):
    names = {"a": "a.mp4", "b": "b.MP4", "c.1": "c.1.mkv"}
    entries = [{**VIDEOMME, "question_id": name, "videoID": name} for name in (*names, "absent")]
    write(tmp_path / "videomme.json", entries)
    for name in names.values():
        write(tmp_path / "data" / name, "-")
    labels = load_labels("videomme", tmp_path)
    found = [labels.video_path(question.video).name for question in labels.questions]
    assert found == [*names.values(), "absent.mp4"]


def test_lvbench_s_lines_are_videos_with_their_questions(tmp_path):
    labels = load_labels("lvbench", label_file=write_lvbench_labels(tmp_path))
    assert [(question.id, question.video) for question in labels.questions] == [
        ("50", "a.mp4"), ("51", "a.mp4"), ("60", "b.mp4"), ("61", "b.mp4")
    ]  # fmt: skip
    assert labels.video_path("a.mp4") == Path("datasets/lvbench/all_videos/a.mp4")
    first, second, *_ = labels.questions
    assert (first.text, first.options) == ("LVBench a0: what?", ("blocks", "a cat", "a dog", "a car"))
    assert (first.answer, second.answer, first.group) == (0, 1, "cartoon")
    assert first.duration_s == pytest.approx(400 / 30)
    assert (first.evidence_times_s, second.evidence_times_s) == (((1, 2),), ((0, 3),))
    again = write(tmp_path / "merged.json", labels.entries)
    assert load_labels("lvbench", label_file=again).questions == labels.questions


@pytest.mark.parametrize(
    ("reference", "evidence"),
    [
        ("1:02:03-1:02:10", ((3723, 3730),)),
        (" 00:15 - 00:19", ((15, 19),)),
        ("00:19-00:15", ()),
        ("00:15", ()),
        ("00:15-", ()),
        ("15-19", ()),
        ("1:00:00:00-2:00:00:00", ()),
        (None, ()),
        (7, ()),
    ],
)
def test_a_time_reference_of_another_form_is_no_evidence(tmp_path, reference, evidence):
    question = {**LVBENCH["qa"][0], "time_reference": reference}
    path = write(tmp_path / "labels.json", [{**LVBENCH, "qa": [question], "video_info": None}])
    (read,) = load_labels("lvbench", label_file=path).questions
    assert (read.evidence_times_s, read.duration_s) == (evidence, None)


def test_mlvu_s_files_become_one_with_the_answers_as_letters(tmp_path, run_script):
    files = mlvu_files()
    plot = files["1_plotQA"]
    plot[0] |= {"candidates": ["a", "b", "a", "c"], "answer": "a", "question": "Which?\n"}
    plot += [{**plot[1], "answer": "a bus"}, {**plot[1], "question": ""}]
    write_mlvu_files(tmp_path)
    write(tmp_path / "1_plotQA.json", plot)
    done = run_script("datasets/mlvu/make_labels.py", tmp_path, "--output", tmp_path / "mlvu.json")
    assert done.returncode == 0, done.stderr
    assert "8 questions on 7 videos" in done.stdout
    assert "1_plotQA.json: entry 2 (id b.mp4); " in done.stdout and "entry 3 (id b.mp4)\n" in done.stdout
    labels = load_labels("mlvu", tmp_path)
    first, second, needle, *_ = labels.questions
    assert labels.entries[0]["question"] == "Which?\n(A) a\n(B) b\n(C) a\n(D) c"
    assert (first.id, first.text, first.options, first.answer) == (
        "plotQA_0",
        "Which?",
        ("a", "b", "a", "c"),
        2,
    )
    assert (second.answer, second.duration_s, second.group) == (1, 3.0, "plotQA")
    assert (needle.id, needle.group) == ("needle_0", "needle")
    assert labels.video_path(needle.video) == tmp_path / "video/2_needle/b.mp4"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("3_ego", None, "3_ego.json: file not found; name MLVU's folder"),
        ("3_ego", [{"video": "b.mp4", "question": "?", "answer": "a"}], "'candidates' is missing"),
        ("3_ego", [{"question": "?", "answer": "a", "candidates": ["a"]}], "'video' is missing"),
    ],
)
def test_a_wrong_file_of_mlvu_is_reported_in_one_line(tmp_path, run_script, name, content, words):
    write_mlvu_files(tmp_path)
    (tmp_path / f"{name}.json").unlink()
    if content:
        write(tmp_path / f"{name}.json", content)
    done = run_script("datasets/mlvu/make_labels.py", tmp_path, "--output", tmp_path / "out.json")
    check_mistake(done, words)
    assert not (tmp_path / "out.json").exists()


def test_videomme_v2_s_parquet_becomes_labels(tmp_path, run_script):
    published = [{**row, "group_structure": None} for row in videomme_v2_rows()]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(published), tmp_path / "test.parquet")
    output = tmp_path / "videomme_v2.json"
    done = run_script("datasets/videomme_v2/make_labels.py", tmp_path / "test.parquet", "--output", output)
    assert done.returncode == 0, done.stderr
    labels = load_labels("videomme_v2", tmp_path)
    first = labels.questions[0]
    assert labels.video_path(first.video) == tmp_path / "videos/a.mp4"
    assert (first.id, first.text, first.answer, first.group) == ("a-1", "V2 a1: what is it?", 2, "1")
    assert first.options[:3] == ("a cat.", "a dog.", "blocks.") and len(first.options) == 8
    assert labels.entries[0]["options"] == published[0]["options"]
    assert labels.entries[0]["group_structure"] is None


def test_a_custom_data_set_is_read_from_json_and_from_json_lines(tmp_path):
    full = {
        "id": 7,
        "video": "/films/a.mkv",
        "question": "Which one? \u2028 And why?",
        "options": ["yes", "no"],
        "answer": "no",
        "evidence_frames": [12, [30, 40]],
        "evidence_times": [1.5, [2, 3.5]],
        "duration": 12,
        "group": "mine",
    }
    write(tmp_path / "x.json", [CUSTOM, full])
    lines = "\n".join(json.dumps(entry, ensure_ascii=False) for entry in (CUSTOM, full))
    write(tmp_path / "x.jsonl", lines + "\n\n")
    for name in ("x.json", "x.jsonl"):
        labels = load_labels("custom", label_file=tmp_path / name)
        first, second = labels.questions
        assert labels.video_path(first.video) == tmp_path / "sub/my film.mp4"
        assert first.options == () and first.answer is None
        assert labels.video_path(second.video) == Path("/films/a.mkv")
        assert (second.id, second.text, second.answer, second.group) == ("7", full["question"], 1, "mine")
        assert second.evidence_frames == ((12, 12), (30, 40))
        assert second.evidence_times_s == ((1.5, 1.5), (2, 3.5))
    elsewhere = load_labels("custom", tmp_path / "videos", tmp_path / "x.json")
    assert elsewhere.video_path(first.video) == tmp_path / "videos/sub/my film.mp4"


@pytest.mark.parametrize("answer", [2, "C", "c", "three"])
def test_an_answer_may_be_an_index_a_letter_or_the_text(tmp_path, answer):
    entry = {**CUSTOM, "options": ["one", "two", "three"], "answer": answer}
    write(tmp_path / "x.json", [entry])
    assert load_labels("custom", label_file=tmp_path / "x.json").questions[0].answer == 2


def test_an_answer_is_an_option_s_text_before_it_is_a_letter(tmp_path):
    entries = [{**CUSTOM, "options": ["C", "B", "a"], "id": text, "answer": text} for text in "CBaAc"]
    write(tmp_path / "x.json", entries)
    questions = load_labels("custom", label_file=tmp_path / "x.json").questions
    assert [question.answer for question in questions] == [0, 1, 2, 0, 2]  # The last two are letters.


def without(entry, key):
    return {name: value for name, value in entry.items() if name != key}


@pytest.mark.parametrize(
    ("dataset", "content", "words"),
    [
        ("custom", "[{]", "not JSON"),
        ("custom", '{"id": 1}', "holds dict, not a list"),
        ("custom", "[]", "holds no entries"),
        ("custom", ["text"], "entry 0 is str"),
        ("custom", [CUSTOM, {"id": "r", "video": "v"}], "entry 1 .id r.: 'question' is missing"),
        ("custom", [{**CUSTOM, "question": "  "}], "entry 0 .*'question' is '  '"),
        ("custom", [{**CUSTOM, "question": 5}], "'question' is 5"),
        ("custom", [{**CUSTOM, "video": "a\0b"}], "'video'"),
        ("custom", [CUSTOM, CUSTOM], "entry 1 .*used by entry 0"),
        ("custom", [{**CUSTOM, "id": None}], "'id' is None"),
        ("custom", [{**CUSTOM, "id": True}], "'id' is True"),
        ("custom", [{**CUSTOM, "id": ""}], "'id' is ''"),
        ("custom", [{**CUSTOM, "video": "a\ud800"}], "'video'"),
        ("custom", [{**CUSTOM, "duration": 1e15}], "'duration' is 1000000000000000.0"),
        ("custom", [{**CUSTOM, "answer": -1}], "answer -1"),
        ("custom", [{**CUSTOM, "options": "a,b"}], "'options' is not a list"),
        ("custom", [{**CUSTOM, "options": ["a"], "answer": "B"}], "answer 'B'"),
        ("custom", [{**CUSTOM, "answer": True}], "answer True"),
        ("custom", [{**CUSTOM, "options": ["a"], "answer": "ß"}], "answer 'ß'"),
        ("custom", [{**CUSTOM, "duration": 10**400}], "'duration' is 1000"),
        ("custom", "[" * 100000, "not JSON"),
        ("custom", '[{"id": ' + "9" * 5000 + "}]", "not JSON"),
        ("custom", [{**CUSTOM, "evidence_times": [-1]}], "'evidence_times' holds -1"),
        ("custom", [{**CUSTOM, "evidence_times": [[3, 2]]}], "'evidence_times' holds .3, 2."),
        ("custom", [{**CUSTOM, "evidence_frames": 3}], "'evidence_frames' is not a list"),
        ("custom", [{**CUSTOM, "duration": "long"}], "'duration' is 'long'"),
        ("custom", [{**CUSTOM, "duration": -1}], "'duration' is -1"),
        ("longvideobench", [without(LVB, "candidates")], "entry 0 .*'candidates' is missing"),
        ("longvideobench", [without(LVB, "video_path")], "'video_path' is missing"),
        ("longvideobench", [{**LVB, "correct_choice": 2}], "answer 2"),
        ("videomme", [without(VIDEOMME, "question_id")], "'question_id' is missing"),
        ("videomme", [{**VIDEOMME, "answer": "E"}], "answer 'E'"),
        ("lvbench", [{**LVBENCH, "qa": {}}], "entry 0 .id a.: 'qa' is not a list of questions"),
        ("lvbench", [{**LVBENCH, "qa": []}], "holds no questions"),
        ("lvbench", [{**LVBENCH, "qa": ["?"]}], "'qa' is not a list of questions"),
        ("lvbench", [{**LVBENCH, "qa": [{"uid": "1"}]}], "entry 0 .id 1.: 'question' is missing"),
        ("lvbench", [LVBENCH, LVBENCH], "entry 2 .id 50.: id '50' was used by entry 0"),
        ("lvbench", [without(LVBENCH, "key")], "entry 0 .id 50.: 'key' is missing"),
        (
            "videomme_v2",
            [{**videomme_v2_rows()[0], "options": "A. a\nC. b"}],
            "options at A, C; it must have",
        ),
        ("videomme_v2", [{**videomme_v2_rows()[0], "options": ["A. a"]}], "'options' is .'A. a'."),
    ],
)
def test_a_wrong_entry_is_named_in_one_line(tmp_path, dataset, content, words):
    path = write(tmp_path / "labels.json", content)
    with pytest.raises(UserError, match=words) as caught:
        load_labels(dataset, tmp_path, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.json", b"", "empty"),
        ("x.jsonl", b"\n\n", "empty"),
        (
            "x.json.gz",
            gzip.compress(json.dumps([CUSTOM]).encode(), mtime=0),
            r"not UTF-8 text .byte 1.; unpack it if it is compressed",
        ),
        ("x.json", zlib.compress(b"[]"), "not UTF-8"),
        ("x.json", b"\xff\xfe\x00", "not UTF-8"),
        ("x.jsonl", json.dumps(CUSTOM).encode() + b"\n{oops\n", "line 2 is not JSON"),
        ("x.json", b"{}\n{}\n", r"one entry a line; give it the ending \.jsonl"),
        ("x.txt", b'{"id": 1}', r"one a line: name it \.jsonl"),
        ("x.jsonl", b"[{}]", r"holds a JSON list, not one entry a line; give it the ending \.json"),
    ],
)
def test_a_file_that_is_not_json_is_reported_with_its_remedy(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        load_labels("custom", label_file=tmp_path / name)
    assert "\n" not in str(caught.value)


def test_null_and_nan_are_missing_values_and_a_byte_order_mark_is_skipped(tmp_path):
    optional = ("options", "answer", "duration", "group", "evidence_frames", "evidence_times")
    (bare,) = load_labels("custom", label_file=write(tmp_path / "x.json", [CUSTOM])).questions
    for missing in (None, float("nan")):
        entry = json.dumps({**CUSTOM, **dict.fromkeys(optional, missing)})
        for name, text in (("y.json", f"[{entry}]"), ("y.jsonl", entry), ("y.JSONL", f"{entry}\n")):
            path = write(tmp_path / name, "\ufeff" + text)
            labels = load_labels("custom", label_file=path)
            assert labels.questions == [bare]
            assert labels.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("longvideobench", r"lvb_val\.json: label file not found"),
        ("lvb", "--dataset_name lvb: unknown data set"),
        ("custom", "needs --label_file"),
    ],
)
def test_a_missing_label_file_or_an_unknown_data_set_is_reported(tmp_path, dataset, words):
    with pytest.raises(UserError, match=words):
        load_labels(dataset, tmp_path)


def test_the_real_label_files_are_read_whole(reference):
    longvideobench = load_labels("longvideobench", label_file=reference / "longvideobench/lvb_val.json")
    assert (len(longvideobench.questions), len(longvideobench.jobs)) == (1337, 753)
    assert all(q.evidence_frames and q.answer is not None for q in longvideobench.questions)
    videomme = load_labels("videomme", label_file=reference / "videomme/videomme.json")
    assert (len(videomme.questions), len(videomme.jobs)) == (2700, 900)
    assert all(len(q.options) == 4 and q.answer is not None for q in videomme.questions)


def make_labels(run_script, source, output, **options):
    """Run the script that turns VideoMME's parquet file, or a table of its rows, into a label file."""
    if not isinstance(source, Path):
        table, source = source, output.with_suffix(".parquet")
        pyarrow.parquet.write_table(table, source)
    return run_script("datasets/videomme/make_labels.py", source, "--output", output, **options)


def test_the_official_parquet_becomes_the_published_label_file(tmp_path, reference, run_script):
    published = json.loads((reference / "videomme/videomme.json").read_text())
    output = tmp_path / "videomme.json"
    done = make_labels(run_script, pyarrow.Table.from_pylist(published), output, fresh=True)
    assert done.returncode == 0, done.stderr
    assert "2700 questions on 900 videos" in done.stdout
    assert json.loads(output.read_text()) == published


@pytest.mark.parametrize(
    ("row", "question_id"),
    [
        ({"extra": 1, **dict(reversed(VIDEOMME.items()))}, "001-1"),
        (
            {
                **VIDEOMME,
                "question": VIDEOMME["question"].encode(),
                "options": json.dumps(VIDEOMME["options"]),
                "question_id": 7,
            },
            "7",
        ),
    ],
    ids=["other columns", "other types"],
)
def test_parquet_of_another_form_becomes_the_same_labels(tmp_path, run_script, row, question_id):
    output = tmp_path / "videomme.json"
    done = make_labels(run_script, pyarrow.Table.from_pylist([row]), output)
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(output.read_text())
    assert list(entry.items()) == list({**VIDEOMME, "question_id": question_id}.items())
    assert load_labels("videomme", label_file=output).questions[0].id == question_id


def rows(*entries):
    return pyarrow.Table.from_pylist(list(entries))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (rows(VIDEOMME, VIDEOMME), "row 1 repeats question_id '001-1'"),
        (rows(VIDEOMME).slice(0, 0), "holds no questions"),
        (rows(without(VIDEOMME, "answer")), "no column 'answer'"),
        (rows({**VIDEOMME, "options": [None, "B. Two."]}), "row 0, 'options': None is no text"),
        (rows({**VIDEOMME, "options": "A. One."}), "row 0, 'options': Expecting value"),
        (rows({**VIDEOMME, "options": "4"}), "row 0, 'options': 4 is no list"),
        (rows({**VIDEOMME, "question": b"\xff"}), "row 0, 'question': 'utf-8' codec"),
        (rows({**VIDEOMME, "question_id": ["1"]}), "row 0, 'question_id': ['1'] is no text"),
        (rows({**VIDEOMME, "videoID": 1.5}), "row 0, 'videoID': 1.5 is no text"),
        (Path(__file__), "cannot be read as parquet"),
        (Path("absent.parquet"), "file not found"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_parquet_file_is_reported_in_one_line(tmp_path, run_script, table, words):
    output = tmp_path / "videomme.json"
    done = make_labels(run_script, table, output)
    check_mistake(done, words)
    assert not output.exists()


def test_the_readme_has_every_section_that_a_file_names():
    root = Path(__file__).parent.parent
    headings = re.findall(r"^#+ (.*)$", (root / "README.md").read_text(), flags=re.MULTILINE)
    sources = [path for pattern in ("datasets/**/*", "evaluation/**/*") for path in root.glob(pattern)]
    named = {
        name: path
        for path in sources
        if path.suffix in (".yaml", ".sh", ".md", ".py")
        for name in re.findall(r'README, "([^"]+)"', path.read_text())
    }
    assert named
    for name, path in named.items():
        assert any(heading.startswith(name) for heading in headings), f"{path}: {name}"
