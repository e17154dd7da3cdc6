"""The flags' defaults and forms: the number of decoding workers, and the shard."""

from __future__ import annotations

import builtins
import importlib
import io
import logging
import os
import pkgutil
import subprocess
import sys

import pytest
from conftest import ROOT, check_mistake

from aks import __main__, cli
from aks.console import configure_logging, progress
from evaluation import frame_policy


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 64), ("250000 100000", 3), ("50000 100000", 1)])
def test_a_container_s_quota_bounds_the_cores(monkeypatch, quota, cores):
    def open_quota(path, *arguments, open=open, **options):
        return io.StringIO(quota) if path == "/sys/fs/cgroup/cpu.max" else open(path, *arguments, **options)

    def exists(path, exists=os.path.exists):
        return "cpu.max" in str(path) or exists(path)

    monkeypatch.setattr(os.path, "exists", exists)
    monkeypatch.setattr(builtins, "open", open_quota)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert cli.count_cores() == cores
    args = cli.build_parser(None, "out").parse_args([])
    assert cli.decode_settings(args)["workers"] == min(max(cores - 1, 1), 16)


@pytest.mark.parametrize(("text", "shard"), [("1/1", (1, 1)), ("1/3", (1, 3)), ("3/3", (3, 3))])
def test_shards_count_from_one(monkeypatch, text, shard):
    monkeypatch.delenv("RANK", raising=False)  # torchrun sets it.
    assert cli.parse_shard(cli.build_parser(None, "out").parse_args(["--shard", text])) == shard


@pytest.mark.parametrize(("value", "workers"), [("", 7), ("0", 7), ("2", 3), ("many", 7)])
def test_processes_on_one_machine_share_its_cores(monkeypatch, value, workers):
    for name, number in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": value,
    }.items():
        monkeypatch.setenv(name, number)
    monkeypatch.setattr(cli, "count_cores", lambda: 8)
    assert cli.count_workers(cli.build_parser(None, "out").parse_args([])) == workers
    monkeypatch.setattr(frame_policy, "count_cores", lambda: 8)
    assert frame_policy._num_threads() == (4 if value == "2" else 8)


SCRIPTS = {
    "keyframes": "keyframes",
    "extract": "feature_extract",
    "store": "feature_extract_store",
    "select": "frame_select",
}


@pytest.mark.parametrize("name", __main__.COMMANDS)
def test_every_command_of_aks_tells_its_usage(monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "argv", ["aks", name, "--help"])
    with pytest.raises(SystemExit) as end:
        __main__.main()
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: aks {name} ")
    if name in SCRIPTS:
        assert (
            importlib.import_module(SCRIPTS[name]).main is pkgutil.resolve_name(f"aks.commands.{name}").main
        )


def test_aks_lists_its_commands_and_names_an_unknown_one(run_script):
    for arguments in ([], ["-h"], ["--help"]):
        done = run_script("-m", "aks", *arguments)
        assert done.returncode == 0 and done.stderr == ""
        assert [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")] == [
            *__main__.COMMANDS
        ]
    check_mistake(
        run_script("-m", "aks", "choose"), "aks choose: no such command; use one of keyframes, cache"
    )
    check_mistake(run_script("-m", "aks", "select", "--t1", "nan"), "error: aks select: t1 and t2 must be")
    check_mistake(run_script("frame_select.py", "--t1", "nan"), "error: frame_select.py: t1 and t2 must be")
    usage = run_script("-m", "aks.recall", "--help").stdout
    assert usage.startswith("usage: python -m aks.recall ")


def test_aks_imports_numpy_no_sooner_than_a_command_that_needs_it():
    code = "import sys, aks.__main__; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split()
    assert "aks.__main__" in modules and not {"numpy", "aks.selection", "aks.commands.select"} & set(modules)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("keyframes.py", ["README.md", "a cat"]),  # no video
        ("keyframes.py", ["README.md", " "]),
        ("keyframes.py", ["README.md", "a cat", "--strategy", "mdp3", "--option", "gamma=1"]),
        ("feature_extract.py", ["--dataset_name", "custom", "--label_file", "README.md"]),
        ("feature_extract_store.py", ["--blip_features", "itc", "--extract_feature_model", "clip"]),
    ],
)
def test_a_mistake_is_told_before_torch_is_loaded(script, words):
    code = (
        "import runpy, sys; sys.argv[:] = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, script, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == "2 False\n" and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR])
def test_a_bar_is_shown_at_once_in_a_terminal_and_elsewhere_after_a_minute(
    monkeypatch, capsys, is_terminal, level
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    monkeypatch.setattr(logging.getLogger("aks"), "level", level)
    monkeypatch.setattr(logging.getLogger("aks"), "handlers", [])
    configure_logging(level)
    with progress(total=3, unit="frame") as bar:
        bar.reset(total=5)
        logging.getLogger("aks").error("a line")
        bar.start_t = getattr(bar, "start_t", 0) - 50  # a hidden bar has none
        bar.update()
        bar.refresh()
        shown = capsys.readouterr().err
        assert ("frame/s" in shown) == (is_terminal and level == logging.WARNING) and "a line" in shown
        bar.start_t -= 20
        bar.refresh()
        assert ("1/5" in capsys.readouterr().err) == (level == logging.WARNING)
