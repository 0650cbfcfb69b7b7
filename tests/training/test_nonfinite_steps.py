"""A loss or gradient that is not finite: never reaches the weights, is skipped and counted, and in
the end stops the run.
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scripts.storage.checkpoint import meta_path, numbered_path, read
from scripts.training import step
from scripts.training.step import Trainer, process_loss
from tests.conftest import bad_input
from tests.tiny import tiny_config
from tests.training.runs import TinyRun, differing, trainer_of

Spoil = Callable[[torch.Tensor], torch.Tensor]
SPOILT: dict[str, Spoil] = {
    "nan": lambda loss: loss * math.nan,
    "inf": lambda loss: loss * math.inf,
    "one example": lambda loss: loss * torch.tensor([1, 1, math.nan, 1]),
}


def spoil_steps(patch: pytest.MonkeyPatch, steps: set[int], spoil: Spoil = SPOILT["nan"]) -> None:
    """Losses of these 0-based steps are spoilt."""
    train_step = Trainer.train_step

    def spoilt(trainer: Trainer, images: torch.Tensor) -> object:
        with pytest.MonkeyPatch.context() as inner:
            if trainer.step in steps:
                inner.setattr(step, "process_loss", lambda *terms: spoil(process_loss(*terms)))
            return train_step(trainer, images)

    patch.setattr(Trainer, "train_step", spoilt)


def state(trainer: Trainer) -> dict[str, object]:
    """All that a skipped step must leave alone."""
    parts = {"model": trainer.model.state_dict(), "ema": trainer.ema.state_dict()}
    return copy.deepcopy({**parts, "moments": trainer.optimizer.state_dict()["state"]})


@pytest.mark.parametrize(
    ("precision", "spoilt"),
    [*(("float32", name) for name in SPOILT), ("bfloat16", "nan"), ("float16", "inf")],
)
def test_a_nonfinite_step_changes_nothing(
    precision: str, spoilt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, averages and moments are those of before, and the next finite step is an ordinary
    one.
    """
    mixed = precision != "float32"
    config = tiny_config(optim__automatic_mp=mixed, optim__amp_dtype=precision if mixed else "auto")
    trainer = trainer_of(config)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1.0, enabled=precision == "float16")
    images = torch.rand(4, 1, 8, 8)
    spoil_steps(monkeypatch, {2, 3}, SPOILT[spoilt])
    while trainer.step < 2:
        assert trainer.train_step(images).finite
    before = state(trainer)

    def counts() -> tuple[int, int, int]:
        return trainer.step, trainer.nonfinite_steps, trainer.nonfinite_in_a_row

    for count in (1, 2):
        assert not trainer.train_step(images).finite
        assert counts() == (2 + count, count, count)
        assert not differing(state(trainer), before)
    assert trainer.train_step(images).finite
    assert counts() == (5, 2, 0)
    assert trainer.all_finite()
    assert trainer.ema.num_updates == 3


class OftenSaved(TinyRun):
    """Saves at every step, logs every step."""

    def train(self, **overrides: object) -> int:
        freq = {"training__log_freq": 1, "training__snapshot_freq_for_preemption": 1}
        settings = {"training__max_nonfinite_steps": 3, "training__snapshot_freq": 2}
        return super().train(**{**freq, **settings, **overrides})


@pytest.fixture
def run(tiny_array: Path, tmp_path: Path) -> OftenSaved:
    return OftenSaved(tiny_array, tmp_path)


def test_nonfinite_steps_are_skipped_counted_and_survived(
    run: OftenSaved, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two in a row are under the limit; rows of metrics stay JSON; a run may end with a skipped
    step.
    """
    spoil_steps(monkeypatch, {1, 2, 5})
    saved = run.finish()
    assert (saved["step"], saved["nonfinite_steps"], saved["ema"]["num_updates"]) == (6, 3, 3)
    rows = run.rows("nonfinite_steps")
    assert [row["nonfinite_steps"] for row in rows] == [0, 1, 2, 2, 2, 3]
    assert ["loss" in row for row in rows] == [True, False, False, True, True, False]
    assert "NaN" not in (run.workdir / "metrics.jsonl").read_text()
    assert "step 2: loss nan, gradient nan: skipped (1 in a row)" in capsys.readouterr().err
    run.finish()
    assert "already finished at step 6" in capsys.readouterr().out


def test_finding_the_loss_scale_is_no_cause_for_warnings(
    run: OftenSaved, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """float16 begins with a scale that overflows: such steps are skipped, not reported and not
    limited.
    """
    spoil_steps(monkeypatch, {0, 1, 2, 3}, SPOILT["inf"])
    saved = run.finish(optim__automatic_mp=True, optim__amp_dtype="float16")
    assert saved["nonfinite_steps"] >= 4
    assert "skipped" not in capsys.readouterr().err


def test_interrupted_amid_nonfinite_steps_is_undisturbed(
    run: OftenSaved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved with the count, so that the end is the same, also where that is the limit."""
    spoil_steps(monkeypatch, {1, 2, 4})
    undisturbed = OftenSaved(run.array, run.workdir / "undisturbed")
    undisturbed.finish()
    run.interrupt(1)
    assert read(meta_path(run.workdir))["nonfinite_in_a_row"] == 1
    run.finish()
    assert not differing(run.state(), undisturbed.state())


def test_too_many_stop_the_run(run: OftenSaved, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line; the checkpoint from before the first of them, bit for bit; the batch in the
    metrics; the command continues.
    """
    run.finish(training__n_iters=2)
    before = meta_path(run.workdir).read_bytes()
    message = r"step 5: loss nan, gradient nan, .*config\.training\.max_nonfinite_steps = 3"
    with monkeypatch.context() as patch:
        spoil_steps(patch, {2, 3, 4, 5}, SPOILT["one example"])
        with bad_input(message):
            run.train(training__n_iters=8)
    assert meta_path(run.workdir).read_bytes() == before
    assert read(numbered_path(run.workdir, 2))["step"] == 4, "numbered ones replace nothing"
    facts = run.rows("event")[-1]
    assert (facts["step"], facts["event"], facts["precision"]) == (5, "stopped", "float32")
    assert facts["weights_not_finite"] == []
    assert [loss == "nan" for loss in facts["losses"]] == [False, False, True, False]
    assert len(facts["images"]) == len(facts["levels"]) == 4
    assert run.finish(training__n_iters=8, optim__lr=1e-4)["step"] == 8


@pytest.mark.parametrize(
    ("freq", "message"),
    [(1, "step 1: weights or averages are not finite"), (100, "non-finite steps in a row")],
)
def test_weights_that_are_not_finite_are_never_saved(
    freq: int, message: str, run: OftenSaved
) -> None:
    """An absurd learning rate takes the weights themselves out of range, with finite gradients."""
    names = ("snapshot_freq", "snapshot_freq_for_preemption")
    saving = {f"training__{name}": freq for name in names}
    with bad_input(message):
        run.train(optim__lr=1e39, optim__warmup=0, **saving)
    assert not list(run.workdir.rglob("*.pth"))
