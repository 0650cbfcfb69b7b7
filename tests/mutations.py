"""Make small mistakes in the program, and see whether tests fail: python -m tests.mutations.

Mistakes in comparisons, arithmetic, numbers and statements are drawn by --seed and made, one at a
time, in a scratch copy, where the room's tests run. Statements that these never run do not count.
By hand: forty mistakes take an hour. Verdicts are kept in --state, a file of JSON lines: the same
command continues there.
"""

import argparse
import ast
import itertools
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("comparison", "arithmetic", "number", "statement")
OTHER: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.MatMult: ast.Mult,
}  # fmt: skip
HANGS = "a test that hangs or ends pytest"
SHOWN = 40
"""Characters of a statement that are shown, around the mistake."""
Place = tuple[str, list[ast.stmt], int, ast.AST]
"""Where a mistake can be made: its kind, the block, the statement in it, the node in that."""


def expressions(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a statement but the statements in it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.stmt):
            yield child
            yield from expressions(child)


def places(tree: ast.Module) -> Iterator[Place]:
    """Everywhere but in texts."""
    blocks = (block for node in ast.walk(tree) for _, block in ast.iter_fields(node))
    for block in blocks:
        for i, statement in enumerate(block if isinstance(block, list) else []):
            if not isinstance(statement, ast.stmt):
                continue
            is_text = isinstance(getattr(statement, "value", None), ast.Constant)
            if isinstance(statement, ast.Assign | ast.AugAssign | ast.Expr) and not is_text:
                yield "statement", block, i, statement
            for node in expressions(statement):
                if isinstance(node, ast.Compare):
                    yield "comparison", block, i, node
                elif isinstance(node, ast.BinOp) and type(node.op) in OTHER:
                    yield "arithmetic", block, i, node
                elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
                    yield "number", block, i, node


def mutate(source: str, kind: str, number: int, *, raises: bool = False) -> tuple[str, str]:
    """The source with one mistake, or an exception in place of the statement; the changed line."""
    tree = ast.parse(source)
    _, block, i, node = [place for place in places(tree) if place[0] == kind][number]
    before = ast.unparse(block[i])
    line = block[i].lineno
    if raises:
        block[i] = ast.Raise(ast.Name("AssertionError"))
    elif isinstance(node, ast.Compare):
        node.ops[0] = OTHER[type(node.ops[0])]()  # type: ignore[call-overload]
    elif isinstance(node, ast.BinOp):
        node.op = OTHER[type(node.op)]()  # type: ignore[assignment]
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            node.value = not node.value
        else:
            node.value = node.value + 1  # type: ignore[operator]
    else:
        block[i] = ast.Pass()
    change = f"{line}: {difference(before, ast.unparse(block[i]))}"
    return ast.unparse(ast.fix_missing_locations(tree)), change


def difference(before: str, after: str) -> str:
    """What two texts have where they differ, about 40 characters of each, on one line."""
    same = (one == other for one, other in zip(before, after, strict=False))
    start = max(0, sum(itertools.takewhile(bool, same)) - SHOWN // 2)
    shown = [" ".join(text[start : start + SHOWN].split()) for text in (before, after)]
    return "  ->  ".join(shown)


def tests_of(file: Path) -> list[Path]:
    """The file's own tests first, then its room's."""
    room = Path("tests", *file.parent.parts[file.parts[0] == "scripts" :])
    own = room / f"test_{file.name}"
    return [path for path in (own, room) if (ROOT / path).exists()]


def failing_test(copy: Path, tests: Iterable[object], without: Iterable[str] = ()) -> str:
    """The first test that fails in the copy, or hangs; "" if all pass. `without` are not run."""
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += [f"--deselect={test}" for test in without]
    try:
        result = subprocess.run(
            [*command, *map(str, tests)],
            cwd=copy,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return HANGS
    if result.returncode == 0:
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", result.stdout, re.M)
    return failed[1] if failed else HANGS


def verdict(
    copy: Path, file: str, source: str, kind: str, number: int, broken: set[str]
) -> dict[str, str]:
    """Make one mistake in the copy, run the room's tests, and undo it.

    Tests that fail without it, too, join `broken`, and are not run again.
    """
    mutated, change = mutate(source, kind, number)
    tests = tests_of(Path(file))
    while True:
        (copy / file).write_text(mutated)
        by = failing_test(copy, tests, broken)
        (copy / file).write_text(source)
        if by in ("", HANGS) or not failing_test(copy, [by]):
            break
        print(f"broken    {by}", flush=True)
        broken.add(by)
    result = "killed" if by else "survived"
    if not by:
        (copy / file).write_text(mutate(source, kind, number, raises=True)[0])
        if not failing_test(copy, tests, broken):
            result = "not run"
        (copy / file).write_text(source)
    return {"verdict": result, "change": f"{file}:{change}", "by": by}


def main() -> None:
    """Print each mistake as soon as its tests have run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--state", type=Path, default=Path("mutations.jsonl"))
    parser.add_argument("files", nargs="*", help="by default all of model_code/ and scripts/*/")
    options = parser.parse_args()
    every = [*ROOT.glob("model_code/*.py"), *ROOT.glob("scripts/*/*.py")]
    files = options.files or sorted(str(path.relative_to(ROOT)) for path in every)
    sources = {file: (ROOT / file).read_text() for file in files}
    drawn = [
        (file, kind, number)
        for file, source in sources.items()
        for kind in KINDS
        for number in range(sum(place[0] == kind for place in places(ast.parse(source))))
    ]
    random.Random(options.seed).shuffle(drawn)
    done = options.state.read_text().splitlines() if options.state.exists() else []
    rows = [json.loads(line) for line in done]
    for row in rows:
        show(row)
    broken: set[str] = set()
    with tempfile.TemporaryDirectory() as directory, options.state.open("a") as state:
        copy = Path(directory) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*"))
        for file, kind, number in drawn[len(rows) :]:
            if sum(row["verdict"] != "not run" for row in rows) >= options.count:
                break
            rows.append(verdict(copy, file, sources[file], kind, number, broken))
            state.write(json.dumps(rows[-1]) + "\n")
            state.flush()
            show(rows[-1])
    counts = Counter(row["verdict"] for row in rows)
    print(f"{counts['killed']} killed, {counts['survived']} survived")


def show(row: dict[str, str]) -> None:
    """Print a verdict on one line."""
    print(f"{row['verdict']:8}  {row['change']}  {row['by']}", flush=True)


if __name__ == "__main__":
    main()
