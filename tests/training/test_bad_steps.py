"""A loss or gradient that is not finite: never reaches weights or averages, is skipped, counted, and in the end diagnosed."""

import copy
import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from scripts.checkpoint import meta_path, numbered_path, read
from scripts.errors import UserError
from scripts.io import read_json_lines
from scripts.losses import deblurring_loss
from scripts.training import step as train_step
from scripts.training.loop import train
from scripts.training.step import Trainer
from tests.conftest import tiny_config
from tests.training.test_loop import CPU, array_config, assert_equal_state, final_state

Spoil = Callable[[torch.Tensor], torch.Tensor]
SPOILT: dict[str, Spoil] = {
    "nan": lambda loss: loss * math.nan,
    "inf": lambda loss: loss * math.inf,
    "one example": lambda loss: loss * torch.tensor([1, 1, math.nan, 1]),
    "a loss with a finite gradient": lambda loss: loss + math.inf,
}
FLOAT16: dict[str, object] = {"optim__automatic_mp": True, "optim__amp_dtype": "float16"}
PRECISIONS: dict[str, dict[str, object]] = {
    "float32": {},
    "bfloat16": {"optim__automatic_mp": True, "optim__amp_dtype": "bfloat16"},
    "float16": FLOAT16,
    "float16 with fallback": {**FLOAT16, "optim__fp16_fallback": "float32"},
}


def spoil_steps(patch: pytest.MonkeyPatch, bad: set[int], spoil: Spoil = SPOILT["nan"], float16_only: bool = False) -> None:
    """Losses of the 0-based steps `bad` are spoilt: a function of the step, as faults of data and weights are."""
    own = Trainer._backward

    def backward(trainer: Trainer, *args: object) -> object:
        def loss(*terms: object) -> torch.Tensor:
            good = deblurring_loss(*terms)  # type: ignore[arg-type]
            hit = trainer.step in bad and (not float16_only or torch.get_autocast_dtype("cpu") == torch.float16)
            return spoil(good) if hit and (not float16_only or torch.is_autocast_enabled("cpu")) else good

        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(train_step, "deblurring_loss", loss)
            return own(trainer, *args)  # type: ignore[arg-type]

    patch.setattr(Trainer, "_backward", backward)


def state(trainer: Trainer) -> dict[str, object]:
    """All that a bad step must leave alone."""
    return copy.deepcopy(
        {
            "model": trainer.model.state_dict(),
            "ema": trainer.ema.state_dict(),
            "moments": trainer.optimizer.state_dict()["state"],
            "scaler": trainer.scaler.state_dict(),
        }
    )


@pytest.mark.parametrize(
    ("precision", "spoilt"),
    [*(("float32", spoilt) for spoilt in SPOILT), ("bfloat16", "nan"), ("float16", "inf"), ("float16 with fallback", "nan")],
)
def test_a_bad_step_changes_nothing(precision: str, spoilt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, averages, moments and loss scale are those of before, and the next good step is an ordinary one."""
    monkeypatch.setattr(train_step, "MAX_OVERFLOWS", 3)
    trainer = Trainer(tiny_config(**PRECISIONS[precision]), CPU)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=128.0, enabled=precision.startswith("float16"))
    images = torch.rand(4, 1, 8, 8)
    spoil_steps(monkeypatch, {2, 3}, SPOILT[spoilt])
    while trainer.step < 2:
        assert trainer.train_step(images).finite
    before = state(trainer)
    for bad in (1, 2):
        while (result := trainer.train_step(images)).overflowed:
            assert trainer.step == bad + 1
        assert not result.finite
        assert result.bad_parameters
        assert (trainer.step, trainer.bad_steps, trainer.bad_in_a_row) == (2 + bad, bad, bad)
        assert_equal_state(state(trainer), before)
    assert trainer.train_step(images).finite
    assert (trainer.step, trainer.bad_steps, trainer.bad_in_a_row) == (5, 2, 0)
    assert all(weight.isfinite().all() for weight in [*trainer.model.parameters(), *trainer.ema.shadow.values()])
    assert trainer.ema.num_updates == 3


@pytest.fixture
def config(tiny_array: Path) -> ConfigDict:
    """Saves at every step, logs every step."""
    return array_config(
        tiny_array, training__log_freq=1, training__snapshot_freq_for_preemption=1, training__max_nonfinite_steps=3,
        training__snapshot_freq=2,
    )  # fmt: skip


def test_bad_steps_are_skipped_counted_and_survived(
    config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two in a row are under the limit; rows of metrics stay JSON; a bad last step does not keep the run from its end."""
    spoil_steps(monkeypatch, {1, 2, 5})
    assert train(config, tmp_path) == 0
    saved = read(meta_path(tmp_path))
    assert (saved["step"], saved["bad_steps"], saved["ema"]["num_updates"]) == (6, 3, 3)
    rows = [row for row in read_json_lines(tmp_path / "metrics.jsonl") if "bad_steps" in row]
    assert [row["bad_steps"] for row in rows] == [0, 1, 2, 2, 2, 3]
    assert ["loss" in row for row in rows] == [True, False, False, True, True, False]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    captured = capsys.readouterr()
    assert "step 2 was bad and is skipped (loss nan, gradient nan; 1 in a row)" in captured.out + captured.err
    assert train(config, tmp_path) == 0
    assert "already finished at step 6" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_amid_bad_steps_is_undisturbed(
    number: int, config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved with the count, so that the end is the same, also where that is the limit."""
    spoil_steps(monkeypatch, {1, 2, 4})
    assert train(config, tmp_path / "undisturbed") == 0
    spoilt_step = Trainer.train_step

    def interrupted(trainer: Trainer, images: torch.Tensor) -> object:
        if trainer.step == 1:
            os.kill(os.getpid(), number)
        return spoilt_step(trainer, images)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        assert train(config, tmp_path / "run") in (0, 130)
    saved = read(meta_path(tmp_path / "run"))
    assert (saved["step"], saved["bad_in_a_row"]) == (2, 1)
    assert train(config, tmp_path / "run") == 0
    assert_equal_state(final_state(tmp_path / "run"), final_state(tmp_path / "undisturbed"))


def test_too_many_bad_steps_stop_the_run(config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line; the checkpoint from before the first bad step, bit for bit; a diagnosis; and the same command goes on."""
    config.training.n_iters = 2
    assert train(config, tmp_path) == 0
    config.training.n_iters = 8
    before = meta_path(tmp_path).read_bytes()
    with monkeypatch.context() as patch:
        spoil_steps(patch, {2, 3, 4, 5}, SPOILT["one example"])
        with pytest.raises(
            UserError, match=r"step 5: loss nan, gradient nan, .*config\.training\.max_nonfinite_steps = 3"
        ) as error:
            train(config, tmp_path)
    assert "\n" not in str(error.value)
    assert meta_path(tmp_path).read_bytes() == before
    assert read(numbered_path(tmp_path, 2))["step"] == 4, "numbered ones replace nothing, and come on time"
    facts = json.loads((tmp_path / "diagnosis" / "step_5.json").read_text())
    assert (facts["step"], facts["bad_steps_in_a_row"], facts["precision"]) == (5, 3, "float32")
    assert facts["gradient_norm"] == "nan"
    assert facts["learning_rate"] == config.optim.lr
    assert [isinstance(example["loss"], float) for example in facts["examples"]] == [True, True, False, True]
    assert "input_blocks.0.0.weight" in facts["parameters_with_bad_gradients"]
    assert facts["parameters_not_finite"] == []
    with np.load(tmp_path / "diagnosis" / "step_5.npz") as batch:
        assert batch["images"].shape == (4, 1, 8, 8)
        assert batch["indices"].tolist() == [example["index"] for example in facts["examples"]]
        assert batch["levels"].tolist() == [example["level"] for example in facts["examples"]]
    assert not list(tmp_path.rglob("*.partial*"))
    config.optim.lr /= 2
    assert train(config, tmp_path) == 0
    assert read(meta_path(tmp_path))["step"] == 8


@pytest.mark.parametrize(("freq", "message"), [(1, "step 1: weights or averages are not finite"), (100, "bad steps in a row")])
def test_weights_that_are_not_finite_are_never_saved(freq: int, message: str, config: ConfigDict, tmp_path: Path) -> None:
    """An absurd learning rate takes the weights themselves out of range, with finite gradients."""
    config.optim.lr = 1e39
    config.optim.warmup = 0
    config.training.snapshot_freq = config.training.snapshot_freq_for_preemption = freq
    with pytest.raises(UserError, match=message):
        train(config, tmp_path)
    assert not list(tmp_path.rglob("*.pth"))


@pytest.mark.parametrize("fallback", ["bfloat16", "float32"])
def test_a_step_that_overflows_in_float16_is_done_in_another_precision(
    fallback: str, tiny_array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, with a smaller loss scale for the next; that step is the one that the other precision makes; resumes exactly."""
    config = array_config(tiny_array, **FLOAT16, optim__fp16_fallback=fallback, training__snapshot_freq_for_preemption=1)
    images = torch.rand(4, 1, 8, 8)
    spoil_steps(monkeypatch, {0, 3}, float16_only=True)
    trainer = Trainer(config, CPU)
    assert trainer.train_step(images).finite
    assert (trainer.step, trainer.bad_steps, trainer.scaler.get_scale()) == (1, 0, 2.0**15)
    other = Trainer(tiny_config(optim__automatic_mp=fallback == "bfloat16", optim__amp_dtype="bfloat16"), CPU)
    other.train_step(images)
    assert_equal_state(trainer.model.state_dict(), other.model.state_dict())

    assert train(config, tmp_path / "undisturbed") == 0
    for n_iters in (3, 4, 6):
        config.training.n_iters = n_iters
        assert train(config, tmp_path / "run") == 0
    assert_equal_state(final_state(tmp_path / "run"), final_state(tmp_path / "undisturbed"))
    assert final_state(tmp_path / "run")["bad_steps"] == 0


def test_float16_gives_up_on_a_step_after_so_many_overflows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller loss scale does not help against an infinite image; after that it is the same again."""
    monkeypatch.setattr(train_step, "MAX_OVERFLOWS", 6)
    trainer = Trainer(tiny_config(**FLOAT16), CPU)
    attempts = 1
    images = torch.full((4, 1, 8, 8), math.inf)
    while trainer.train_step(images).overflowed:
        attempts += 1
    assert attempts == 6
    assert (trainer.step, trainer.bad_steps, trainer.scaler.get_scale()) == (1, 1, 2.0**16)
