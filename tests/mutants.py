"""Mutation testing: puts small faults into the code, one at a time, and tells which test notices each.

``python tests/mutants.py --seed 7`` draws 60 faults, as many of each kind, and runs the tests of each one's
area in a copy of the checkout. The same seed draws the same faults of the same source. An interrupted run
goes on where it stopped; ``--only TEXT`` runs again the faults whose line holds the text: a file, SURVIVED.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
VIDEO = "packets reader odd_videos damaged_videos sparse"
MODELS = "qwen llava"
# The tests that guard the files whose paths begin so, the fastest first; the longest such beginning counts.
AREAS = {
    "aks/": "cli keyframes extraction feature_store conse",
    "aks/entries": "labels merged_labels interchange",
    "aks/labels": "labels recall extraction merged_labels benchmarks",
    "aks/video/packets": VIDEO,
    "aks/__main__": "cli",
    "aks/commands/keyframe": "keyframes feature_cache",
    "aks/video/__init__": f"{VIDEO} extraction faults",
    "aks/video/files": "keyframes mcp extraction feature_store ray",
    "aks/commands/mcp": "mcp",
    "aks/mcp_server": "mcp",
    "aks/commands/cache": "feature_cache cli",
    "aks/extraction/feature_cache": "feature_cache",
    "aks/extraction/background": "background",
    "aks/commands/background": "background",
    "aks/extraction/coarse_to_fine": "coarse_to_fine",
    "aks/keyframe_files": "keyframes",
    "aks/contact_sheet": "contact_sheet keyframes",
    "aks/clock": "clock keyframes",
    "aks/video/clips": "clips keyframes",
    "aks/extraction/keyframes": "keyframes feature_cache workers feature_strategies documents mcp",
    "aks/commands/select": "frame_select feature_strategies",
    "aks/commands": "extraction feature_store pipeline cli",
    "aks/cli": "cli keyframes extraction faults lavis_cli ray",
    "aks/arguments": "arguments frame_select extraction keyframes",
    "aks/extraction/decoding": f"{VIDEO} extraction faults workers",
    "aks/evidence": "recall quality",
    "aks/selected_frames": "recall quality interchange",
    "aks/compar": "compare",
    "aks/plots": "quality reproduce compare",
    "aks/presets": "frame_select reproduce",
    "aks/errors": "labels recall extraction faults",
    "aks/extraction": "extraction pipeline batching feature_store odd_videos workers faults scale ray",
    "aks/video/sparse": VIDEO,
    "aks/extraction/feature_store": "feature_store faults workers",
    "aks/interchange": "interchange",
    "aks/lmms_eval_models": "swap_in",
    "aks/locks": "faults scale ray",
    "aks/match": "match background",
    "aks/messages": "messages message_models",
    "aks/jsonio": "run_dir extraction recall frame_select conse feature_store scale",
    "aks/score_lists": "frame_select recall selection interchange",
    "aks/run_dir": "run_dir extraction recall frame_select conse feature_store odd_videos scale ray",
    "aks/extraction/batching": "batching",
    "aks/extraction/worker": "extraction workers faults scale",
    "aks/scorers/preprocess": "conse clip blip siglip",
    "aks/extraction/ray": "ray",
    "aks/bootstrap": "quality tables",
    "aks/quality": "quality redundancy",
    "aks/recall": "recall",
    "aks/redundancy": "redundancy",
    "aks/report": "report",
    "aks/commands/report": "report",
    "aks/scorers/": "conse clip blip sevila blip_lavis keyframes lavis_cli feature_store",
    "aks/scorers/clip": "clip siglip",
    "aks/scorers/siglip": "siglip",
    "aks/scorers/conse": "conse",
    "aks/scorers/lavis/blip": "blip_lavis lavis_cli",
    "aks/scorers/lavis/sevila": "sevila lavis_cli",
    "aks/scorers/minilm": "conse",
    "aks/scorers/sevila": "sevila feature_store",
    "aks/selection": "selection frame_select strategies feature_strategies keyframes",
    "aks/strategies": "strategies feature_strategies selection",
    "aks/video": f"{VIDEO} extraction",
    "datasets/": "labels merged_labels tasks benchmarks",
    "evaluation/": f"answer_cache merged_labels tasks {MODELS} evaluation_scripts",
    "evaluation/answer_cache": "answer_cache evaluation_scripts",
    "evaluation/change_score": "merged_labels evaluation_scripts",
    "evaluation/conse_qa": "answer_cache evaluation_scripts",
    "evaluation/evaluator": "tables evaluation_scripts",
    "evaluation/chat": "qwen",
    "evaluation/frame_numbering": "frame_numbering",
    "evaluation/grids": "reproduce",
    "evaluation/reproduce": "reproduce",
    "evaluation/insert_frame_num": "merged_labels",
    "evaluation/llava": "llava evaluation_scripts",
    "evaluation/llava_keyframes": "answer_cache llava evaluation_scripts",
    "evaluation/llava_on_transformers": "llava_on_transformers llava",
    "evaluation/metrics": "tables benchmarks",
    "evaluation/mm_utils": "llava",
    "evaluation/models/": "evaluation_scripts",
    "evaluation/qwen": "qwen evaluation_scripts",
    "evaluation/results": "tables evaluation_scripts",
    "evaluation/run": "evaluation_scripts",
    "evaluation/swap_in": "swap_in",
    "evaluation/tables": "tables",
    "evaluation/markdown_tables": "tables reproduce",
    "evaluation/samples": "tables evaluation_scripts",
    "evaluation/significance": "tables",
    "evaluation/plots": "tables",
    "evaluation/preflight": "preflight evaluation_scripts",
    "evaluation/scoring": "scoring tables",
    "evaluation/visual_tracker": "visual_tracker llava qwen",
    "evaluation/uniform": "tasks llava qwen",
    "evaluation/task": "merged_labels tasks evaluation_scripts benchmarks",
    "evaluation/upstream_task": "benchmarks",
}
# They need a newer transformers: tests/newer_models.sh tests them.
UNTESTED = {ROOT / "evaluation/internvl3_5.py", ROOT / "evaluation/qwen3_vl.py"}
SWAPS = {"<": "<=", ">": ">=", "==": "!=", "is": "is not", "in": "not in"}
SWAPS |= {new: old for old, new in SWAPS.items()}
LOGS = {"log", "print", "warning", "info"}
COSMETIC = {"annotation", "returns", "help", "metavar", "desc", "unit", "indent", "frozen", "strict"}
COSMETIC |= {"dpi", "fontsize", "lw", "ms", "zorder"}  # a plot's
STATEMENTS = (ast.Expr, ast.Assign, ast.AugAssign, ast.With, ast.If, ast.For)
# Calls whose order other processes see, or who reads the files after a crash.
WRITES = re.compile(
    "write|flush|sync|seek|replace|link|mkdir|acquire|release|wait|open_or_create|upgrade|close|record_"
)
TEST_LIMIT_S = 300  # a test that takes longer hangs
LEAVES = (ast.Raise, ast.Return, ast.Continue, ast.Break)
# Seconds to wait: no test waits so long, and shorter limits are given where one is tested.
WAITS = re.compile("TIMEOUT_S$|INTERVAL_S$")


class Fault(NamedTuple):
    """What ``new`` stands in the place of the bytes from ``begin`` to ``end`` of a file."""

    file: str
    kind: str
    begin: int
    end: int
    new: str


def faults_of(file: str, source: bytes) -> Iterator[Fault]:
    """All faults that may be put into a file; some are no Python."""
    starts = [0, *itertools.accumulate(map(len, source.splitlines(keepends=True)))]

    def begin(node: ast.AST) -> int:
        return starts[node.lineno - 1] + node.col_offset

    def end(node: ast.AST) -> int:
        return starts[node.end_lineno - 1] + node.end_col_offset

    def change(kind: str, node: ast.AST, pattern: str) -> Fault:
        return Fault(file, kind, begin(node), end(node), pattern.format(text(begin(node), end(node))))

    def text(first: int, last: int) -> str:
        return source[first:last].decode()

    def visit(node: ast.AST) -> Iterator[Fault]:
        yield from of_node(node)
        for name, value in ast.iter_fields(node):
            if name in COSMETIC or getattr(node, "arg", None) in COSMETIC:
                continue
            values = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, ast.AST)]
            values = [v for v in values if not is_for_people(v)]
            for child in values:
                yield from visit(child)
            for a, b in itertools.pairwise(values):
                if are_swappable(a, b):
                    new = text(begin(b), end(b)) + text(end(a), begin(b)) + text(begin(a), end(a))
                    yield Fault(file, "order", begin(a), end(b), new)

    def of_node(node: ast.AST) -> Iterator[Fault]:
        match node:
            case ast.Constant(value=bool() as value):
                yield change("constant", node, str(not value))
            case ast.Constant(value=int()):
                yield change("off by one", node, "({} + 1)")
            case ast.Constant(value=float()):
                yield change("constant", node, "({} * 2 + 1)")
            case ast.arguments():
                for default in filter(None, node.defaults + node.kw_defaults):
                    if isinstance(default, ast.Constant) and isinstance(default.value, str):
                        yield change("constant", default, "({} + 'x')")
            case ast.Slice() | ast.Call(func=ast.Name(id="range")):
                for bound in (node.lower, node.upper) if isinstance(node, ast.Slice) else node.args:
                    if bound is not None and not isinstance(bound, ast.Constant):
                        yield change("off by one", bound, "({}) + 1")
            case ast.Compare():
                for a, b in itertools.pairwise([node.left, *node.comparators]):
                    if found := re.search("is not|not in|is|in|[<>=!]=?", text(end(a), begin(b))):
                        first, last = (end(a) + at for at in found.span())
                        yield Fault(file, "comparison", first, last, SWAPS[found[0]])
            case ast.BoolOp():
                for value in node.values:
                    yield change("condition", value, str(isinstance(node.op, ast.And)))
            case ast.UnaryOp(op=ast.Not()):
                yield Fault(file, "condition", begin(node), begin(node) + 3, "")
            case ast.If(orelse=[], body=[*_, last]) if isinstance(last, LEAVES):
                yield change("condition", node.test, "({}) and False")
            case ast.If() | ast.IfExp():
                yield change("condition", node.test, "({}) or True")
            case ast.Dict(values=[*_, last]):
                heads = [begin(key or value) for key, value in zip(node.keys, node.values, strict=True)]
                for a, b in itertools.pairwise([*heads, end(last)]):
                    yield Fault(file, "entry dropped", a, b, "")
            case ast.For(iter=ast.Tuple() | ast.List()) if writes(node) or leaves(
                node, ast.Return, ast.Break
            ):
                yield change("order", node.iter, "({})[::-1]")

    return visit(ast.parse(source))


def is_for_people(node: ast.AST) -> bool:
    """Whether a node is a docstring, a message, a log line, for type checkers, or seconds to wait."""
    match node:
        case ast.Expr(value=ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name))):
            return name in LOGS
        case ast.Raise() | ast.JoinedStr() | ast.Expr(value=ast.Constant()):
            return True
        case ast.Assign(targets=[ast.Name(id=name)]) if WAITS.search(name):
            return True
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def are_swappable(first: ast.AST, second: ast.AST) -> bool:
    """Whether both of two statements write, and neither binds what the other needs, or leaves."""
    bound, used = [], []
    for node in (first, second):
        names = [n for n in ast.walk(node) if isinstance(n, ast.Name)]
        bound.append({n.id for n in names if isinstance(n.ctx, ast.Store)})
        used.append({n.id for n in names if isinstance(n.ctx, ast.Load)})
        if not isinstance(node, STATEMENTS) or leaves(node, *LEAVES) or not writes(node):
            return False
    closes = all(re.search(r"\bclose\(", ast.unparse(node)) for node in (first, second))  # in any order
    return not closes and not bound[0] & used[1] and not bound[1] & used[0]


def leaves(node: ast.AST, *ways: type[ast.AST]) -> bool:
    """Whether a statement may leave its block in one of some ways."""
    return any(isinstance(n, ways) for n in ast.walk(node))


def writes(node: ast.AST) -> bool:
    """Whether a statement may call what others see."""
    return any(isinstance(n, ast.Call) and WRITES.search(ast.unparse(n.func)) for n in ast.walk(node))


def draw(count: int, seed: int) -> Iterator[tuple[str, Fault, bytes]]:
    """Different faults, of each kind in turn one at random: what they are, and the file with the fault."""
    kinds: dict[str, list[Fault]] = {}
    files = {file for area in AREAS for file in ROOT.glob(f"{area.split('/')[0]}/**/*.py")}
    for file in sorted(files - UNTESTED):
        for fault in faults_of(file.relative_to(ROOT).as_posix(), file.read_bytes()):
            kinds.setdefault(fault.kind, []).append(fault)
    rng = random.Random(seed)
    shuffled = [rng.sample(kinds[kind], len(kinds[kind])) for kind in sorted(kinds)]
    for fault in filter(None, itertools.chain.from_iterable(itertools.zip_longest(*shuffled))):
        source = (ROOT / fault.file).read_bytes()
        changed = source[: fault.begin] + fault.new.encode() + source[fault.end :]
        try:
            ast.parse(changed)
        except SyntaxError:  # a parenthesis around a node is no part of it
            continue
        line, column = source.count(b"\n", 0, fault.begin), fault.begin - source.rfind(b"\n", 0, fault.begin)
        old, new = (" ".join(t.split())[:50] for t in (source[fault.begin : fault.end].decode(), fault.new))
        place = f"{fault.file}:{line + 1}:{column}"
        yield f"{place}  {fault.kind}: {old} => {new or 'nothing'}", fault, changed
        if not (count := count - 1):
            return


def first_failure(copy: Path, tests: list[str], limit_s: float) -> str | None:
    """The first test that fails, or a time limit; None where all pass."""
    limits = ["-o", f"faulthandler_timeout={TEST_LIMIT_S}", "-o", "faulthandler_exit_on_timeout=true"]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider", *limits, *tests]
    env = {
        "AKS_REFERENCE_DATA": str(ROOT.parent / "shared/reference/data"),
        "AKS_TESTS_LONG": "1",
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "1",  # a changed file may keep its size and second, by which Python judges
    }
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    with subprocess.Popen(command, cwd=copy, env=env, **pipe) as process:
        try:
            output, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return f"the limit of {limit_s:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what the tests have started
    if not process.returncode:
        return None
    if failed := re.search(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", output, re.MULTILINE):
        return failed[1]
    if hangs := re.search(r'/(tests/[\w/]*test_\w+\.py)", line \d+ in (test_\w+)', output):
        return f"a hang or crash in {hangs[1]}::{hangs[2]}"
    sys.exit(f"pytest ends with status {process.returncode} and names no test:\n{output[-3000:]}")


def test_files(area: str) -> list[str]:
    """The files of the tests named in an area."""
    return [str(next((ROOT / "tests").glob(f"**/test_{name}.py")).relative_to(ROOT)) for name in area.split()]


def main() -> None:
    """Draw faults; print for each, as soon as it is known, what notices it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=60, help="how many faults (60)")
    parser.add_argument("--seed", type=int, default=0, help="draws them (0)")
    parser.add_argument("--only", metavar="TEXT", help="run again those of them whose line holds this")
    parser.add_argument("--limit", type=float, default=1800, help="seconds for the tests of a fault (1800)")
    parser.add_argument("--results", type=Path, default=ROOT / "build/mutants.json", help="file of results")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the tests, too
    results = json.loads(args.results.read_text()) if args.results.exists() else {}
    faults = list(draw(args.count, args.seed))
    with tempfile.TemporaryDirectory(prefix="aks-mutants-") as folder:
        copy = Path(folder) / "checkout"
        listed = subprocess.check_output(
            ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, text=True
        )
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, copy / name)
        for what, fault, changed in faults:
            if args.only not in f"{what} -> {results.get(what)}" if args.only else what in results:
                continue
            area = max((area for area in AREAS if fault.file.startswith(area)), key=len)
            (copy / fault.file).write_bytes(changed)
            test = first_failure(copy, test_files(AREAS[area]), args.limit)
            shutil.copy(ROOT / fault.file, copy / fault.file)
            if re.match("tests/.*::", test or "") and first_failure(copy, [test], args.limit):
                sys.exit(f"{test} fails without any fault")
            results[what] = f"noticed by {test}" if test else "SURVIVED"
            args.results.parent.mkdir(exist_ok=True)
            args.results.write_text(json.dumps(results, indent=1))
            print(f"{what} -> {results[what]}", flush=True)
    outcomes = [results[what] for what, *_ in faults if what in results]
    print(f"{sum(outcome != 'SURVIVED' for outcome in outcomes)} of {len(outcomes)} faults noticed")


if __name__ == "__main__":
    main()
