"""Fixtures that several test files share."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from ml_collections import ConfigDict

from configs import default
from tests.golden import SETTINGS, Golden, load_golden

# Timings depend on the machine, and a suite that guards a landing must not fail by chance.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=60)
settings.register_profile(
    "long", deadline=None, max_examples=3000
)  # by hand: HYPOTHESIS_PROFILE=long pytest tests/test_fuzz.py
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


@pytest.fixture(scope="session", params=sorted(SETTINGS))
def golden(request: pytest.FixtureRequest) -> Golden:
    """Each golden file in turn."""
    return load_golden(request.param)


def tiny_config(**overrides: object) -> ConfigDict:
    """A configuration whose steps take milliseconds; `overrides` are like model__K=3 for config.model.K."""
    config = default.get_config()
    config.device = "cpu"
    config.training.batch_size = 4
    config.training.n_iters = 6
    config.training.log_freq = 2
    config.training.eval_freq = 100
    config.training.sampling_freq = 100
    config.training.num_samples = 2
    config.training.snapshot_freq = 100
    config.training.snapshot_freq_for_preemption = 100
    config.eval.batch_size = 4
    config.eval.num_images = 6
    config.data.dataset = "mnist5k"
    config.data.image_size = 8
    config.data.random_flip = True
    config.model.K = 3
    config.model.blur_sigma_max = 4.0
    config.model.model_channels = 32
    config.model.channel_mult = (1,)
    config.model.num_res_blocks = 1
    config.model.attention_levels = (0,)
    config.optim.warmup = 2
    for key, value in overrides.items():
        section, _, name = key.partition("__")
        if name:
            config[section][name] = value
        else:
            config[section] = value
    return config


@pytest.fixture
def make_config() -> Callable[..., ConfigDict]:
    """`tiny_config`."""
    return tiny_config


@pytest.fixture(scope="session")
def tiny_array(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty 8x8 grey images with some structure, as a .npy file."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:8, :8]
    phases = rng.uniform(0, 2 * np.pi, (40, 2, 1, 1))
    waves = np.sin(rows * 0.7 + phases[:, 0]) + np.cos(columns * 0.9 + phases[:, 1])
    path = tmp_path_factory.mktemp("array") / "waves.npy"
    np.save(path, ((waves + 2) / 4 * 255).astype(np.uint8))
    return path
