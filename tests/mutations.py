"""Make small mistakes in the program, and see whether tests fail: python -m tests.mutations.

Mistakes in comparisons, arithmetic, numbers and statements are drawn by --seed and made, one at a
time, in a scratch copy, where the room's tests run. Statements that these never run do not count.
By hand: forty mistakes in model_code/ take half an hour, in scripts/ longer.
"""

import argparse
import ast
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("comparison", "arithmetic", "number", "statement")
OTHER: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.MatMult: ast.Mult,
}  # fmt: skip
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
    """The source with one mistake, and the changed line; or an exception in place of the statement."""
    tree = ast.parse(source)
    _, block, i, node = [place for place in places(tree) if place[0] == kind][number]
    before = ast.unparse(block[i]).splitlines()[0]
    line = block[i].lineno
    if raises:
        block[i] = ast.Raise(ast.Name("AssertionError"))
    elif isinstance(node, ast.Compare):
        node.ops[0] = OTHER[type(node.ops[0])]()  # type: ignore[call-overload]
    elif isinstance(node, ast.BinOp):
        node.op = OTHER[type(node.op)]()  # type: ignore[assignment]
    elif isinstance(node, ast.Constant):
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1  # type: ignore[operator]
    else:
        block[i] = ast.Pass()
    after = ast.unparse(block[i]).splitlines()[0]
    return ast.unparse(ast.fix_missing_locations(tree)), f"{line}: {before}  ->  {after}"


def tests_of(file: Path) -> list[Path]:
    """The file's own tests first, then its room's."""
    room = Path("tests", *file.parent.parts[file.parts[0] == "scripts" :])
    own = room / f"test_{file.name}"
    return [path for path in (own, room) if (ROOT / path).exists()]


def fails(copy: Path, tests: list[Path]) -> bool:
    """Whether a test fails in the copy, or hangs."""
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    try:
        result = subprocess.run(
            [*command, *map(str, tests)], cwd=copy, capture_output=True, timeout=900, check=False
        )
    except subprocess.TimeoutExpired:
        return True
    return result.returncode != 0


def main() -> None:
    """Print each mistake as soon as its tests have run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=40)
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
    killed = survived = 0
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*"))
        while drawn and killed + survived < options.count:
            file, kind, number = drawn.pop()
            mutated, change = mutate(sources[file], kind, number)
            tests = tests_of(Path(file))
            (copy / file).write_text(mutated)
            verdict = "killed" if fails(copy, tests) else "survived"
            if verdict == "survived":
                (copy / file).write_text(mutate(sources[file], kind, number, raises=True)[0])
                verdict = "survived" if fails(copy, tests) else "not run"
            (copy / file).write_text(sources[file])
            killed += verdict == "killed"
            survived += verdict == "survived"
            print(f"{verdict:8}  {file}:{change}", flush=True)
    print(f"{killed} killed, {survived} survived")


if __name__ == "__main__":
    main()
