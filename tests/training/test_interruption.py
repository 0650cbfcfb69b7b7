"""Real signals to real processes, as from a scheduler or a terminal; for SIGKILL see faults.py."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.config.paths import ROOT
from scripts.storage.checkpoint import meta_path, read
from tests.tiny import TINY

ARGS = [
    "--config", str(TINY), "--config.training.n_iters=100000", "--config.training.log_freq=1", "--config.data.num_workers=2",
    "--config.training.snapshot_freq=5", "--config.training.snapshot_freq_for_preemption=5",
]  # fmt: skip


@contextmanager
def training(workdir: Path) -> Iterator[subprocess.Popen[str]]:
    """A training in a process group of its own, past its twelfth step."""
    command = [sys.executable, str(ROOT / "train.py"), "--workdir", str(workdir), *ARGS]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("step 12/"):
                    break
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """Saved within the step and said so."""
    with training(tmp_path) as process:
        os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert "Traceback" not in output
    step = read(meta_path(tmp_path))["step"]
    assert f"{number.name}: saved at step {step}; the same command goes on from there" in output
    last_logged = ["step 12/", *(line for line in output.splitlines() if line.startswith("step "))][-1]
    assert last_logged.startswith(f"step {step}/"), "the step that was under way, and none after it"
