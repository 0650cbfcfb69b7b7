"""A run with blur levels of its own: matched to its images or from a file, kept in its checkpoints,
never exchanged.
"""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.fft import dctn

from model_code.schedule import removed_variance
from scripts.data.datasets import load_images
from scripts.sampling.sampler import load_sampler
from scripts.storage.checkpoint import meta_path, read
from scripts.tools.publish import publish
from scripts.training.loop import train
from tests.conftest import bad_input
from tests.training.runs import array_config, before_step, differing, final_state, finish


def with_schedule(path: Path, schedule: object) -> ConfigDict:
    return array_config(path, model__blur_schedule=schedule, model__K=6)


def test_matched_levels_are_those_of_the_images(
    tiny_array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal steps on them and their mirror images; an interrupted run is the undisturbed one;
    sampling needs no images.
    """
    config = with_schedule(tiny_array, "matched")
    finish(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        before_step(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(config, tmp_path / "run") == 143
    levels = read(meta_path(tmp_path / "run"))["sigma_B"]
    assert levels[1] == 0.5
    assert levels[-1] == 4.0
    source = load_images(config.data, "train")
    images = np.stack([source[i] for i in range(len(source))]) / 255
    images = np.concatenate([images, images[..., ::-1]])
    power = dctn(images, axes=(2, 3), norm="ortho").var(0).sum(0)
    steps = removed_variance(levels, levels.new_tensor(power))[1:]
    assert steps.max() / steps.min() < 1.01
    finish(config, tmp_path / "run")
    assert not differing(final_state(tmp_path / "run"), final_state(tmp_path / "whole"))
    publish(tmp_path / "run", tmp_path / "published")
    config.data.path = "not/there.npy"
    for workdir in ("run", "published"):
        for given in (config, None):
            sampler, _ = load_sampler(tmp_path / workdir, config=given)
            scale = sampler.process.level_scale  # type: ignore[attr-defined]
            assert differing(scale, levels) == []
            assert sampler.independent([0]).shape == (1, 1, 8, 8)
    config.model.blur_schedule = "log"
    with bad_input("blur_schedule was 'matched', now 'log'"):
        load_sampler(tmp_path / "run", config=config)


def test_levels_of_a_file_outlive_it(tiny_array: Path, tmp_path: Path) -> None:
    levels = tmp_path / "levels.npy"
    config = with_schedule(tiny_array, str(levels))
    with bad_input(r"levels\.npy': cannot be read"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists(), "before anything is written"
    np.save(levels, np.array([0, 0.4, 0.8, 1.6, 2, 3, 5]))
    finish(config, tmp_path / "run")
    levels.unlink()
    config.training.n_iters += 1
    saved = finish(config, tmp_path / "run")
    assert saved["sigma_B"].tolist() == [0, 0.4, 0.8, 1.6, 2, 3, 5]
    np.save(levels, np.array([0, 0.4, 0.8, 1.6, 2, 3, 4]))
    with bad_input(r"sigma_B\[6\] was 5, now 4"):
        train(config, tmp_path / "run")


def test_images_without_differences_have_no_matched_levels(tmp_path: Path) -> None:
    np.save(tmp_path / "grey.npy", np.full((20, 8, 8), 100, np.uint8))
    message = "blur_schedule = 'matched': blur removes nothing from these images"
    with bad_input(message):
        train(with_schedule(tmp_path / "grey.npy", "matched"), tmp_path / "run")
