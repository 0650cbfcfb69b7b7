"""A training shows that it lives."""

import pytest

from scripts.runtime import progress
from scripts.runtime.progress import TrainingProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its one entry is the time."""
    now = [100.0]
    monkeypatch.setattr("scripts.runtime.progress.time.monotonic", lambda: now[0])
    progress.warn_once.cache_clear()
    return now


def test_lines_of_slow_steps(clock: list[float], capsys: pytest.CaptureFixture) -> None:
    """One after the first step, then one a minute, whether a row of metrics is due or not."""
    with TrainingProgress(10, 1000) as shown:
        for step in range(11, 25):
            clock[0] += 20
            shown.step_done(step, 0.5, waited=1.0)
    steps = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert steps == ["11/1000", "14/1000", "17/1000", "20/1000", "23/1000"]


@pytest.mark.parametrize(("waited", "said"), [(1.0, False), (5.0, True)])
def test_waiting_for_images(
    waited: float, said: bool, clock: list[float], capsys: pytest.CaptureFixture
) -> None:
    with TrainingProgress(0, 1000) as shown:
        for step in range(1, 10):
            clock[0] += 20
            shown.step_done(step, 0.5, waited)
    printed = capsys.readouterr()
    assert ("25% waiting for images" in printed.out) == said
    assert printed.err.count("scripts.tools.pack") == said


def test_steps_that_become_slow(clock: list[float], capsys: pytest.CaptureFixture) -> None:
    """Advice once, and not for what is only somewhat slower."""
    with TrainingProgress(0, 1000) as shown:
        for speed in (50.0, 100.0, 40.0):
            shown.note_speed(speed)
        assert capsys.readouterr().err == ""
        for speed in (30.0, 20.0):
            shown.note_speed(speed)
    assert capsys.readouterr().err.count("OMP_NUM_THREADS=1") == 1
