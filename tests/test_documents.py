"""README.md, docs/, CONTRIBUTING.md and the folders' README files: links, commands, code, messages hold."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

import pytest
from media import write_video

from evaluation.models import AVAILABLE_MODELS

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("", "docs", "benchmarks", "checkpoints", "datasets", "outscores")
DOCUMENTS = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def without_code(path: Path) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def blocks(path: Path, language: str, before: str = "") -> list[str]:
    """The blocks of code in a language; those before a heading, where one is given."""
    text = path.read_text().partition(f"\n{before}\n")[0] if before else path.read_text()
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for _, block in found]


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", without_code(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_every_link_leads_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name) if name else path
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def test_the_readme_is_one_page_and_leads_to_every_document():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 1000
    for path in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{path.name})" in text


# tests/test_message_models.py runs those of docs/models.md, tests/test_recipes.py those of CONTRIBUTING.md.
@pytest.mark.parametrize(
    "name",
    sorted(
        {str(path.relative_to(ROOT)) for path in DOCUMENTS if blocks(path, "python")}
        - {"docs/models.md", "CONTRIBUTING.md"}
    ),
)
def test_the_python_code_runs(name, tmp_path, run_script):
    write_video(tmp_path / "talk.mp4", frames=100, fps=25)
    (tmp_path / "labels.json").write_text('[{"video": "talk.mp4", "question": "Where is the cat?"}]')
    code = "\n".join(blocks(ROOT / name, "python"))
    (tmp_path / "code.py").write_text(code)
    done = run_script(tmp_path / "code.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()
    if name == "docs/selection.md":
        assert shown == ["[24, 72]"]
        return
    if name == "docs/extraction.md":
        assert shown == ["1 of 1 videos scored", "100 25.0", "[ 0 25 50] [0. 1. 2.] (3, 64, 96, 3)"]
        return
    keyframes = [line.split() for line in shown[:4]]
    assert [int(row[0]) for row in keyframes] == [25 * float(row[1]) for row in keyframes] == [0, 25, 50, 75]
    if name == "docs/keyframes.md":
        assert all(row[3:] == ["(96,", "64)"] for row in keyframes)
        # Every twelfth frame from 1 to 3 s: 36, 48, 60, 72.
        assert shown[4:] == ["Where is the cat? 2 4 True", "Who opens the door? 2 4 True"]


def message_texts() -> str:
    """All texts in the code, one a line, with ``...`` for what is filled in."""
    texts = [(ROOT / "environment.sh").read_text()]
    folders = ("aks", "evaluation", "datasets")
    for path in [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values]
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_the_messages_that_troubleshooting_explains_are_those_of_the_code():
    code = message_texts()
    rows = re.findall(r"^\| (.*?) \| ", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(messages) > 60
    parts = [part.strip(" ();:") for text in messages for part in text.removeprefix("error: ").split("...")]
    assert [part for part in parts if len(part) >= 8 and part not in code] == []


def house() -> dict[str, str]:
    """The files and folders that CONTRIBUTING.md names, each with its line."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## The house\n\n```\n")[2].partition("```")[0]
    return {
        name.removesuffix(":"): line
        for line in text.splitlines()
        for name in re.split(r"\s+", line.split("   ")[0] if "   " in line else line)
        if re.search(r"[/*]|\.\w+$", name)
    }


def test_a_room_of_the_house_is_named_and_every_named_one_is_there():
    named = house().keys()
    for name in named:
        assert list(ROOT.glob(name)), name
    rooms = {path.parent.relative_to(ROOT).as_posix() + "/" for path in (ROOT / "aks").glob("*/__init__.py")}
    assert rooms <= named


def test_every_module_is_named_or_one_of_a_folder_of_its_kind():
    named = house()
    kinds = {name for name, line in named.items() if name.endswith("/") and "one file" in line}
    models = {f"evaluation/{model}.py" for model in AVAILABLE_MODELS}
    modules = [path for folder in ("aks", "evaluation") for path in (ROOT / folder).rglob("*.py")]
    for path in [*ROOT.glob("*.py"), *modules]:
        name = path.relative_to(ROOT).as_posix()
        is_known = name in named or name in models or f"{Path(name).parent}/" in kinds
        assert is_known or path.name == "__init__.py", f"CONTRIBUTING.md, The house: {name} is missing"
