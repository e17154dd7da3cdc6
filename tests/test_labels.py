"""Label files: the three formats, the real files, and one clear line for every mistake."""

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
CUSTOM = {"id": "q", "video": "sub/my film.mp4", "question": "Where is the dog?"}


def write(path: Path, data) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_longvideobench(tmp_path):
    write(tmp_path / "lvb_val.json", [LVB])
    labels = load_labels("longvideobench", tmp_path)
    (question,) = labels.questions
    assert labels.video_path(question.video) == tmp_path / "videos/abc.mp4"
    assert (question.id, question.text, question.answer) == ("abc_0", "What is on the table?", 1)
    assert question.options_prompt == "A. a cup B. a book "
    assert (question.group, question.duration_s) == ("600", 321.5)
    assert question.evidence_frames == ((100, 100), (250, 250))


def test_videomme(tmp_path):
    write(tmp_path / "videomme.json", [VIDEOMME])
    labels = load_labels("videomme", tmp_path)
    (question,) = labels.questions
    assert labels.video_path(question.video) == tmp_path / "data/abc.mp4"
    assert (question.id, question.answer, question.group) == ("001-1", 2, "short")
    assert question.options_prompt == "A. One.B. Two.C. Three.D. Four."


def test_videomme_s_videos_may_have_the_endings_that_upstream_allows(tmp_path):
    names = {"a": "a.mp4", "b": "b.MP4", "c.1": "c.1.mkv"}
    entries = [{**VIDEOMME, "question_id": name, "videoID": name} for name in (*names, "absent")]
    write(tmp_path / "videomme.json", entries)
    for name in names.values():
        write(tmp_path / "data" / name, "-")
    labels = load_labels("videomme", tmp_path)
    found = [labels.video_path(question.video).name for question in labels.questions]
    assert found == [*names.values(), "absent.mp4"]


def test_ones_own_data_as_json_and_as_lines(tmp_path):
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


def test_an_answer_that_is_an_option_s_text_is_no_letter(tmp_path):
    entries = [{**CUSTOM, "options": ["C", "B", "a"], "id": text, "answer": text} for text in "CBaAc"]
    write(tmp_path / "x.json", entries)
    questions = load_labels("custom", label_file=tmp_path / "x.json").questions
    assert [question.answer for question in questions] == [0, 1, 2, 0, 2]  # the last two are letters


def without(entry, key):
    return {name: value for name, value in entry.items() if name != key}


@pytest.mark.parametrize(
    ("dataset", "content", "words"),
    [
        ("custom", "[{]", "not JSON"),
        ("custom", '{"id": 1}', "holds dict, not a list"),
        ("custom", "[]", "holds no entries"),
        ("custom", ["text"], "entry 0 is str"),
        (
            "custom",
            [CUSTOM, without({**CUSTOM, "id": "r"}, "question")],
            "entry 1 .id r.: 'question' is missing",
        ),
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
    ],
)
def test_a_bad_label_file_is_told_in_one_line(tmp_path, dataset, content, words):
    path = write(tmp_path / "labels.json", content)
    with pytest.raises(UserError, match=words) as caught:
        load_labels(dataset, tmp_path, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_line_of_a_jsonl_file_is_named(tmp_path):
    path = write(tmp_path / "x.jsonl", json.dumps(CUSTOM) + "\n{oops\n")
    with pytest.raises(UserError, match="line 2 is not JSON"):
        load_labels("custom", label_file=path)


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
        ("x.json", b"{}\n{}\n", r"one entry a line; give it the ending \.jsonl"),
        ("x.txt", b'{"id": 1}', r"one a line: name it \.jsonl"),
        ("x.jsonl", b"[{}]", r"holds a JSON list, not one entry a line; give it the ending \.json"),
    ],
)
def test_what_is_wrong_with_the_form_of_a_label_file_is_said(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        load_labels("custom", label_file=tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_value_may_be_null_or_nan_and_the_file_begin_with_a_byte_order_mark(tmp_path):
    optional = ("options", "answer", "duration", "group", "evidence_frames", "evidence_times")
    (bare,) = load_labels("custom", label_file=write(tmp_path / "x.json", [CUSTOM])).questions
    for missing in (None, float("nan")):
        entry = json.dumps({**CUSTOM, **dict.fromkeys(optional, missing)})
        for name, text in (("y.json", f"[{entry}]"), ("y.jsonl", entry), ("y.JSONL", f"{entry}\n")):
            path = write(tmp_path / name, "\ufeff" + text)
            labels = load_labels("custom", label_file=path)
            assert labels.questions == [bare]
            assert labels.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_missing_files_and_unknown_names(tmp_path):
    with pytest.raises(UserError, match=r"lvb_val\.json: label file not found"):
        load_labels("longvideobench", tmp_path)
    with pytest.raises(UserError, match="--dataset_name lvb: unknown data set"):
        load_labels("lvb", tmp_path)
    with pytest.raises(UserError, match="needs --label_file"):
        load_labels("custom", tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        load_labels("custom", label_file=tmp_path / "binary.json")


def test_the_real_label_files(reference):
    longvideobench = load_labels("longvideobench", label_file=reference / "longvideobench/lvb_val.json")
    assert (len(longvideobench.questions), len(longvideobench.jobs)) == (1337, 753)
    assert all(q.evidence_frames and q.answer is not None for q in longvideobench.questions)
    videomme = load_labels("videomme", label_file=reference / "videomme/videomme.json")
    assert (len(videomme.questions), len(videomme.jobs)) == (2700, 900)
    assert all(len(q.options) == 4 and q.answer is not None for q in videomme.questions)


def test_the_official_parquet_becomes_the_published_label_file(tmp_path, reference, run_script):
    published = reference / "videomme/videomme.json"
    table = pyarrow.Table.from_pylist(json.loads(published.read_text()))
    pyarrow.parquet.write_table(table, tmp_path / "test.parquet")
    done = run_script(
        "datasets/videomme/make_labels.py",
        tmp_path / "test.parquet",
        "--output",
        tmp_path / "videomme.json",
        fresh=True,
    )
    assert done.returncode == 0, done.stderr
    assert "2700 questions on 900 videos" in done.stdout
    assert json.loads((tmp_path / "videomme.json").read_text()) == json.loads(published.read_text())


def test_parquet_to_labels_and_its_errors(tmp_path, run_script):
    # Columns in another order, one too many: the label file has exactly the documented ones.
    rows = [{"extra": 1, **dict(reversed(VIDEOMME.items()))}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "good.parquet")
    output = tmp_path / "videomme.json"
    done = run_script("datasets/videomme/make_labels.py", tmp_path / "good.parquet", "--output", output)
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(output.read_text())
    assert list(entry.items()) == list(VIDEOMME.items())
    assert load_labels("videomme", label_file=output).questions[0].id == "001-1"

    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([without(VIDEOMME, "answer")]), tmp_path / "short.parquet"
    )
    (tmp_path / "text.parquet").write_text("no parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([VIDEOMME] * 2), tmp_path / "twice.parquet")
    none = pyarrow.Table.from_pylist([VIDEOMME]).slice(0, 0)
    pyarrow.parquet.write_table(none, tmp_path / "none.parquet")
    for name, words in [
        ("twice.parquet", "row 1 repeats question_id '001-1'"),
        ("none.parquet", "holds no questions"),
        ("short.parquet", "no column 'answer'"),
        ("text.parquet", "cannot be read as parquet"),
        ("absent.parquet", "file not found"),
    ]:
        done = run_script("datasets/videomme/make_labels.py", tmp_path / name, "--output", output)
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def parquet_to_labels(tmp_path, run_script, **fields):
    path, output = tmp_path / "x.parquet", tmp_path / "videomme.json"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{**VIDEOMME, **fields}]), path)
    return run_script("datasets/videomme/make_labels.py", path, "--output", output), output


def test_parquet_with_text_stored_otherwise_becomes_the_same_labels(tmp_path, run_script):
    otherwise = {"question": VIDEOMME["question"].encode(), "options": json.dumps(VIDEOMME["options"])}
    done, output = parquet_to_labels(tmp_path, run_script, **otherwise, question_id=7)
    assert done.returncode == 0, done.stderr
    assert json.loads(output.read_text()) == [{**VIDEOMME, "question_id": "7"}]
    assert load_labels("videomme", label_file=output).questions[0].id == "7"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"options": [None, "B. Two."]}, "row 0, 'options': None is no text"),
        ({"options": "A. One."}, "row 0, 'options': Expecting value"),
        ({"options": "4"}, "row 0, 'options': 4 is no list"),
        ({"question": b"\xff"}, "row 0, 'question': 'utf-8' codec"),
        ({"question_id": ["1"]}, "row 0, 'question_id': ['1'] is no text"),
        ({"videoID": 1.5}, "row 0, 'videoID': 1.5 is no text"),
    ],
)
def test_a_parquet_cell_that_is_no_text_is_named(tmp_path, run_script, fields, words):
    done, output = parquet_to_labels(tmp_path, run_script, **fields)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
    assert not output.exists()


def test_a_section_of_the_readme_that_a_file_names_is_there():
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
