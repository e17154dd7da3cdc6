"""tests/mutants.py: it draws faults of every kind, and knows a line that a test guards from one without."""

from __future__ import annotations

import subprocess

import mutants
import pytest

SOURCE = '''"""Two < three."""
limit: int = 2
READ_TIMEOUT_S = 3.0
def check(items: list[int], kind="a", wait=0.5):
    """Not one."""
    if not items:
        raise ValueError(f"{1 + 1} < {3}")
    print(9)
    items.sort()
    items.write()
    items.flush()
    chosen = items[:limit] if kind and wait else ()
    for name in ("times", "scores"):
        chosen = {"name": name, "is": limit is None}
        items.close()
    kind.close()
    wait.close()
    return chosen
'''
FAULTS = [  # the lines that each fault changes, as they are then
    "",  # The two lines that write are swapped.
    "limit: int = (2 + 1)",
    """def check(items: list[int], kind=("a" + 'x'), wait=0.5):""",
    'def check(items: list[int], kind="a", wait=(0.5 * 2 + 1)):',
    "if (not items) and False:",
    "if  items:",
    "chosen = items[:(limit) + 1] if kind and wait else ()",
    "chosen = items[:limit] if (kind and wait) or True else ()",
    "chosen = items[:limit] if True and wait else ()",
    "chosen = items[:limit] if kind and True else ()",
    'for name in (("times", "scores"))[::-1]:',
    'chosen = {"is": limit is None}',
    'chosen = {"name": name, }',
    'chosen = {"name": name, "is": limit is not None}',
]


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "aks").mkdir()
    (tmp_path / "tests").mkdir()
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    monkeypatch.setattr(mutants, "AREAS", {"aks/": "toy"})
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    return tmp_path


def test_faults_of_each_kind_are_drawn_but_none_in_messages(project):
    (project / "aks/toy.py").write_text(SOURCE)
    drawn = [changed.decode() for *_, changed in mutants.draw(99, 1)]
    new_lines = [set(changed.splitlines()) - set(SOURCE.splitlines()) for changed in drawn]
    assert sorted(" ".join(lines).strip() for lines in new_lines) == sorted(FAULTS)
    assert [changed.decode() for *_, changed in mutants.draw(99, 1)] == drawn
    assert [changed.decode() for *_, changed in mutants.draw(5, 1)] == drawn[:5]


@pytest.mark.long  # no test of the project, but of a tool for its tests
def test_guarded_lines_and_lines_without_a_test_are_reported(project, monkeypatch, capsys):
    source = (
        "def near(x):\n    return x < 3\n\n\ndef far(x):\n    return x < 5\n\n\n"
        "def count(n, at=0):\n    while at < n:\n        at = min(at + 1, n)\n"
    )
    (project / "aks/toy.py").write_text(source)
    test = (
        "from aks.toy import count, far, near\n\n\ndef test_count():\n    count(2)\n\n\n"
        "def test_near():\n    assert near(2) and not near(3) and far(1)\n"
    )
    (project / "tests/test_toy.py").write_text(test)
    monkeypatch.setattr(mutants, "TEST_LIMIT_S", 3)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # Importing them takes seconds.
    monkeypatch.setenv("PYTHONPATH", ".")
    command = ["mutants.py", "--results", str(project / "results.json"), "--only"]
    monkeypatch.setattr("sys.argv", [*command, "comparison"])
    mutants.main()
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "2 of 3 faults noticed",
        "aks/toy.py:10:14  comparison: < => <= -> noticed by a hang or crash in tests/test_toy.py::test_count",  # noqa: E501
        "aks/toy.py:2:14  comparison: < => <= -> noticed by tests/test_toy.py::test_near",
        "aks/toy.py:6:14  comparison: < => <= -> SURVIVED",
    ]
    assert (project / "aks/toy.py").read_text() == source
    (project / "tests/test_toy.py").write_text(test.replace("far(1)", "not far(5)"))
    monkeypatch.setattr("sys.argv", [*command, "SURVIVED"])
    mutants.main()
    assert capsys.readouterr().out.splitlines() == [
        "aks/toy.py:6:14  comparison: < => <= -> noticed by tests/test_toy.py::test_near",
        "3 of 3 faults noticed",
    ]


def test_every_area_has_files_and_tests():
    for area, tests in mutants.AREAS.items():
        assert any(mutants.ROOT.glob(f"{area}*")), area
        assert len(mutants.test_files(tests)) == len(set(tests.split())), area
