"""Commands that run beside the tests, their output in files; and what a tiny training leaves."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from scripts.config.paths import ROOT
from tests.training.runs import differing, final_state

TRAIN = ["train.py", "--config", "tests/cluster/tiny.py", "--workdir"]
ENVIRONMENT = {
    **{
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MPI4PY_", "SLURM_", "OMPI_", "PMI"))
    },
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}
PATIENCE = 300.0
"""Seconds after which something that usually takes ten is taken to hang: the machine may be busy
with other things.
"""


def wait_until(
    happens: Callable[[], object], what: Callable[[], str], seconds: float = PATIENCE
) -> float:
    """Wait for something, and return for how long that was; an AssertionError with `what` was found
    if it does not happen.
    """
    started = time.monotonic()
    while not happens():
        assert time.monotonic() - started < seconds, f"nothing within {seconds:g} s: {what()}"
        time.sleep(0.05)
    return time.monotonic() - started


class Job:
    """A command that has been started."""

    def __init__(self, command: list[str], log: Path, **environment: str) -> None:
        """log: where its output goes."""
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT,
                env={**ENVIRONMENT, **environment}, start_new_session=True,
            )  # fmt: skip

    @property
    def output(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace")

    def prints(self, text: str) -> None:
        """Wait until it has printed `text`."""
        wait_until(
            lambda: text in self.output or self.process.poll() is not None, lambda: self.output
        )
        assert text in self.output, self.output

    def ends(self, seconds: float = PATIENCE) -> float:
        """Wait for its end; returns how long that took."""
        return wait_until(lambda: self.process.poll() is not None, lambda: self.output, seconds)

    def succeeds(self) -> str:
        """What it printed in all, at its end; an AssertionError if its exit code is not 0."""
        self.ends()
        assert self.process.returncode == 0, self.output
        return self.output

    def kill(self) -> None:
        """End what is left of it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def assert_same(workdir: Path, other: Path) -> None:
    """Weights, averages, optimizer, prior: all that training continues from, bit for bit."""
    assert not differing(final_state(workdir), final_state(other))
