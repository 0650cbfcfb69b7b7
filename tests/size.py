"""Print the size of the code in tokens, docstrings and comments not counted: python -m tests.size
[FOLDER].
"""

import ast
import sys
import tokenize
from collections import Counter
from pathlib import Path

LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def docstring_lines(source: str) -> set[int]:
    """First lines of all strings that stand as statements of their own."""
    return {
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    }


def count(path: Path) -> int:
    """Tokens of a Python file."""
    docstrings = docstring_lines(path.read_text())
    with path.open("rb") as file:
        return sum(
            token.type not in LAYOUT
            and not (token.type == tokenize.STRING and token.start[0] in docstrings)
            for token in tokenize.tokenize(file.readline)
        )


def main(root: Path) -> None:
    """Print tokens and files of each room, tests apart."""
    tokens: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if any(part.startswith(".") for part in parts):
            continue
        room = "/".join(parts[:-1][:2]) or "."
        tokens[room] += count(path)
        files[room] += 1
    for room in sorted(tokens):
        print(f"{tokens[room]:8,} tokens {files[room]:4} files  {room}")
    for name in ("outside tests", "tests"):
        rooms = [room for room in tokens if room.startswith("tests") == (name == "tests")]
        total, number = sum(tokens[r] for r in rooms), sum(files[r] for r in rooms)
        print(f"{total:8,} tokens {number:4} files  {name}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent))
