"""Real signals to real processes, as from a scheduler or a terminal; for SIGKILL see faults.py."""

import fcntl
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from model_code.calibration import level_state
from scripts.config.paths import ROOT
from scripts.storage.checkpoint import meta_path, numbered_path, read
from scripts.training.loop import Interrupted, InterruptionGuard
from tests.tiny import TINY
from tests.training.runs import TinyRun, differing

ARGS = [
    "--config", str(TINY), "--config.training.n_iters=100000", "--config.training.log_freq=1",
    "--config.data.num_workers=2", "--config.training.snapshot_freq=5",
    "--config.training.snapshot_freq_for_preemption=5",
]  # fmt: skip
RARELY = [
    "--config.training.snapshot_freq=100000",
    "--config.training.snapshot_freq_for_preemption=100000",
]


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
    assert f"{number.name}: saved at step {step}; the same command continues from there" in output
    logged = [line for line in ("step 12/", *output.splitlines()) if line.startswith("step ")]
    assert logged[-1].startswith(f"step {step}/"), "the step under way, and none after it"


def test_a_terminal_that_is_closed(tmp_path: Path) -> None:
    """The hangup saves, and what can no longer be printed ends nothing."""
    terminal, end = os.openpty()

    def open_terminal() -> None:
        fcntl.ioctl(end, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests may run under nohup

    command = [sys.executable, str(ROOT / "train.py"), "--workdir", str(tmp_path), *ARGS, *RARELY]
    with subprocess.Popen(
        command, stdin=end, stdout=end, stderr=end, start_new_session=True, preexec_fn=open_terminal
    ) as process:
        os.close(end)
        output = b""
        while b"a numbered checkpoint" not in output:  # the last line before the first step
            output += os.read(terminal, 100_000)
        os.close(terminal)
        assert process.wait(60) == 128 + signal.SIGHUP
    assert read(meta_path(tmp_path))["step"] > 0


def test_a_hangup_that_is_ignored_stays_so() -> None:
    """As nohup wants it; otherwise it is noted."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with InterruptionGuard() as guard:
            os.kill(os.getpid(), signal.SIGHUP)
            guard.check()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with InterruptionGuard() as guard:
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(Interrupted, match="SIGHUP"):
                guard.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_during_calibration(
    tiny_run: TinyRun, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends that after the level under way; the numbered checkpoint is made up for."""
    levels: list[int] = []

    def interrupted(process: Any, groups: Any, sums: Any, k: int, count: int) -> dict[str, Any]:
        if not levels:
            os.kill(os.getpid(), signal.SIGINT)
        levels.append(k)
        return level_state(process, groups, sums, k, count)

    with monkeypatch.context() as patch:
        patch.setattr("scripts.sampling.calibration.level_state", interrupted)
        assert tiny_run.train(training__snapshot_freq=3) == 130
    assert set(levels) == {3}
    snapshot = numbered_path(tiny_run.workdir, 1)
    assert not snapshot.exists()
    tiny_run.finish(training__snapshot_freq=3)
    assert read(snapshot)["step"] == 3
    assert read(snapshot)["calibration"] is not None
    assert not differing(tiny_run.state(), undisturbed)
