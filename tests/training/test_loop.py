"""Runs: the same whether or not they are interrupted, killed, extended or fed by threads."""

import json
import shutil
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.config.resolve import resolve
from scripts.errors import UserError
from scripts.runtime.device import Precision
from scripts.storage.checkpoint import meta_path, numbered_path, read, write_meta
from scripts.storage.files import exclusive, read_json_lines
from scripts.training.log import LossWindow, MetricsWriter
from scripts.training.loop import train
from scripts.training.plan import describe
from scripts.training.step import StepResult
from tests.conftest import bad_input
from tests.images import numbered
from tests.tiny import tiny_config
from tests.training.runs import TinyRun, array_config, differing, finish


@pytest.mark.parametrize(
    ("signals", "workers"),
    [({2: signal.SIGTERM}, 2), ({1: signal.SIGTERM, 3: signal.SIGINT, 5: signal.SIGTERM}, 0)],
)
def test_interrupted_and_resumed_is_undisturbed(
    signals: dict[int, signal.Signals],
    workers: int,
    tiny_run: TinyRun,
    undisturbed: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A signal during a step: saved right after it, and the run continues to bit-identical weights
    and averages.
    """
    for step, number in signals.items():
        tiny_run.interrupt(step, number, data__num_workers=workers)
        assert f"{number.name}: saved at step {step + 1}" in capsys.readouterr().out
    tiny_run.finish()
    assert not differing(tiny_run.state(), undisturbed)


class Killed(BaseException):
    """Nothing in the program catches this, as nothing survives kill -9."""


def kill() -> None:
    raise Killed


def test_killed_between_saves(tiny_run: TinyRun, undisturbed: dict[str, Any]) -> None:
    """The run continues from the last save; metrics of the lost steps are not there twice."""
    freq = {"training__snapshot_freq_for_preemption": 2, "training__log_freq": 1}
    with pytest.raises(Killed):
        tiny_run.disturb(5, kill, **freq, data__num_workers=2)
    assert read(meta_path(tiny_run.workdir))["step"] == 4
    tiny_run.finish(**freq)
    assert not differing(tiny_run.state(), undisturbed)
    assert [row["step"] for row in tiny_run.rows("loss")] == [1, 2, 3, 4, 5, 6]


def test_evaluation_and_samples_lost_to_a_signal_are_made_up_for(tiny_run: TinyRun) -> None:
    freq = {"training__eval_freq": 3, "training__sampling_freq": 3}
    tiny_run.interrupt(2, **freq)  # the third step ends with both due
    places = [tiny_run.workdir / "samples" / f"iter_{step}" / "final.png" for step in (3, 6)]
    assert not places[0].exists()
    tiny_run.finish(**freq)
    assert [row["step"] for row in tiny_run.rows("eval_loss")] == [3, 6]
    assert all(place.exists() for place in places)


def test_extending_a_finished_run(
    tiny_run: TinyRun, undisturbed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Other settings of the optimizer may come with it."""
    for _ in range(2):
        tiny_run.finish(training__n_iters=3)
    assert "already finished at step 3" in capsys.readouterr().out
    tiny_run.finish()
    assert not differing(tiny_run.state(), undisturbed)
    other = {"optim__weight_decay": 0.5, "optim__eps": 1e-3}
    (group,) = tiny_run.finish(training__n_iters=7, **other)["optimizer"]["param_groups"]
    assert (group["weight_decay"], group["eps"]) == (0.5, 1e-3)


@pytest.mark.parametrize(
    "changed", [{"model__K": 4}, {"data__random_flip": False, "model__sigma": 0.02}]
)
def test_resuming_another_model_or_data_is_refused(
    changed: dict[str, Any], trained_run: Path
) -> None:
    files = {path: path.read_bytes() for path in trained_run.rglob("*") if path.is_file()}
    with bad_input() as error:
        train(tiny_config(**changed), trained_run)
    for key in changed:
        assert f"config.{key.replace('__', '.')} was " in str(error.value)
    assert {path: path.read_bytes() for path in trained_run.rglob("*") if path.is_file()} == files


def test_other_images_under_the_same_name_are_refused(tiny_array: Path, tmp_path: Path) -> None:
    """Another number of images, and the same number with other pixels; a checkpoint without their
    checksums says less, or is accepted.
    """
    path, images = tmp_path / "mine.npy", np.load(tiny_array)
    other_pixels = images.copy()
    other_pixels[0] ^= 1
    np.save(path, images)
    saved = finish(array_config(path, training__n_iters=1), tmp_path / "run")

    def refused(other: np.ndarray, message: str) -> None:
        np.save(path, other)
        with bad_input(rf"trained on other images .*{message}"):
            train(array_config(path), tmp_path / "run")

    fine_tune = ".*init_from=.* trains on these images"
    refused(images[:-5], rf"\(36 then, 32 now, names: 5 gone, 1 new, such as image 2\){fine_tune}")
    refused(other_pixels, r"\(36 then, 36 now, other pixels in 1 of 36 images: image 0\)")
    refused(255 - images, "other pixels in 36 of 36 images: image 0, image 1, image 3, ...")
    data = {
        key: saved["data"][key] for key in saved["data"] if not key.endswith(("names", "pixels"))
    }
    write_meta(tmp_path / "run", {**saved, "data": data})
    refused(255 - images, r"\(36 then, 36 now\)")


def test_precision_of_the_checkpoint_is_kept(
    tiny_run: TinyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where "auto" would choose another on this processor; unless the configuration names one."""

    def precision(n_iters: int, amp_dtype: str) -> str:
        mixed = {"optim__automatic_mp": True, "optim__amp_dtype": amp_dtype}
        return tiny_run.finish(training__n_iters=n_iters, **mixed)["precision"]

    here = precision(1, "auto")
    other = "float32" if here == "bfloat16" else "bfloat16"
    saved = read(meta_path(tiny_run.workdir))
    write_meta(tiny_run.workdir, saved | {"precision": other})
    assert precision(2, "auto") == other
    shown = {"float32": "float32", "bfloat16": "bfloat16 autocast"}[other]
    assert f"{shown} (as before; " in capsys.readouterr().out
    assert precision(3, "float16") == "float16"
    assert precision(4, "auto") == here


def test_second_training_in_one_workdir(tiny_run: TinyRun) -> None:
    """From a process of its own, as these locks are between processes."""
    tiny_run.workdir.mkdir()
    fork = get_context("fork")
    with exclusive(tiny_run.workdir, "taken"), ProcessPoolExecutor(1, fork) as other:
        error = other.submit(tiny_run.train).exception()
    assert isinstance(error, UserError)
    assert "another training is running there" in str(error)


def test_damaged_newest_checkpoint(tiny_run: TinyRun, undisturbed: dict[str, Any]) -> None:
    """The one before it is used, with a warning, and the end is the same."""
    tiny_run.finish(training__n_iters=4, training__snapshot_freq_for_preemption=2)
    path = meta_path(tiny_run.workdir)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="checksum"):
        tiny_run.finish()
    assert not differing(tiny_run.state(), undisturbed)


def test_bands_of_levels() -> None:
    window = LossWindow(K=10)
    for grad_norm in (2.0, 4.0):
        window.add(StepResult(torch.arange(10.0), torch.arange(1, 11), grad_norm), seconds=0.5)
    row = window.summary()
    assert (row["loss"], row["grad_norm"], row["images_per_second"]) == (4.5, 3.0, 20.0)
    bands = {name: value for name, value in row.items() if name.startswith("loss_levels")}
    assert bands == {
        "loss_levels_1_to_2": 0.5,
        "loss_levels_3_to_5": 3.0,
        "loss_levels_6_to_7": 5.5,
        "loss_levels_8_to_10": 8.0,
    }


def test_what_a_run_measures(tiny_run: TinyRun) -> None:
    """In metrics.jsonl and in TensorBoard, there with pictures of samples and the configuration."""
    tiny_run.finish(training__eval_freq=6, training__sampling_freq=6)
    trained = tiny_run.rows("loss")
    assert [row["step"] for row in trained] == [2, 4, 6]
    measured = {"lr", "grad_norm", "images_per_second", "loss_levels_1_to_1", "nonfinite_steps"}
    assert measured <= trained[0].keys()
    (evaluated,) = tiny_run.rows("eval_loss")
    assert evaluated["eval_num_images"] == 4  # a tenth of forty
    assert evaluated["eval_loss_standard_error"] > 0
    config = json.loads((tiny_run.workdir / "config.json").read_text())
    assert config["model"]["K"] == 3
    events = EventAccumulator(str(tiny_run.workdir / "tensorboard"))
    events.Reload()
    assert [point.step for point in events.Scalars("train/loss")] == [2, 4, 6]
    assert [point.step for point in events.Scalars("held_out/loss")] == [6]
    assert not [tag for tag in events.Tags()["scalars"] if "nonfinite" in tag or "num_" in tag]
    assert [picture.step for picture in events.Images("samples")] == [6]
    (text,) = events.Tensors("config/text_summary")
    assert b'"blur_sigma_max"' in text.tensor_proto.string_val[0]
    again = TinyRun(tiny_run.array, tiny_run.workdir / "again")
    again.finish(training__eval_freq=2, eval__batch_size=1)
    loss = again.rows("eval_loss")[-1]["eval_loss"]
    assert loss == pytest.approx(evaluated["eval_loss"], rel=1e-4), "whatever the batches"


def test_rows_without_a_step_are_kept(tmp_path: Path) -> None:
    rows = [{"note": "by hand"}, {"step": 3, "eval_loss": 1.0}, {"step": 7, "loss": 1.0}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with MetricsWriter(tmp_path, 5) as metrics:
        assert metrics.evaluated_steps == {3}
    assert read_json_lines(path) == rows[:2]


def test_all_gpus_are_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with several, to one process that did not choose among them."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    precision = Precision.named(torch.device("cuda"), "float32")
    for device, shown in (("auto", True), ("cuda:1", False)):
        experiment = resolve(tiny_config(device=device))
        text = describe(experiment, precision, numbered(9), numbered(1), 0)
        assert ("torchrun --nproc_per_node=4" in text) == shown


def test_nothing_is_written_for_bad_input(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    missing: dict[str, object] = {"data__dataset": "ffhq", "data__path": str(tmp_path / "nowhere")}
    other: list[dict[str, object]] = [{"model__K": 0}, {"data__dataset": "imagenet"}]
    other += [{"device": "cuda:99"}, {"device": "tpu"}, missing]
    for overrides in other:
        with bad_input():
            train(tiny_config(**overrides), workdir)
    assert not workdir.exists()


def test_a_snapshot_never_takes_the_place_of_another_steps(tiny_run: TinyRun) -> None:
    """Number n is step n * snapshot_freq, a last step in between has the next number; also when
    continuing with another snapshot_freq or n_iters. A step that is done again has the number that
    it had.
    """

    def steps(n_iters: int, freq: int) -> dict[int, int]:
        training = {"training__n_iters": n_iters, "training__snapshot_freq": freq}
        tiny_run.finish(**training, training__snapshot_full=True)
        paths = (tiny_run.workdir / "checkpoints").glob("*.pth")
        return {int(path.stem.removeprefix("checkpoint_")): read(path)["step"] for path in paths}

    assert steps(3, 2) == {1: 2, 2: 3}
    assert steps(4, 2) == {1: 2, 2: 3, 3: 4}
    assert steps(6, 3) == {1: 2, 2: 3, 3: 4, 4: 6}
    # As if killed after step 4.
    shutil.copy(numbered_path(tiny_run.workdir, 3), meta_path(tiny_run.workdir))
    assert steps(6, 3) == {1: 2, 2: 3, 3: 4, 4: 6}
