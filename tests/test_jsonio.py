"""Folders for results are made, or refused in one line, before the work whose results they take."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from aks.errors import UserError
from aks.jsonio import make_folder

NOBODY = 65534


@pytest.fixture
def read_only():
    """A folder that this process may only read. pytest's own folders are hidden from all users but one."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(NOBODY)  # root may write anywhere
        yield Path(name)
        os.seteuid(user)
        os.chmod(name, 0o755)


def test_a_folder_that_takes_no_files_is_refused(read_only):
    with pytest.raises(UserError, match=f"^{read_only}: no permission to write there; check --report$"):
        make_folder(read_only, "--report")
    with pytest.raises(UserError, match=f"^{read_only}/new: cannot be created: Permission denied; check --o"):
        make_folder(read_only / "new", "--output")


def test_missing_folders_are_made_and_present_ones_are_kept(tmp_path):
    make_folder(tmp_path / "a/b", "--output")
    (tmp_path / "a/b/kept").touch()
    make_folder(tmp_path / "a/b", "--output")
    assert (tmp_path / "a/b/kept").exists()
