"""Print how many of our files and named functions a command runs through: python -m tests.way [-v].

In all threads, from train.py until the first training step returns, and from sample.py until the
first picture is written; -v lists the functions.
"""

import inspect
import os
import runpy
import sys
import tempfile
import threading
from pathlib import Path
from types import CodeType, FrameType

ROOT = Path(__file__).resolve().parents[1]
WAYS = (
    ("train_step", "train.py", "--config=configs/mnist/quickstart.py", "--workdir"),
    (
        "save_png",
        "sample.py",
        "--workdir=runs/mnist/pretrained",
        "--batch_size=1",
        "--steps=2",
        "--out",
    ),
)


def is_ours(code: CodeType) -> bool:
    """Whether it is a named function of the program: no lambda, comprehension or class body."""
    path = Path(code.co_filename)
    if not path.is_relative_to(ROOT) or path.relative_to(ROOT).parts[0] in ("tests", ".venv"):
        return False
    return bool(code.co_flags & inspect.CO_OPTIMIZED) and not code.co_name.startswith("<")


def follow(last: str, command: list[str], verbose: bool) -> None:
    """Run the command until the function `last` returns, print, and end the process."""
    codes: set[CodeType] = set()

    def profile(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        codes.add(code)
        if event != "return" or code.co_name != last or not is_ours(code):
            return
        functions = {
            f"{Path(code.co_filename).relative_to(ROOT)} {code.co_qualname}"
            for code in codes.copy()
            if is_ours(code)
        }
        files = {function.split()[0] for function in functions}
        print(f"{command[0]}: {len(files)} files, {len(functions)} functions until {last}")
        if verbose:
            print("\n".join(sorted(functions)))
        sys.stdout.flush()
        os._exit(0)

    sys.argv = command
    threading.setprofile(profile)
    sys.setprofile(profile)
    runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    os.chdir(ROOT)
    for last, *command in WAYS:
        with tempfile.TemporaryDirectory() as directory:
            command[-1] += f"={directory}/new"
            if os.fork() == 0:
                follow(last, command, verbose="-v" in sys.argv)
            os.wait()
