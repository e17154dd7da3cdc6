"""The help of every script, and what is said about a wrong flag, name or file."""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from aks import __main__, cli, errors
from aks.arguments import ArgumentParser
from aks.errors import UserError
from aks.jsonio import read_json
from aks.labels import load_labels

SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in (".", "evaluation", "datasets/*")
    for path in ROOT.glob(f"{folder}/*.py")
    if "run_main(" in path.read_text(encoding="utf-8") and path.name != "parquet_labels.py"
)
MOST_FLAGS_IN_ONE_LIST = 8


def start(monkeypatch, name: str, words: list[str]) -> None:
    """Run a command of ``aks``, a script or a module (``-m aks.recall``) in this process."""
    if name in __main__.COMMANDS:
        monkeypatch.setattr(sys, "argv", ["aks", name, *words])
        __main__.main()
    elif name.startswith("-m "):
        monkeypatch.setattr(sys, "argv", [name, *words])
        importlib.import_module(name.removeprefix("-m ")).main()
    else:
        monkeypatch.setattr(sys, "argv", [str(ROOT / name), *words])
        monkeypatch.setattr(sys, "path", [*sys.path])  # some scripts add to it
        monkeypatch.setattr(errors, "run_main", lambda main: main())
        runpy.run_path(str(ROOT / name), run_name="__main__")


@pytest.mark.parametrize("name", [*__main__.COMMANDS, *SCRIPTS])
def test_every_help_groups_its_flags_and_ends_with_two_examples_that_are_right(monkeypatch, capsys, name):
    with pytest.raises(SystemExit):
        start(monkeypatch, name, ["--help"])
    flags, _, examples = capsys.readouterr().out.partition("\nexamples:\n\n")
    in_one_list = flags.partition("\noptions:\n")[2].partition("\n\n")[0]
    assert len(re.findall("^  -", in_one_list, re.MULTILINE)) <= MOST_FLAGS_IN_ONE_LIST
    lines = examples.replace("\\\n", " ").strip().splitlines()
    assert len(lines) >= 2

    class Parsed(Exception):
        pass

    def parse_args(self, *arguments, parse_args=ArgumentParser.parse_args):
        parse_args(self, *arguments)
        raise Parsed

    monkeypatch.setattr(ArgumentParser, "parse_args", parse_args)
    for line in lines:
        _, called, *words = shlex.split(line)
        assert Path(called).stem == Path(name).stem
        with pytest.raises(Parsed):
            start(monkeypatch, name, words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strateg=top"], "unrecognized argument --strateg=top; did you mean --strategy?"),
        (["--zzz", "1"], r"unrecognized argument --zzz \(see"),
        (
            ["--strategy", "bold"],
            r"--strategy: invalid choice: 'bold' \(choose from .*\); did you mean bolt\?",
        ),
        (["--quota", "zzz"], r"--quota: invalid choice: 'zzz' \(choose from [^;]*\) \(see --help"),
        (["--option", "sed=1", "--strategy", "gumbel"], "option 'sed': strategy gumbel has .*seed"),
    ],
)
def test_a_wrong_flag_is_named_with_the_nearest_right_one(monkeypatch, words, message):
    with pytest.raises(UserError, match=message):
        start(monkeypatch, "select", words)


def test_a_wrong_name_is_named_with_the_nearest_right_one(monkeypatch, tmp_path):
    (tmp_path / "labels.json").write_text('[{"vdeo": "a.mp4", "question": "What?"}]')
    with pytest.raises(UserError, match=r"label.json: file not found; did you mean labels.json\?"):
        read_json(tmp_path / "label.json")
    with pytest.raises(UserError, match=r"label file not found; .*; did you mean labels.json\?"):
        load_labels("custom", label_file=tmp_path / "labls.json")
    with pytest.raises(UserError, match=r"'video' is missing; did you mean vdeo\?"):
        load_labels("custom", label_file=tmp_path / "labels.json")
    with pytest.raises(UserError, match=r"unknown data set; use one of .*; did you mean videomme\?"):
        load_labels("video-mme")
    with pytest.raises(
        UserError, match=r"no such command; use one of .*; did you mean select\? \(aks --help"
    ):
        monkeypatch.setattr(sys, "argv", ["aks", "selct"])
        __main__.main()
    with pytest.raises(UserError, match=r"file not found$"):
        read_json(tmp_path / "nowhere/labels.json")


@pytest.mark.parametrize("name", ["extract", "store"])
def test_an_interrupted_extraction_keeps_finished_videos(monkeypatch, name):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("aks.cli.load_labels_from_args", interrupt)
    with pytest.raises(KeyboardInterrupt) as interrupted:
        start(monkeypatch, name, [])
    (note,) = interrupted.value.__notes__
    assert note.startswith("finished videos are kept")


@pytest.mark.parametrize(
    ("note", "said"), [(None, "run the same command again"), ("all is kept", "all is kept")]
)
def test_an_interrupt_says_what_is_kept(capsys, note, said):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        errors.run_main(errors.when_interrupted(note)(main) if note else main)
    assert end.value.code == 130 and capsys.readouterr().err == f"interrupted; {said}\n"


@pytest.mark.parametrize("name", ["extract", "store"])
def test_an_interrupted_extraction_says_that_finished_videos_are_kept(monkeypatch, name):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load_labels_from_args", interrupt)
    with pytest.raises(KeyboardInterrupt) as end:
        start(monkeypatch, name, [])
    assert end.value.__notes__ == ["finished videos are kept, the same command goes on with the others"]
