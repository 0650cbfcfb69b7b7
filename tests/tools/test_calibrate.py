"""The command that measures reverse kernels of a checkpoint without them."""

from pathlib import Path

import pytest

from scripts.errors import UserError
from scripts.sampling.choice import Choice
from scripts.sampling.sampler import load_sampler
from tests.conftest import command
from tests.evaluation.made_run import make_run
from tests.tiny import TINY, tiny_config


def test_blurring_diffusion(tmp_path: Path) -> None:
    """Its training measures none; afterwards they are used where they are asked for."""
    config = tiny_config(model__process="blurring_diffusion")
    make_run(config, tmp_path)
    options = ("--config", TINY, "--config.model.process=blurring_diffusion", "--workdir", tmp_path)
    with pytest.raises(UserError, match=r"--delta=calibrated: nothing was measured"):
        load_sampler(config, tmp_path, 0, choice=Choice("calibrated"))
    result = command("-m", "scripts.tools.calibrate", *options)
    assert result.returncode == 0, result.stderr
    for delta, label in (("calibrated", "calibrated"), (None, "posterior")):
        sampler, _ = load_sampler(config, tmp_path, 0, choice=Choice(delta))
        assert sampler.kernel.label == label
        assert sampler.independent([0]).isfinite().all()
