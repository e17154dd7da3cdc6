"""environment.sh, its lock and test.sh: what is installed, what is reported, which tests run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import install_requirements
from check_environment import find_deviations, read_pins

ROOT = Path(__file__).parent.parent
LOCKED = sorted(
    path
    for path in ROOT.glob("requirements*.txt")
    if not any(word in path.name for word in ("nodeps", "conse", "torchvision", "uv", "newer"))
)


def read_requirements(path: Path) -> list[Requirement]:
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


def test_the_lock_pins_every_requirement_and_names_no_index():
    locked = {canonicalize_name(entry.name): entry for entry in read_requirements(ROOT / "constraints.txt")}
    for path in LOCKED:
        for wanted in read_requirements(path):
            (pin,) = locked[canonicalize_name(wanted.name)].specifier
            assert pin.operator == "==" and wanted.specifier.contains(pin.version), f"{path.name}: {wanted}"
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text and "--" not in text  # no package index


PINS = {
    "filelock": ["==3.32.7"],
    "llava": [" @ git+https://github.com/LLaVA-VL/LLaVA-NeXT.git@df17"],
    "torch": ["==2.13.0"],
    "torchvision": ["==0.16.2", "==0.28.0"],
    "typing-extensions": ["==4.16.0"],
}


def test_a_changed_version_is_named_with_its_remedy():
    pins = read_pins()
    frozen = [f"{name}{pin[0]}" for name, pin in pins.items()]
    assert find_deviations(frozen, pins) == []
    frozen[frozen.index(f"filelock{pins['filelock'][0]}")] = "filelock==4.3.1"
    (line,) = find_deviations(frozen, pins)
    wanted = pins["filelock"][0]
    assert line == f"filelock==4.3.1: wanted {wanted}; run: pip install --no-deps 'filelock{wanted}'"


@pytest.mark.parametrize(
    ("line", "accepted"),
    [
        ("torch==2.13.0+cpu", True),
        ("torchvision==0.16.2", True),
        ("torchvision==0.28.0+cu130", True),
        ("torchvision==0.17.0", False),
        ("Typing_Extensions==4.16.0", True),
        ("llava @ git+https://github.com/LLaVA-VL/LLaVA-NeXT.git@df17", True),
        ("llava @ git+https://github.com/LLaVA-VL/LLaVA-NeXT.git@0000", False),
        ("ipython==9.1", False),
        ("-e /somewhere/else", False),
    ],
)
def test_every_build_of_a_pinned_version_is_accepted_and_nothing_else(line, accepted):
    assert (find_deviations([line], PINS) == []) == accepted


def test_pins_of_an_override_take_the_others_place(tmp_path):
    (tmp_path / "constraints.txt").write_text("one==1\ntwo==2\n")
    (tmp_path / "requirements-newer.txt").write_text("one==3\n")
    assert read_pins(tmp_path) == {"one": ["==1"], "two": ["==2"]}
    assert read_pins(tmp_path, "requirements-newer.txt") == {"one": ["==3"], "two": ["==2"]}


PYTHON = """#!/usr/bin/env bash
case "$*" in *install_requirements.py*)
    echo "${*:2}" >>installations
    for line in {1..50}; do echo "chatter $line"; done
    echo "a warning" >&2
    [ ! -e fail ]
esac
"""


@pytest.fixture
def environment_for(tmp_path):
    """Runs environment_for in a project of two requirement files, with a stand-in for Python.

    It returns the finished process and the arguments of each installation.
    """
    for name in ("environment.sh", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "requirements.txt").write_text("one==1\n")
    (tmp_path / "requirements-two.txt").write_text("two==2\n")
    (tmp_path / "requirements-uv.txt").write_text("uv==3\n")
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)

    def run() -> tuple[subprocess.CompletedProcess[str], list[str]]:
        (tmp_path / "installations").write_text("")
        command = "set -euo pipefail; source ./environment.sh; "
        command += "environment_for requirements.txt nodeps:requirements-two.txt"
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
        return done, (tmp_path / "installations").read_text().splitlines()

    return run


def test_uv_is_installed_first_and_every_file_is_reported(environment_for):
    done, calls = environment_for()
    assert done.returncode == 0 and done.stdout == ""
    files = ["requirements-uv.txt", "requirements.txt", "requirements-two.txt"]
    assert done.stderr.splitlines() == [f"installing {n} of 3: {file}" for n, file in enumerate(files, 1)]
    assert calls == [f"-r {files[0]}", f"-r {files[1]}", f"--no-deps -r {files[2]}"]


def test_a_file_is_installed_again_when_it_or_the_lock_changes(environment_for, tmp_path):
    environment_for()
    assert environment_for()[1] == []
    (tmp_path / "requirements-two.txt").write_text("two==3\n")
    done, calls = environment_for()
    assert done.stderr == "installing 1 of 1: requirements-two.txt\n" and len(calls) == 1
    (tmp_path / "constraints.txt").write_text("three==3\n")
    assert len(environment_for()[1]) == 3
    assert environment_for()[1] == []


def test_an_override_is_installed_last_again_and_in_a_folder_of_its_own(environment_for, tmp_path):
    (tmp_path / "requirements-three.txt").write_text("one==3\n")
    (tmp_path / ".venv").rename(tmp_path / ".venv-newer")
    command = "set -euo pipefail; source ./environment.sh; environment_name=.venv-newer environment_for "
    command += (
        "requirements.txt nodeps:requirements-two.txt override:requirements-three.txt; echo $VIRTUAL_ENV"
    )

    def installations() -> list[str]:
        (tmp_path / "installations").write_text("")
        venv = subprocess.check_output(["bash", "-c", command], cwd=tmp_path, text=True)
        assert venv == f"{tmp_path / '.venv-newer'}\n" and not (tmp_path / ".venv").exists()
        return (tmp_path / "installations").read_text().splitlines()

    override = "--override -r requirements-three.txt"
    assert installations()[2:] == ["--no-deps -r requirements-two.txt", override]
    assert installations() == []
    (tmp_path / "requirements.txt").write_text("one==2\n")  # puts back what the override replaced
    assert installations() == ["-r requirements.txt", override]


def test_a_failed_installation_shows_the_end_of_its_output_and_names_the_log(environment_for, tmp_path):
    (tmp_path / "fail").touch()
    for _ in range(2):  # A file whose installation failed is tried again.
        done, calls = environment_for()
        assert done.returncode == 1
        assert calls == ["-r requirements-uv.txt", "-r requirements.txt"]  # Without uv, pip installs.
        assert "chatter 50\na warning\nerror: requirements.txt could not be installed" in done.stderr
        assert "chatter 9\n" not in done.stderr and str(tmp_path / ".venv/pip.log") in done.stderr


@pytest.mark.parametrize(("uv", "tools"), [("a module", ["uv", "pip"]), (None, ["pip"])])
def test_pip_installs_where_uv_fails_or_is_missing_and_both_obey_the_lock(monkeypatch, uv, tools):
    calls = []

    def run(command, env):
        """Fail for every command but pip's."""
        calls.append((command, env))
        return subprocess.CompletedProcess(command, command[2] != "pip")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(install_requirements, "uv_options", lambda: [])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: uv)
    monkeypatch.chdir(ROOT)  # The function changes the folder; this restores it.
    assert install_requirements.main(["--no-deps", "-r", "two.txt"]) == 0
    assert [command[2] for command, _ in calls] == tools
    for command, env in calls:
        assert command[-3:] == ["--no-deps", "-r", "two.txt"]
        tool = command[2].upper()
        assert env[f"{tool}_CONSTRAINT"] == env[f"{tool}_BUILD_CONSTRAINT"] == "constraints.txt"


def test_an_override_is_its_own_lock(monkeypatch):
    calls = []

    def run(command, env):
        calls.append((command, env))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(install_requirements, "uv_options", lambda: [])
    monkeypatch.chdir(ROOT)  # The function changes the folder; this restores it.
    assert install_requirements.main(["--override", "-r", "newer.txt"]) == 0
    ((command, env),) = calls
    assert command[-3:] == ["--no-deps", "-r", "newer.txt"]
    assert env["UV_CONSTRAINT"] == env["PIP_CONSTRAINT"] == env["UV_BUILD_CONSTRAINT"] == "newer.txt"


def test_uv_gets_pip_s_indexes_and_local_wheels(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://one.example https://two.example")
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "mirror.example")
    monkeypatch.setenv("PIP_NO_INDEX", "False")
    monkeypatch.setenv("PIP_QUIET", "1")
    monkeypatch.setenv("PIP_VERBOSE", "1")
    options = install_requirements.uv_options()
    assert list(zip(options[::2], options[1::2], strict=True)) == [
        ("--default-index", "https://mirror.example/simple"),
        ("--extra-index-url", "https://one.example"),
        ("--extra-index-url", "https://two.example"),
        ("--find-links", "/wheels"),
        ("--allow-insecure-host", "mirror.example"),
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["-n", "2"]),
        (["-k", "selection"], ["-m", "not slow", "-k", "selection"]),
        (["tests/video", "-x"], ["tests/video", "-x"]),
    ],
)
def test_test_sh_runs_all_tests_in_several_processes_and_chosen_ones_in_one(tmp_path, arguments, expected):
    (tmp_path / "test.sh").write_text((ROOT / "test.sh").read_text())
    (tmp_path / "environment.sh").write_text(
        "environment_for() { :; }; environment_torchvision() { :; }; ruff() { :; }; nproc() { echo 2; }\n"
        "python() { printf '%s\\n' \"$@\" >arguments; }\n"
    )
    subprocess.run(["bash", "test.sh", *arguments], cwd=tmp_path, check=True)
    assert (tmp_path / "arguments").read_text().splitlines() == ["-m", "pytest", *expected]


@pytest.mark.parametrize(("cuda", "build"), [("13.0", "cuda"), (None, "cpu")])
def test_torchvision_fits_the_installed_torch(tmp_path, cuda, build):
    (tmp_path / "environment.sh").write_text((ROOT / "environment.sh").read_text())
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise ImportError('slow')")
    (tmp_path / "torch/version.py").write_text(f"cuda = {cuda!r}\n")
    command = f'source ./environment.sh; python() {{ {sys.executable} "$@"; }}; '
    command += "environment_for() { echo $1; }; environment_torchvision"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    output = subprocess.check_output(["bash", "-c", command], cwd=tmp_path, env=env, text=True)
    assert output == f"nodeps:requirements-torchvision-{build}.txt\n"
