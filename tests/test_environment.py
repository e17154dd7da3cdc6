"""environment.sh and its lock: what is installed, and what a user is told of it."""

from __future__ import annotations

import importlib.util
import subprocess
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
    if not any(word in path.name for word in ("nodeps", "conse", "torchvision", "uv"))
)


def requirements(path: Path) -> list[Requirement]:
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


def test_the_lock_holds_what_the_requirement_files_ask_for():
    locked = {canonicalize_name(entry.name): entry for entry in requirements(ROOT / "constraints.txt")}
    for path in LOCKED:
        for wanted in requirements(path):
            (pin,) = locked[canonicalize_name(wanted.name)].specifier
            assert pin.operator == "==" and wanted.specifier.contains(pin.version), f"{path.name}: {wanted}"


def test_the_lock_names_no_index():
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text and "--" not in text


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
def test_builds_of_a_version_are_alike_and_what_nothing_pins_is_named(line, accepted):
    assert (find_deviations([line], PINS) == []) == accepted


PIP = """#!/usr/bin/env bash
case "$*" in *install_requirements.py*)
    echo "${*:2}" >>pip-calls
    for line in {1..50}; do echo "chatter $line"; done
    echo "a warning" >&2
    [ ! -e fail ]
esac
"""


@pytest.fixture
def environment_for(tmp_path):
    """Runs environment.sh's function in a project of two requirement files, with a stand-in for Python."""
    for name in ("environment.sh", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "requirements.txt").write_text("one==1\n")
    (tmp_path / "requirements-two.txt").write_text("two==2\n")
    (tmp_path / "requirements-uv.txt").write_text("uv==3\n")
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PIP)
    python.chmod(0o755)

    def run() -> tuple[subprocess.CompletedProcess[str], list[str]]:
        (tmp_path / "pip-calls").write_text("")
        command = "set -euo pipefail; source ./environment.sh; "
        command += "environment_for requirements.txt nodeps:requirements-two.txt"
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
        return done, (tmp_path / "pip-calls").read_text().splitlines()

    return run


def test_uv_is_installed_first_and_what_is_installed_is_told(environment_for):
    done, calls = environment_for()
    assert done.returncode == 0 and done.stdout == ""
    files = ["requirements-uv.txt", "requirements.txt", "requirements-two.txt"]
    assert done.stderr.splitlines() == [f"installing {n} of 3: {file}" for n, file in enumerate(files, 1)]
    assert calls == [f"-r {files[0]}", f"-r {files[1]}", f"--no-deps -r {files[2]}"]


def test_what_is_there_is_installed_again_where_a_file_or_the_lock_changed(environment_for, tmp_path):
    environment_for()
    assert environment_for()[1] == []
    (tmp_path / "requirements-two.txt").write_text("two==3\n")
    done, calls = environment_for()
    assert done.stderr == "installing 1 of 1: requirements-two.txt\n" and len(calls) == 1
    (tmp_path / "constraints.txt").write_text("three==3\n")
    assert len(environment_for()[1]) == 3
    assert environment_for()[1] == []


def test_where_pip_fails_the_end_of_its_output_is_shown_and_the_log_named(environment_for, tmp_path):
    (tmp_path / "fail").touch()
    for _ in range(2):  # what failed counts as not installed
        done, calls = environment_for()
        # Where uv cannot be installed, pip installs the others.
        assert done.returncode == 1 and [call.split()[-1] for call in calls] == [
            "requirements-uv.txt",
            "requirements.txt",
        ]
        assert "chatter 50\na warning\nerror: requirements.txt could not be installed" in done.stderr
        assert "chatter 9\n" not in done.stderr and str(tmp_path / ".venv/pip.log") in done.stderr


@pytest.fixture
def installations(monkeypatch):
    """Commands of install_requirements.py and their environments; all fail that are not pip's."""
    calls = []

    def run(command, env):
        calls.append((command, env))
        return subprocess.CompletedProcess(command, command[2] != "pip")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(install_requirements, "uv_options", lambda: [])
    monkeypatch.chdir(ROOT)  # and back again
    return calls


def test_pip_installs_where_uv_fails_and_both_keep_to_the_lock(installations, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert install_requirements.main(["--no-deps", "-r", "two.txt"]) == 0
    assert [command[2] for command, _ in installations] == ["uv", "pip"]
    for command, env in installations:
        assert command[-3:] == ["--no-deps", "-r", "two.txt"]
        tool = command[2].upper()
        assert env[f"{tool}_CONSTRAINT"] == env[f"{tool}_BUILD_CONSTRAINT"] == "constraints.txt"


def test_pip_installs_where_uv_is_missing(installations, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert install_requirements.main(["-r", "one.txt"]) == 0
    assert [command[2] for command, _ in installations] == ["pip"]


def test_uv_is_given_pips_indexes_and_local_wheels(monkeypatch):
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
