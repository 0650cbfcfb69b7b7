"""Commands in forks of a process that has imported the program: as `tests.conftest.command`, but
without a second or more of imports each.
"""

import functools
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from scripts.config.paths import ROOT


@functools.cache
def _server() -> subprocess.Popen[str]:
    """Lives as long as the tests' process: it ends with its standard input."""
    line = [sys.executable, "-m", "tests.forks"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(line, text=True, cwd=ROOT, **pipes)  # type: ignore[call-overload]


def forked(
    *args: object, cwd: Path | str = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script with these arguments, in the directory `cwd`, with a changed environment."""
    server, words = _server(), [*map(str, args)]
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as outputs:
        print(json.dumps([words, str(cwd), outputs, environment]), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        texts = [Path(outputs, name).read_text() for name in ("1", "2")]
    return subprocess.CompletedProcess(words, code, *texts)


def _run(words: list[str], cwd: str, outputs: str, environment: dict[str, str]) -> None:
    """In the fork."""
    os.chdir(cwd)
    os.environ |= environment
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream in (1, 2):
        os.dup2(os.open(f"{outputs}/{stream}", os.O_CREAT | os.O_WRONLY), stream)
    sys.argv = [str(ROOT / words[0]), *words[1:]]
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = int(end.code or 0)
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)  # what takes a second is to free all that was imported


if __name__ == "__main__":
    import scripts.evaluation.bound
    import scripts.evaluation.scores
    import scripts.evaluation.sweep
    import scripts.sampling.export
    import scripts.sampling.output
    import scripts.training.loop  # noqa: F401

    for request in sys.stdin:
        if os.fork() == 0:
            _run(*json.loads(request))
        print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
