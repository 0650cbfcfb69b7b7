"""Runs: the same whether or not they are interrupted, killed, extended or fed by threads."""

import json
import os
import shutil
import signal
from collections.abc import Callable
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
from tests.images import numbered
from tests.tiny import tiny_config
from tests.training.runs import array_config, before_step, differing, final_state


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize(("step", "workers"), [(2, 2), (5, 0)])
def test_interrupted_and_resumed_is_undisturbed(
    step: int,
    workers: int,
    undisturbed: dict[str, Any],
    tiny_array: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """SIGTERM during a step: saved right after it, and the run goes on to bit-identical weights and
    averages.
    """
    config = array_config(tiny_array, data__num_workers=workers)
    with monkeypatch.context() as patch:
        before_step(patch, step, send(signal.SIGTERM))
        assert train(config, tmp_path) == 143
    assert read(meta_path(tmp_path))["step"] == step + 1
    assert f"SIGTERM: saved at step {step + 1}" in capsys.readouterr().out
    assert train(array_config(tiny_array), tmp_path) == 0
    assert not differing(final_state(tmp_path), undisturbed)


def test_interrupted_twice(
    undisturbed: dict[str, Any], tiny_array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = array_config(tiny_array)
    for step, number, code in ((1, signal.SIGTERM, 143), (3, signal.SIGINT, 130)):
        with monkeypatch.context() as patch:
            before_step(patch, step, send(number))
            assert train(config, tmp_path) == code
    assert train(config, tmp_path) == 0
    assert not differing(final_state(tmp_path), undisturbed)


class Killed(BaseException):
    """Nothing in the program catches this, as nothing survives kill -9."""


def kill() -> None:
    raise Killed


def test_killed_between_saves(
    undisturbed: dict[str, Any], tiny_array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on from the last save; metrics of the lost steps are not there twice."""
    config = array_config(
        tiny_array,
        training__snapshot_freq_for_preemption=2,
        training__log_freq=1,
        data__num_workers=2,
    )
    with monkeypatch.context() as patch:
        before_step(patch, 5, kill)
        with pytest.raises(Killed):
            train(config, tmp_path)
    assert read(meta_path(tmp_path))["step"] == 4
    assert train(config, tmp_path) == 0
    assert not differing(final_state(tmp_path), undisturbed)
    assert [
        row["step"] for row in read_json_lines(tmp_path / "metrics.jsonl") if "loss" in row
    ] == [1, 2, 3, 4, 5, 6]


def test_evaluation_and_samples_lost_to_a_signal_are_made_up_for(
    tiny_array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = array_config(tiny_array, training__eval_freq=3, training__sampling_freq=3)
    with monkeypatch.context() as patch:
        before_step(patch, 2, send(signal.SIGTERM))  # the third step ends with both due
        assert train(config, tmp_path) == 143
    assert not (tmp_path / "samples" / "iter_3").exists()
    assert train(config, tmp_path) == 0
    assert [
        row["step"] for row in read_json_lines(tmp_path / "metrics.jsonl") if "eval_loss" in row
    ] == [3, 6]
    for step in (3, 6):
        assert (tmp_path / "samples" / f"iter_{step}" / "final.png").exists()


def test_extending_a_finished_run(
    tiny_array: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert train(array_config(tiny_array, training__n_iters=3), tmp_path / "extended") == 0
    assert "already finished at step 3" in capsys.readouterr().out
    assert train(array_config(tiny_array, training__n_iters=5), tmp_path / "extended") == 0
    assert train(array_config(tiny_array, training__n_iters=5), tmp_path / "at once") == 0
    assert not differing(final_state(tmp_path / "extended"), final_state(tmp_path / "at once"))


def test_the_last_step_has_a_numbered_checkpoint(tiny_array: Path, tmp_path: Path) -> None:
    """Number n is step n * snapshot_freq; a last step in between has the next number."""
    assert (
        train(array_config(tiny_array, training__n_iters=5, training__snapshot_freq=2), tmp_path)
        == 0
    )
    assert [read(numbered_path(tmp_path, n))["step"] for n in (1, 2, 3)] == [2, 4, 5]
    assert not numbered_path(tmp_path, 4).exists()


def test_resuming_another_model_or_data_is_refused(tiny_array: Path, tmp_path: Path) -> None:
    assert train(array_config(tiny_array, training__n_iters=1), tmp_path) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    others: list[tuple[dict[str, Any], list[str]]] = [
        ({"model__K": 4}, ["config.model.K was 3, now 4"]),
        (
            {"data__random_flip": False, "model__sigma": 0.02},
            ["config.data.random_flip", "config.model.sigma"],
        ),
    ]
    for overrides, keys in others:
        with pytest.raises(UserError) as error:
            train(array_config(tiny_array, **overrides), tmp_path)
        assert all(key in str(error.value) for key in keys)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_other_images_under_the_same_name_are_refused(tiny_array: Path, tmp_path: Path) -> None:
    """Another number of images, and the same number with other pixels; a checkpoint without their
    checksums says less, or is accepted.
    """
    path, images = tmp_path / "mine.npy", np.load(tiny_array)
    other_pixels = images.copy()
    other_pixels[0] ^= 1
    np.save(path, images)
    assert train(array_config(path, training__n_iters=1), tmp_path / "run") == 0
    saved = read(meta_path(tmp_path / "run"))

    def refused(other: np.ndarray, message: str) -> None:
        np.save(path, other)
        with pytest.raises(UserError, match=rf"trained on other images .*{message}"):
            train(array_config(path), tmp_path / "run")

    def without(*keys: str) -> None:
        data = {key: value for key, value in saved["data"].items() if not key.endswith(keys)}
        write_meta(tmp_path / "run", {**saved, "data": data})

    fine_tune = ".*init_from=.* goes on with these images"
    refused(images[:-5], rf"\(36 then, 32 now, names: 5 gone, 1 new, such as image 2\){fine_tune}")
    refused(other_pixels, r"\(36 then, 36 now, other pixels in 1 of 36 images: image 0\)")
    refused(255 - images, "other pixels in 36 of 36 images: image 0, image 1, image 3, ...")
    without("names", "pixels")
    refused(images[:-5], r"\(36 then, 32 now, other names or another order\)")
    refused(255 - images, r"\(36 then, 36 now, the same names, other pixels\)")
    without("names", "pixels", "pixels_crc32")
    assert train(array_config(path), tmp_path / "run") == 0


def test_precision_of_the_checkpoint_is_kept(
    tiny_array: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where "auto" would choose another on this processor; unless the configuration asks for one."""

    def run(n_iters: int, amp_dtype: str) -> str:
        config = array_config(
            tiny_array,
            training__n_iters=n_iters,
            optim__automatic_mp=True,
            optim__amp_dtype=amp_dtype,
        )
        assert train(config, tmp_path) == 0
        return str(read(meta_path(tmp_path))["precision"])

    here = run(1, "auto")
    other = "float32" if here == "bfloat16" else "bfloat16"
    write_meta(tmp_path, read(meta_path(tmp_path)) | {"precision": other})
    assert run(2, "auto") == other
    assert (
        f"{other if other == 'float32' else 'bfloat16 autocast'} (as before; "
        in capsys.readouterr().out
    )
    assert run(3, "float16") == "float16"
    assert run(4, "auto") == here


def test_optimizer_settings_may_change_on_resuming(tiny_array: Path, tmp_path: Path) -> None:
    assert train(array_config(tiny_array, training__n_iters=2), tmp_path) == 0
    assert (
        train(
            array_config(tiny_array, training__n_iters=4, optim__weight_decay=0.5, optim__eps=1e-3),
            tmp_path,
        )
        == 0
    )
    (group,) = read(meta_path(tmp_path))["optimizer"]["param_groups"]
    assert (group["weight_decay"], group["eps"]) == (0.5, 1e-3)


def test_second_training_in_one_workdir(tiny_array: Path, tmp_path: Path) -> None:
    """From a process of its own, as these locks are between processes."""
    with exclusive(tmp_path, "taken"), ProcessPoolExecutor(1, get_context("fork")) as other:
        error = other.submit(train, array_config(tiny_array), tmp_path).exception()
    assert isinstance(error, UserError)
    assert "another training is running there" in str(error)


def test_damaged_newest_checkpoint(
    undisturbed: dict[str, Any], tiny_array: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """The one before it is used, with a warning, and the end is the same."""
    config = array_config(tiny_array, training__n_iters=4, training__snapshot_freq_for_preemption=2)
    assert train(config, tmp_path) == 0
    path = meta_path(tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="checksum"):
        assert train(array_config(tiny_array), tmp_path) == 0
    assert not differing(final_state(tmp_path), undisturbed)


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


def test_what_a_run_measures(tiny_array: Path, tmp_path: Path) -> None:
    """In metrics.jsonl and in TensorBoard, there with pictures of samples and the configuration."""
    assert (
        train(array_config(tiny_array, training__eval_freq=6, training__sampling_freq=6), tmp_path)
        == 0
    )
    rows = read_json_lines(tmp_path / "metrics.jsonl")
    trained = [row for row in rows if "loss" in row]
    assert [row["step"] for row in trained] == [2, 4, 6]
    assert {
        "loss",
        "lr",
        "grad_norm",
        "images_per_second",
        "loss_levels_1_to_1",
        "nonfinite_steps",
    } <= trained[0].keys()
    (evaluated,) = [row for row in rows if "eval_loss" in row]
    assert evaluated["eval_num_images"] == 4  # a tenth of forty
    assert evaluated["eval_loss_standard_error"] > 0
    assert json.loads((tmp_path / "config.json").read_text())["model"]["K"] == 3
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [point.step for point in events.Scalars("loss")] == [2, 4, 6]
    assert [picture.step for picture in events.Images("samples")] == [6]
    assert (
        b'"blur_sigma_max"' in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    )


def test_rows_without_a_step_are_kept(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"note": "by hand"}\n{"step": 3, "eval_loss": 1.0}\n{"step": 7, "loss": 1.0}\n'
    )
    with MetricsWriter(tmp_path, 5) as metrics:
        assert metrics.evaluated_steps == {3}
    assert read_json_lines(tmp_path / "metrics.jsonl") == [
        {"note": "by hand"},
        {"step": 3, "eval_loss": 1.0},
    ]


def test_evaluation_does_not_depend_on_its_batches(tiny_array: Path, tmp_path: Path) -> None:
    losses = []
    for size in (1, 4):
        workdir = tmp_path / str(size)
        assert (
            train(array_config(tiny_array, training__n_iters=2, eval__batch_size=size), workdir)
            == 0
        )
        losses.append(
            [
                row["eval_loss"]
                for row in read_json_lines(workdir / "metrics.jsonl")
                if "eval_loss" in row
            ]
        )
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_all_gpus_are_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with several, to one process that did not choose among them."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    precision = Precision.named(torch.device("cuda"), "float32")
    for device, expected in (("auto", True), ("cuda:1", False)):
        assert (
            "torchrun --nproc_per_node=4"
            in describe(resolve(tiny_config(device=device)), precision, numbered(9), numbered(1), 0)
        ) == expected


def test_nothing_is_written_for_bad_input(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    missing = {"data__dataset": "ffhq", "data__path": str(tmp_path / "nowhere")}
    for overrides in (
        {"model__K": 0},
        {"data__dataset": "imagenet"},
        missing,
        {"device": "cuda:99"},
        {"device": "tpu"},
    ):
        with pytest.raises(UserError):
            train(tiny_config(**overrides), workdir)
    assert not workdir.exists()


def test_a_snapshot_never_takes_the_place_of_another_steps(
    tiny_array: Path, tmp_path: Path
) -> None:
    """Going on with another snapshot_freq or n_iters; a step that is done again has the number that
    it had.
    """

    def steps(n_iters: int, freq: int) -> dict[int, int]:
        settings = {"n_iters": n_iters, "snapshot_freq": freq, "snapshot_full": True}
        config = array_config(
            tiny_array, **{f"training__{key}": value for key, value in settings.items()}
        )
        assert train(config, tmp_path) == 0
        paths = (tmp_path / "checkpoints").glob("*.pth")
        return {int(path.stem.removeprefix("checkpoint_")): read(path)["step"] for path in paths}

    assert steps(3, 2) == {1: 2, 2: 3}
    assert steps(4, 2) == {1: 2, 2: 3, 3: 4}
    assert steps(6, 3) == {1: 2, 2: 3, 3: 4, 4: 6}
    shutil.copy(numbered_path(tmp_path, 3), meta_path(tmp_path))  # as if killed after step 4
    assert steps(6, 3) == {1: 2, 2: 3, 3: 4, 4: 6}
