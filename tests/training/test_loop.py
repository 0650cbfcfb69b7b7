"""One training step, and runs: the same whether or not interrupted, accumulated, or fed by worker processes."""

import copy
import json
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from scripts.checkpoint import meta_path, numbered_path, read
from scripts.errors import UserError
from scripts.io import read_json_lines
from scripts.training import loop as training
from scripts.training.loop import train
from scripts.training.metrics import LossWindow
from scripts.training.step import StepResult, Trainer, draw_levels, learning_rate
from tests.conftest import tiny_config

CPU = torch.device("cpu")


def array_config(path: Path, **overrides: object) -> ConfigDict:
    """Tiny training on the tiny array, dropout and flips included."""
    return tiny_config(data__dataset="npy", data__path=str(path), **overrides)


def assert_equal_state(one: Any, other: Any, where: str = "") -> None:
    """Bit for bit, through nested dicts and lists."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal_state(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_equal_state(*pair, f"{where}[{i}]")
    else:
        assert one == other, where


def final_state(workdir: Path) -> dict[str, Any]:
    contents = read(meta_path(workdir))
    for name in ("config", "provenance"):  # the command and the time are not the same
        contents.pop(name)
    return contents


@pytest.fixture(scope="module")
def undisturbed(tiny_array: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The end of a run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    assert train(array_config(tiny_array), workdir) == 0
    return final_state(workdir)


class SignalAfter:
    """Stands in for the training step; sends this process a signal during step `step`."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number
        self.train_step = Trainer.train_step

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def train_step(trainer: Trainer, images: torch.Tensor) -> object:
            if trainer.step == self.step:
                os.kill(os.getpid(), self.number)
            return self.train_step(trainer, images)

        monkeypatch.setattr(Trainer, "train_step", train_step)


@pytest.mark.parametrize(("step", "workers"), [(0, 0), (2, 2), (4, 0), (5, 0)])
def test_interrupted_and_resumed_is_undisturbed(
    step: int,
    workers: int,
    undisturbed: dict[str, Any],
    tiny_array: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """SIGTERM during a step: saved right after it, exit code 0, and the run goes on to bit-identical weights and averages."""
    config = array_config(tiny_array, data__num_workers=workers)
    with monkeypatch.context() as patch:
        SignalAfter(step, signal.SIGTERM).install(patch)
        assert train(config, tmp_path) == 0
    assert read(meta_path(tmp_path))["step"] == step + 1
    assert f"SIGTERM: saved at step {step + 1}" in capsys.readouterr().out
    assert train(array_config(tiny_array), tmp_path) == 0
    assert_equal_state(final_state(tmp_path), undisturbed)


def test_interrupted_twice(
    undisturbed: dict[str, Any], tiny_array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = array_config(tiny_array)
    for step, code in ((1, 0), (3, 130)):
        with monkeypatch.context() as patch:
            SignalAfter(step, signal.SIGTERM if code == 0 else signal.SIGINT).install(patch)
            assert train(config, tmp_path) == code
    assert train(config, tmp_path) == 0
    assert_equal_state(final_state(tmp_path), undisturbed)


class Killed(BaseException):
    """Nothing in the program catches this, as nothing survives kill -9."""


def test_killed_between_saves(
    undisturbed: dict[str, Any], tiny_array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on from the last save; metrics of the lost steps are not there twice."""
    config = array_config(tiny_array, training__snapshot_freq_for_preemption=2, training__log_freq=1)
    train_step = Trainer.train_step

    def die_at_5(trainer: Trainer, images: torch.Tensor) -> object:
        if trainer.step == 5:
            raise Killed
        return train_step(trainer, images)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", die_at_5)
        with pytest.raises(Killed):
            train(config, tmp_path)
    assert read(meta_path(tmp_path))["step"] == 4
    assert train(config, tmp_path) == 0
    assert_equal_state(final_state(tmp_path), undisturbed)
    assert [row["step"] for row in read_json_lines(tmp_path / "metrics.jsonl") if "loss" in row] == [1, 2, 3, 4, 5, 6]


def test_evaluation_and_samples_lost_to_a_signal_are_made_up_for(
    tiny_array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = array_config(tiny_array, training__eval_freq=3, training__sampling_freq=3)
    with monkeypatch.context() as patch:
        SignalAfter(2, signal.SIGTERM).install(patch)  # the third step ends with both due
        assert train(config, tmp_path) == 0
    assert not (tmp_path / "samples" / "iter_3").exists()
    assert train(config, tmp_path) == 0
    assert [row["step"] for row in read_json_lines(tmp_path / "metrics.jsonl") if "eval_loss" in row] == [3, 6]
    for step in (3, 6):
        assert (tmp_path / "samples" / f"iter_{step}" / "process.mp4").exists()


def test_extending_a_finished_run(tiny_array: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(array_config(tiny_array, training__n_iters=3), tmp_path / "extended") == 0
    assert train(array_config(tiny_array, training__n_iters=3), tmp_path / "extended") == 0
    assert "already finished at step 3" in capsys.readouterr().out
    assert train(array_config(tiny_array, training__n_iters=5), tmp_path / "extended") == 0
    assert train(array_config(tiny_array, training__n_iters=5), tmp_path / "at once") == 0
    assert_equal_state(final_state(tmp_path / "extended"), final_state(tmp_path / "at once"))


def test_the_last_step_has_a_numbered_checkpoint(tiny_array: Path, tmp_path: Path) -> None:
    """Number n is step n * snapshot_freq; a last step in between has the next number."""
    assert train(array_config(tiny_array, training__n_iters=5, training__snapshot_freq=2), tmp_path) == 0
    assert [read(numbered_path(tmp_path, n))["step"] for n in (1, 2, 3)] == [2, 4, 5]
    assert not numbered_path(tmp_path, 4).exists()


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        ({"model__K": 4}, ["config.model.K was 3, now 4"]),
        ({"data__random_flip": False, "model__sigma": 0.02}, ["config.data.random_flip", "config.model.sigma"]),
    ],
)
def test_resuming_another_model_or_data_is_refused(
    overrides: dict[str, Any], keys: list[str], tiny_array: Path, tmp_path: Path
) -> None:
    assert train(array_config(tiny_array, training__n_iters=1), tmp_path) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as error:
        train(array_config(tiny_array, **overrides), tmp_path)
    assert all(key in str(error.value) for key in keys)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_second_training_in_one_workdir(tiny_array: Path, tmp_path: Path) -> None:
    """From a process of its own: these locks are between processes, and not inherited by those that read images."""
    with training.exclusive(tmp_path), ProcessPoolExecutor(1, get_context("fork")) as other:
        error = other.submit(train, array_config(tiny_array), tmp_path).exception()
    assert isinstance(error, UserError)
    assert "another training is running there" in str(error)


def test_damaged_newest_checkpoint(
    undisturbed: dict[str, Any], tiny_array: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """The one before it is used, with a warning; the damaged one is set aside, and the end is the same."""
    config = array_config(tiny_array, training__n_iters=4, training__snapshot_freq_for_preemption=2)
    assert train(config, tmp_path) == 0
    path = meta_path(tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="checksum"):
        assert train(array_config(tiny_array), tmp_path) == 0
    assert_equal_state(final_state(tmp_path), undisturbed)
    assert path.with_suffix(".unreadable").read_bytes() == data


def train_steps(config: ConfigDict, count: int) -> Trainer:
    trainer = Trainer(config, CPU)
    rng = np.random.default_rng(0)
    for _ in range(count):
        trainer.train_step(torch.from_numpy(rng.random((config.training.batch_size, 1, 8, 8), dtype=np.float32)))
    return trainer


def test_accumulation_is_the_full_batch() -> None:
    """Same data, levels and noise; without dropout, whose masks are drawn per part, the same weights to float error."""
    whole, parts = (train_steps(tiny_config(model__dropout=0.0, training__accumulation_steps=n), 3) for n in (1, 4))

    def flat(trainer: Trainer) -> tuple[torch.Tensor, torch.Tensor]:
        weights = list(trainer.model.parameters())
        moments = [trainer.optimizer.state[weight]["exp_avg"] for weight in weights]
        return torch.cat([w.detach().flatten() for w in weights]), torch.cat([m.flatten() for m in moments])

    start = flat(train_steps(whole.config, 1))[0]
    (weights, moments), (other_weights, other_moments) = flat(whole), flat(parts)
    assert (moments - other_moments).norm() < 1e-5 * moments.norm()
    # Adam divides by the gradient's own size, so that float error in the smallest ones shows in the weights.
    assert (weights - other_weights).norm() < 3e-3 * (weights - start).norm()


def test_averages_follow_the_weights() -> None:
    trainer = train_steps(tiny_config(), 1)
    start = Trainer(tiny_config(), CPU)
    decay = min(0.999, 2 / 11)
    for name, weight in trainer.model.named_parameters():
        expected = decay * start.ema.shadow[name] + (1 - decay) * weight
        torch.testing.assert_close(trainer.ema.shadow[name], expected)


@pytest.mark.parametrize("amp_dtype", ["bfloat16", "float16"])
def test_mixed_precision_trains_alike(amp_dtype: str) -> None:
    """Losses near those in float32, which a forgotten scale or a target in 16 bits would not give."""
    images = torch.rand(4, 1, 8, 8)
    results = []
    for mixed in (False, True):
        trainer = Trainer(tiny_config(optim__automatic_mp=mixed, optim__amp_dtype=amp_dtype), CPU)
        steps = [trainer.train_step(images) for _ in range(8)]
        results.append([step.losses.mean().item() for step in steps if not step.overflowed][:5])
    np.testing.assert_allclose(results[1], results[0], rtol=0.05)


def test_an_overflow_in_float16_changes_nothing_but_the_scale() -> None:
    """Weights, averages, optimizer and step stay, the same batch is tried again, and the scaler's state is saved."""
    config = tiny_config(optim__automatic_mp=True, optim__amp_dtype="float16")
    images = torch.rand(4, 1, 8, 8)
    trainer = Trainer(config, CPU)
    while trainer.step == 0:  # the initial scale is meant to be too large
        trainer.train_step(images)
    before = copy.deepcopy(trainer.state_dict())
    trainer.scaler.update(1e30)
    result = trainer.train_step(images)
    assert result.overflowed
    assert trainer.step == 1
    after = trainer.state_dict()
    for part in ("step", "model", "ema"):
        assert_equal_state(after[part], before[part])
    assert_equal_state(after["optimizer"]["state"], before["optimizer"]["state"])
    assert trainer.state_dict()["scaler"]["scale"] == pytest.approx(5e29)
    trainer.scaler.update(1024.0)
    assert not trainer.train_step(images).overflowed
    again = Trainer(config, CPU)
    again.load_state_dict(trainer.state_dict())
    assert again.scaler.get_scale() == 1024


def test_gradient_clipping() -> None:
    """With plain SGD-like numbers: the reported norm is from before clipping, and the update does not exceed the limit."""
    config = tiny_config(optim__grad_clip=1e-3)
    clipped = Trainer(config, CPU)
    free = Trainer(tiny_config(optim__grad_clip=0.0), CPU)
    images = torch.rand(4, 1, 8, 8)
    assert clipped.train_step(images).grad_norm == pytest.approx(free.train_step(images).grad_norm)
    moments = [clipped.optimizer.state[weight]["exp_avg"] for weight in clipped.model.parameters()]
    norm = torch.cat([m.flatten() for m in moments]).norm().item()
    assert norm == pytest.approx(0.1 * 1e-3, rel=1e-3)  # Adam's first moment after one step is (1 - beta1) g


def test_tiny_overfitting() -> None:
    """A few images learnt by heart: the loss falls to a tenth."""
    config = tiny_config(model__dropout=0.0, model__ema_rate=0.5, optim__lr=3e-3, optim__warmup=1, training__batch_size=8)
    trainer = Trainer(config, CPU)
    rows, columns = np.mgrid[:8, :8]
    images = torch.from_numpy(np.stack([(rows + i * columns) % 3 for i in range(2)]) / 2).float()[:, None].repeat(4, 1, 1, 1)
    losses = [trainer.train_step(images).losses.mean().item() for _ in range(150)]
    assert np.mean(losses[-10:]) < 0.1 * np.mean(losses[:3])


def test_learning_rate() -> None:
    def rate(step: int, schedule: str) -> float:
        return learning_rate(step, lr=1.0, warmup=10, schedule=schedule, n_iters=110)

    assert [rate(step, "constant") for step in (0, 4, 9, 50, 109)] == pytest.approx([0.1, 0.5, 1, 1, 1])
    assert [rate(step, "cosine") for step in (0, 9, 10, 60, 110)] == pytest.approx([0.1, 1, 1, 0.5, 0], abs=1e-12)
    assert learning_rate(0, lr=2.0, warmup=0, schedule="constant", n_iters=5) == 2.0


@pytest.mark.parametrize(("protocol", "last"), [("paper", 5), ("released", 4)])
def test_training_levels(protocol: str, last: int) -> None:
    """The paper trains level K, from which sampling starts; the release does not."""
    levels = torch.cat([draw_levels(0, step, 64, 5, protocol) for step in range(20)])
    assert sorted(set(levels.tolist())) == list(range(1, last + 1))
    counts = torch.bincount(levels)[1:]
    assert (counts / len(levels) - 1 / last).abs().max() < 0.05


def test_bands_of_levels() -> None:
    window = LossWindow(K=10)
    for grad_norm in (2.0, 4.0):
        window.add(StepResult(torch.arange(10.0), torch.arange(1, 11), grad_norm, overflowed=False), seconds=0.5)
    row = window.summary()
    assert (row["loss"], row["grad_norm"], row["images_per_second"]) == (4.5, 3.0, 20.0)
    bands = {name: value for name, value in row.items() if name.startswith("loss_levels")}
    assert bands == {
        "loss_levels_1_to_2": 0.5,
        "loss_levels_3_to_5": 3.0,
        "loss_levels_6_to_7": 5.5,
        "loss_levels_8_to_10": 8.0,
    }


def test_rows_of_metrics(tiny_array: Path, tmp_path: Path) -> None:
    assert train(array_config(tiny_array, training__eval_freq=6), tmp_path) == 0
    rows = read_json_lines(tmp_path / "metrics.jsonl")
    trained = [row for row in rows if "loss" in row]
    assert [row["step"] for row in trained] == [2, 4, 6]
    assert {"loss", "lr", "grad_norm", "images_per_second", "loss_levels_1_to_1"} <= trained[0].keys()
    (evaluated,) = [row for row in rows if "eval_loss" in row]
    assert evaluated["eval_num_images"] == 4  # a tenth of forty
    assert evaluated["eval_loss_standard_error"] > 0
    assert list((tmp_path / "tensorboard").iterdir())
    assert json.loads((tmp_path / "config.json").read_text())["model"]["K"] == 3


def test_evaluation_does_not_depend_on_its_batches(tiny_array: Path, tmp_path: Path) -> None:
    losses = []
    for size in (1, 4):
        workdir = tmp_path / str(size)
        assert train(array_config(tiny_array, training__n_iters=2, eval__batch_size=size), workdir) == 0
        losses.append([row["eval_loss"] for row in read_json_lines(workdir / "metrics.jsonl") if "eval_loss" in row])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_nothing_is_written_for_bad_input(tmp_path: Path, make_config: Callable[..., ConfigDict]) -> None:
    workdir = tmp_path / "run"
    for overrides in ({"model__K": 0}, {"data__dataset": "imagenet"}, {"device": "cuda:99"}, {"device": "tpu"}):
        with pytest.raises(UserError):
            train(make_config(**overrides), workdir)
    assert not workdir.exists()


def test_other_images_under_the_same_name_are_refused(tiny_array: Path, tmp_path: Path) -> None:
    """More or fewer images would move the split and every epoch's order, and leave the prior bank behind."""
    path = tmp_path / "mine.npy"
    np.save(path, np.load(tiny_array))
    assert train(array_config(path, training__n_iters=1), tmp_path / "run") == 0
    np.save(path, np.load(tiny_array)[:-5])
    with pytest.raises(UserError, match=r"trained on other images .*\(36 then, 32 now\)"):
        train(array_config(path), tmp_path / "run")


@pytest.mark.parametrize("saved_in", ["float32", "float16"])
def test_precision_and_optimizer_settings_may_change_on_resuming(saved_in: str, tiny_array: Path, tmp_path: Path) -> None:
    """What is announced as changed has changed; the moments are the old ones."""
    other = "float16" if saved_in == "float32" else "float32"

    def config(precision: str, **overrides: object) -> ConfigDict:
        return array_config(tiny_array, optim__automatic_mp=precision == "float16", optim__amp_dtype="float16", **overrides)

    assert train(config(saved_in, training__n_iters=2), tmp_path) == 0
    assert train(config(other, training__n_iters=4, optim__weight_decay=0.5, optim__eps=1e-3), tmp_path) == 0
    saved = read(meta_path(tmp_path))
    assert saved["step"] == 4
    (group,) = saved["optimizer"]["param_groups"]
    assert (group["weight_decay"], group["eps"]) == (0.5, 1e-3)
